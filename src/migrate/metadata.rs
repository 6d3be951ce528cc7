//! EKM's metadata: an XML file with one `KeyUsageEvent` for each cartridge that it keyed.
//!
//! Names and meaning are those of the manual's chapter on metadata: `DriveSSN`, `VolSer`,
//! `DriveWWN`, `keyAlias1`, `keyAlias2`, `dateTime`, `DKi`. Whether they are elements or attributes
//! of the event, and in which case they are written, differs in what is known of it, so both and any
//! case are taken. No file of a real EKM was at hand.
//!
//! EKM writes while it runs and loses the file's end when it is killed; the manual has the operator
//! add the closing tags by hand. Here the events that are whole are taken, and how much was left over
//! is told.

use std::path::{Path, PathBuf};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde::{Deserialize, Serialize};

/// Longest metadata file, bytes; EKM's default is a megabyte.
pub const MAX_METADATA: u64 = 64 << 20;

/// Longest value of a field, bytes; a longer one is cut and the event counted as damaged.
const MAX_VALUE: usize = 256;

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 16;

/// One cartridge that was keyed, as EKM wrote it down.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyUse {
    /// The cartridge, `VolSer`.
    pub volser: String,
    /// When, `dateTime`, as it is written there.
    pub date_time: String,
    /// The drive's serial, `DriveSSN`.
    pub drive: String,
    /// The drive's world-wide name, `DriveWWN`.
    pub wwn: String,
    /// First key alias.
    pub alias1: String,
    /// Second key alias.
    pub alias2: String,
    /// The data key identifier, `DKi`, as it is written there.
    pub dki: String,
}

impl KeyUse {
    /// Its aliases that are not empty.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        [self.alias1.as_str(), self.alias2.as_str()]
            .into_iter()
            .filter(|alias| !alias.is_empty())
    }

    fn field(&mut self, name: &str) -> Option<&mut String> {
        Some(match name.to_ascii_lowercase().as_str() {
            "volser" => &mut self.volser,
            "datetime" => &mut self.date_time,
            "drivessn" => &mut self.drive,
            "drivewwn" => &mut self.wwn,
            "keyalias1" => &mut self.alias1,
            "keyalias2" => &mut self.alias2,
            "dki" => &mut self.dki,
            _ => return None,
        })
    }
}

/// What a metadata file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Its whole events, in the file's order.
    pub events: Vec<KeyUse>,
    /// What is wrong with it, where something is.
    pub damage: Option<String>,
    /// Events without a volume serial or with a value that is too long; they are not in `events`.
    pub incomplete: usize,
}

/// Why there is no metadata.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The file.
    #[error("cannot read the metadata file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It has nothing of the kind.
    #[error(
        "{path} holds no KeyUsageEvent{why}; give EKM's metadata XML (property Audit.metadata.file.name) with --metadata"
    )]
    NoEvents {
        /// The file.
        path: PathBuf,
        /// What else.
        why: String,
    },
}

/// Reads a metadata file.
///
/// # Errors
/// It cannot be read, is longer than [`MAX_METADATA`], or is not empty and holds no event.
pub fn read(path: &Path) -> Result<Metadata, MetadataError> {
    let bytes =
        crate::files::read_limited(path, MAX_METADATA).map_err(|source| MetadataError::Read {
            path: path.to_owned(),
            source,
        })?;
    // Serials, aliases and dates are ASCII; a stray byte must not cost the whole file.
    let text = String::from_utf8_lossy(&bytes);
    let metadata = parse(&text);
    if metadata.events.is_empty() && metadata.incomplete == 0 && !text.contains("<?xml") {
        let why = metadata.damage.map(|damage| format!(" ({damage})"));
        return Err(MetadataError::NoEvents {
            path: path.to_owned(),
            why: why.unwrap_or_default(),
        });
    }
    Ok(metadata)
}

/// Reads the events of a metadata file's text.
#[must_use]
pub fn parse(text: &str) -> Metadata {
    let mut reader = Reader::from_str(text);
    let mut metadata = Metadata::default();
    let mut state = State::default();
    // Where the last whole event ends.
    let mut whole = 0;
    let why = loop {
        match reader.read_event() {
            Ok(Event::Eof) if state.depth == 0 => return metadata,
            Ok(Event::Eof) => break "the file ends before its closing tags".to_owned(),
            Ok(event) => {
                if let Err(why) = state.take(event, &mut metadata) {
                    break why;
                }
            }
            Err(error) => break error.to_string(),
        }
        if state.open.is_none() && std::mem::take(&mut state.ended) {
            whole = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        }
    };
    let rest = text.get(whole..).unwrap_or_default();
    metadata.damage = Some(if rest.trim().is_empty() {
        format!("{why}; every event in it is whole")
    } else {
        format!(
            "{why}; the last {} bytes, from byte {whole} on, were left out",
            rest.len()
        )
    });
    metadata
}

/// Where in the file the reader is.
#[derive(Debug, Default)]
struct State {
    depth: usize,
    /// The event that is open, and at which depth.
    open: Option<(usize, KeyUse)>,
    /// The field that is open.
    field: Option<String>,
    too_long: bool,
    /// An event has just ended.
    ended: bool,
}

impl State {
    fn take(&mut self, event: Event<'_>, metadata: &mut Metadata) -> Result<(), String> {
        match event {
            Event::Start(start) => {
                self.start(&start);
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(format!("elements are nested deeper than {MAX_DEPTH}"));
                }
            }
            Event::Empty(start) => {
                self.start(&start);
                self.depth += 1;
                self.end(metadata);
            }
            Event::End(_) => self.end(metadata),
            Event::Text(text) => self.text(&text.xml10_content()),
            Event::CData(text) => self.text(&text.xml10_content()),
            Event::GeneralRef(reference) => {
                if let Ok(Some(character)) = reference.resolve_char_ref() {
                    self.text(character.encode_utf8(&mut [0; 4]));
                } else if let Some(text) =
                    quick_xml::escape::resolve_predefined_entity(&reference.into_inner())
                {
                    self.text(text);
                }
                // Any other entity would come from a document type, which EKM does not write.
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Eof => {}
        }
        Ok(())
    }

    fn start(&mut self, start: &BytesStart<'_>) {
        let name = start.local_name().into_inner().to_owned();
        if self.open.is_none() && name.eq_ignore_ascii_case("KeyUsageEvent") {
            let mut event = KeyUse::default();
            for attribute in start.html_attributes().flatten() {
                if let Some(field) = event.field(attribute.key.local_name().into_inner()) {
                    self.too_long |= attribute.value.len() > MAX_VALUE;
                    field.extend(attribute.value.chars().take(MAX_VALUE));
                }
            }
            self.open = Some((self.depth, event));
        } else if self.open.is_some() {
            self.field = Some(name);
        }
    }

    fn text(&mut self, text: &str) {
        let Some((_, event)) = &mut self.open else {
            return;
        };
        let Some(field) = self.field.as_deref().and_then(|name| event.field(name)) else {
            return;
        };
        if field.len() + text.len() > MAX_VALUE {
            self.too_long = true;
        } else {
            field.push_str(text);
        }
    }

    fn end(&mut self, metadata: &mut Metadata) {
        self.depth = self.depth.saturating_sub(1);
        self.field = None;
        let Some((_, event)) = self.open.take_if(|(depth, _)| *depth == self.depth) else {
            return;
        };
        self.ended = true;
        let event = trimmed(event);
        if event.volser.is_empty() || std::mem::take(&mut self.too_long) {
            metadata.incomplete += 1;
        } else {
            metadata.events.push(event);
        }
    }
}

fn trimmed(event: KeyUse) -> KeyUse {
    let trim = |text: String| {
        let text = text.trim();
        // What Java writes for an alias that is not there.
        if text == "null" {
            String::new()
        } else {
            text.to_owned()
        }
    };
    let KeyUse {
        volser,
        date_time,
        drive,
        wwn,
        alias1,
        alias2,
        dki,
    } = event;
    KeyUse {
        volser: trim(volser),
        date_time: trim(date_time),
        drive: trim(drive),
        wwn: trim(wwn),
        alias1: trim(alias1),
        alias2: trim(alias2),
        dki: trim(dki),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = "<KeyUsageEvent><DriveSSN>FVTDRIVE0000</DriveSSN><VolSer>TESTER</VolSer>\
        <DriveWWN>57574E414D453030</DriveWWN><keyAlias1>cert1</keyAlias1><keyAlias2>a&amp;b</keyAlias2>\
        <dateTime>2008.01.22 10:20:30</dateTime><DKi>4B4D00000000000000000001</DKi></KeyUsageEvent>";

    fn file(events: usize) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<KeyUsageEvents>\n{}</KeyUsageEvents>\n",
            format!("{EVENT}\n").repeat(events)
        )
    }

    #[test]
    fn every_field_is_read() {
        let metadata = parse(&file(1));
        assert_eq!(metadata.damage, None);
        let [event] = metadata.events.as_slice() else {
            panic!("{metadata:?}");
        };
        assert_eq!(event.volser, "TESTER");
        assert_eq!(event.drive, "FVTDRIVE0000");
        assert_eq!(event.wwn, "57574E414D453030");
        assert_eq!(event.aliases().collect::<Vec<_>>(), ["cert1", "a&b"]);
        assert_eq!(event.date_time, "2008.01.22 10:20:30");
        assert_eq!(event.dki, "4B4D00000000000000000001");
    }

    #[test]
    fn attributes_and_any_case_are_taken() {
        let metadata =
            parse("<x><keyusageevent volser=' V1 ' KEYALIAS1='k' keyAlias2='null'/></x>");
        assert_eq!(metadata.events.len(), 1, "{metadata:?}");
        assert_eq!(metadata.events.first().unwrap().volser, "V1");
        assert_eq!(metadata.events.first().unwrap().aliases().count(), 1);
    }

    #[test]
    fn a_file_that_was_cut_anywhere_gives_its_whole_events() {
        let whole = file(3);
        let ends: Vec<usize> = whole
            .match_indices("</KeyUsageEvent>")
            .map(|(at, text)| at + text.len())
            .collect();
        for cut in 0..whole.len() - 1 {
            let metadata = parse(whole.get(..cut).unwrap());
            let expected = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(metadata.events.len(), expected, "cut at {cut}");
            let after_the_root_began = cut > whole.find("<KeyUsageEvents>").unwrap();
            if after_the_root_began && cut < whole.find("</KeyUsageEvents>").unwrap() {
                assert!(metadata.damage.is_some(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_was_left_out_is_told_to_the_byte() {
        let whole = file(2);
        let end = whole.rfind("</KeyUsageEvent>").unwrap() + "</KeyUsageEvent>".len();
        let cut = |at: usize| parse(whole.get(..at).unwrap()).damage.unwrap();
        assert!(
            cut(end).contains("every event in it is whole"),
            "{}",
            cut(end)
        );
        assert!(cut(end + 1).contains("every event in it is whole"));
        let first = whole.find("</KeyUsageEvent>").unwrap() + "</KeyUsageEvent>".len();
        let told = format!("the last {} bytes, from byte {first} on", end - 9 - first);
        assert!(cut(end - 9).contains(&told), "{}", cut(end - 9));
    }

    #[test]
    fn entities_of_a_document_type_are_not_expanded() {
        let bomb = format!(
            "<!DOCTYPE x [<!ENTITY a \"{}\"><!ENTITY b \"&a;&a;&a;\">]><x>{}</x>",
            "A".repeat(100),
            EVENT.replace("TESTER", "V&b;1"),
        );
        let metadata = parse(&bomb);
        assert_eq!(metadata.events.first().unwrap().volser, "V1");
    }

    #[test]
    fn hostile_shapes_end_with_a_word() {
        let deep = "<a>".repeat(100_000);
        assert!(parse(&deep).damage.unwrap().contains("nested"));
        let long = file(1).replace("TESTER", &"x".repeat(100_000));
        let metadata = parse(&long);
        assert_eq!((metadata.events.len(), metadata.incomplete), (0, 1));
    }
}
