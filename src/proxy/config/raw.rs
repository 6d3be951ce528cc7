//! The host's file as it is written, and the check that makes it one to work with.

mod doors;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::{
    AppendInClear, ClassName, DataClass, Device, HostConfig, HostDrive, InBand, KeyPath,
    VolumeRange,
};
use crate::drive::DriveSerial;
use crate::proxy::labels::{At, Labels, Operands};
use crate::proxy::service::Times;
use crate::volser::Volser;
use doors::{Servers, Source, Tls};

type Text = Spanned<String>;

/// The daemon's socket beside the host's file, where that names none.
const SOCKET: &str = "proxy.sock";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    path: Option<Text>,
    socket: Option<Text>,
    tls: Option<Tls>,
    key_servers: Option<Spanned<Servers>>,
    #[serde(default)]
    data_classes: Vec<Class>,
    #[serde(default)]
    volume_ranges: Vec<Range>,
    #[serde(default)]
    drives: Vec<Drive>,
    in_band: Option<InBandTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Class {
    name: Text,
    format: Text,
    keylabl1: Option<Text>,
    keyencd1: Option<Text>,
    keylabl2: Option<Text>,
    keyencd2: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    first: Text,
    last: Text,
    keylabl1: Option<Text>,
    keyencd1: Option<Text>,
    keylabl2: Option<Text>,
    keyencd2: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drive {
    serial: Text,
    path: Option<Text>,
    device: Option<Text>,
    plain_key: Option<bool>,
    unprotected: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InBandTable {
    append_in_clear: Option<Text>,
    history: Option<Text>,
}

/// What a file says of the daemon's socket, whatever else it says.
pub(super) fn socket(file: &Path, text: &str) -> Result<PathBuf, toml::de::Error> {
    #[derive(Deserialize)]
    struct Socket {
        socket: Option<PathBuf>,
    }
    let Socket { socket } = toml::from_str(text)?;
    Ok(folder(file).join(socket.unwrap_or_else(|| SOCKET.into())))
}

impl Host {
    /// The configuration, or every fault of it with its line.
    pub(super) fn check(self, file: &Path, text: &str) -> Result<HostConfig, Vec<String>> {
        let mut check = Check {
            lines: text.match_indices('\n').map(|(at, _)| at).collect(),
            names: Vec::new(),
            spans: Vec::new(),
            serials: Vec::new(),
            devices: Vec::new(),
            faults: Vec::new(),
        };
        let Self {
            path,
            socket,
            tls,
            key_servers,
            data_classes,
            volume_ranges,
            drives,
            in_band,
        } = self;
        let path = path.and_then(|path| check.parse("path", path));
        let folder = folder(file);
        let socket = socket.and_then(|socket| check.file(&folder, "socket", socket));
        let tls = tls.and_then(|tls| check.tls(&folder, tls));
        let servers = key_servers.and_then(|servers| check.servers(&folder, servers));
        let (key_servers, listed_in, times) = match servers {
            Some((Source::Here(servers), times)) => (Some(servers), None, times),
            Some((Source::File(listed), times)) => (None, Some(listed), times),
            None => (None, None, Times::default()),
        };
        let data_classes = data_classes
            .into_iter()
            .filter_map(|class| check.class(class))
            .collect();
        let volume_ranges = volume_ranges
            .into_iter()
            .filter_map(|range| check.range(range))
            .collect();
        let drives = drives
            .into_iter()
            .filter_map(|drive| check.drive(&folder, drive))
            .collect();
        let in_band = in_band.map(|table| check.in_band(table));
        check.once();
        check.apart();
        if !check.faults.is_empty() {
            check.faults.sort_by_key(|fault| fault.at);
            return Err(check
                .faults
                .into_iter()
                .map(|At { value, at }| format!("line {at}: {value}"))
                .collect());
        }
        Ok(HostConfig {
            file: file.to_owned(),
            key_servers,
            listed_in,
            times,
            tls,
            socket: socket.unwrap_or_else(|| folder.join(SOCKET)),
            path,
            data_classes,
            volume_ranges,
            drives,
            in_band: in_band.unwrap_or_default(),
        })
    }
}

/// What relative paths are relative to.
fn folder(file: &Path) -> PathBuf {
    let whole = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    whole.parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Where lines end, what must not be given twice, and what has been found wrong so far.
struct Check {
    lines: Vec<usize>,
    /// Those of data classes, also of ones with other faults.
    names: Vec<At<ClassName>>,
    /// First and last of volume ranges.
    spans: Vec<(At<Volser>, Volser)>,
    serials: Vec<At<DriveSerial>>,
    devices: Vec<At<Device>>,
    faults: Vec<At<String>>,
}

impl Check {
    fn line<T>(&self, value: &Spanned<T>) -> usize {
        let start = value.span().start;
        self.lines.partition_point(|end| *end < start) + 1
    }

    fn fault(&mut self, at: usize, fault: String) {
        self.faults.push(At { value: fault, at });
    }

    fn parse<T: FromStr<Err: Display>>(&mut self, key: &str, text: Text) -> Option<At<T>> {
        let at = self.line(&text);
        match text.into_inner().parse() {
            Ok(value) => Some(At { value, at }),
            Err(error) => {
                self.fault(at, format!("{key}: {error}"));
                None
            }
        }
    }

    fn given<T: FromStr<Err: Display>>(
        &mut self,
        table: &str,
        key: &str,
        text: Option<Text>,
    ) -> Option<At<T>> {
        text.and_then(|text| self.parse(&format!("{table}.{key}"), text))
    }

    fn class(&mut self, class: Class) -> Option<DataClass> {
        let Class {
            name,
            format,
            keylabl1,
            keyencd1,
            keylabl2,
            keyencd2,
        } = class;
        let name: Option<At<ClassName>> = self.parse("data_classes.name", name);
        self.names.extend(name.clone());
        let format = self.parse("data_classes.format", format);
        let labels = self.labels("data_classes", [keylabl1, keylabl2], [keyencd1, keyencd2]);
        Some(DataClass {
            name: name?,
            format: format?,
            labels: labels?,
        })
    }

    fn range(&mut self, range: Range) -> Option<VolumeRange> {
        let Range {
            first,
            last,
            keylabl1,
            keyencd1,
            keylabl2,
            keyencd2,
        } = range;
        let at = self.line(&first);
        let first: Option<At<Volser>> = self.parse("volume_ranges.first", first);
        let last: Option<At<Volser>> = self.parse("volume_ranges.last", last);
        let labels = self.labels("volume_ranges", [keylabl1, keylabl2], [keyencd1, keyencd2]);
        if matches!(labels, Some(None)) {
            self.fault(at, "volume_ranges: it names no label".to_owned());
        }
        let (first, last) = (first?, last?.value);
        if first.value.as_str().len() != last.as_str().len() {
            self.fault(
                at,
                format!(
                    "volume_ranges: {} and {last} are not of one length",
                    first.value
                ),
            );
            return None;
        }
        if first.value > last {
            self.fault(
                at,
                format!("volume_ranges: {} comes after {last}", first.value),
            );
            return None;
        }
        self.spans.push((first.clone(), last.clone()));
        Some(VolumeRange {
            first,
            last,
            labels: labels??,
        })
    }

    fn drive(&mut self, folder: &Path, drive: Drive) -> Option<HostDrive> {
        let Drive {
            serial,
            path,
            device,
            plain_key,
            unprotected,
        } = drive;
        let serial: Option<At<DriveSerial>> = self.parse("drives.serial", serial);
        self.serials.extend(serial.clone());
        let path: Option<Option<At<KeyPath>>> = match path {
            Some(path) => self.parse("drives.path", path).map(Some),
            None => Some(None),
        };
        let mut device: Option<Option<At<Device>>> = match device {
            Some(device) => self.parse("drives.device", device).map(Some),
            None => Some(None),
        };
        if let Some(Some(device)) = &mut device {
            if let Device::Channel(path) = &mut device.value {
                *path = folder.join(&*path);
            }
            self.devices.push(device.clone());
        }
        Some(HostDrive {
            serial: serial?,
            path: path?,
            device: device?,
            plain_key: plain_key.unwrap_or_default(),
            unprotected: unprotected.unwrap_or_default(),
        })
    }

    fn in_band(&mut self, table: InBandTable) -> InBand {
        let InBandTable {
            append_in_clear,
            history,
        } = table;
        let append: Option<At<AppendInClear>> =
            self.given("in_band", "append_in_clear", append_in_clear);
        let history = history.map(|history| {
            let at = self.line(&history);
            let path = history.into_inner();
            if !path.starts_with('/') {
                self.fault(
                    at,
                    format!("in_band.history: expected a whole path, got {path:?}"),
                );
            }
            path
        });
        InBand {
            append_in_clear: append.map(|append| append.value).unwrap_or_default(),
            history: history.map_or_else(|| InBand::HISTORY.into(), Into::into),
        }
    }

    /// The labels, none where they are faulty.
    fn labels(
        &mut self,
        table: &str,
        labels: [Option<Text>; 2],
        encodings: [Option<Text>; 2],
    ) -> Option<Option<Labels>> {
        let before = self.faults.len();
        let [label1, label2] = labels;
        let [encoding1, encoding2] = encodings;
        // One that cannot be read is there all the same.
        let given = [&label1, &label2].map(|label| label.as_ref().map(|text| self.line(text)));
        let operands = Operands {
            label1: self.given(table, "keylabl1", label1),
            label2: self.given(table, "keylabl2", label2),
            encoding1: self.given(table, "keyencd1", encoding1),
            encoding2: self.given(table, "keyencd2", encoding2),
        };
        let unread = [&operands.label1, &operands.label2]
            .into_iter()
            .zip(given)
            .any(|(label, given)| label.is_none() && given.is_some());
        if unread {
            return None;
        }
        match operands.labels() {
            Ok(labels) if self.faults.len() == before => Some(labels),
            Ok(_) => None,
            Err(faults) => {
                for At { value, at } in faults {
                    self.fault(at, format!("{table}: {value}"));
                }
                None
            }
        }
    }

    /// No name and no serial is given twice.
    fn once(&mut self) {
        let names = repeated("data_classes.name", &self.names);
        let serials = repeated("drives.serial", &self.serials);
        let devices = repeated("drives.device", &self.devices);
        self.faults
            .extend(names.into_iter().chain(serials).chain(devices));
    }

    /// No two ranges have a volume in common.
    fn apart(&mut self) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.sort_by(|(first, last), (other, other_last)| {
            let length = last.as_str().len().cmp(&other_last.as_str().len());
            length.then_with(|| first.value.cmp(&other.value))
        });
        // Of those before, the one that reaches furthest.
        let mut furthest: Option<&(At<Volser>, Volser)> = None;
        for span in &spans {
            let (first, last) = span;
            if let Some((before, end)) = furthest
                && end.as_str().len() == last.as_str().len()
                && first.value <= *end
            {
                self.fault(
                    first.at,
                    format!(
                        "volume_ranges: {} to {last} overlaps {} to {end} of line {}",
                        first.value, before.value, before.at
                    ),
                );
                if end >= last {
                    continue;
                }
            }
            furthest = Some(span);
        }
    }
}

fn repeated<T: Ord + Display>(key: &str, names: &[At<T>]) -> Vec<At<String>> {
    let mut seen = BTreeMap::new();
    let mut faults = Vec::new();
    for At { value, at } in names {
        if let Some(first) = seen.get(value) {
            faults.push(At {
                value: format!("{key}: {value} is given twice, first in line {first}"),
                at: *at,
            });
        } else {
            seen.insert(value, *at);
        }
    }
    faults
}
