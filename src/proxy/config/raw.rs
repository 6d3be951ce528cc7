//! The host's file as it is written, and the check that makes it one to work with.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::{ClassName, DataClass, HostConfig, HostDrive, KeyPath, VolumeRange};
use crate::drive::DriveSerial;
use crate::proxy::labels::{At, Labels, Operands};
use crate::proxy::servers::{KeyServers, ServerAddress};
use crate::volser::Volser;

type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    path: Option<Text>,
    key_servers: Option<Spanned<Servers>>,
    #[serde(default)]
    data_classes: Vec<Class>,
    #[serde(default)]
    volume_ranges: Vec<Range>,
    #[serde(default)]
    drives: Vec<Drive>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Servers {
    primary: Option<Text>,
    secondary: Option<Text>,
    servers: Option<Spanned<Vec<Text>>>,
    maxconn: Option<Spanned<i64>>,
    maxpconn: Option<Spanned<i64>>,
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
}

impl Host {
    /// The configuration, or every fault of it with its line.
    pub(super) fn check(self, file: &Path, text: &str) -> Result<HostConfig, Vec<String>> {
        let mut check = Check {
            lines: text.match_indices('\n').map(|(at, _)| at).collect(),
            names: Vec::new(),
            spans: Vec::new(),
            serials: Vec::new(),
            faults: Vec::new(),
        };
        let Self {
            path,
            key_servers,
            data_classes,
            volume_ranges,
            drives,
        } = self;
        let path = path.and_then(|path| check.parse("path", path));
        let key_servers = key_servers.and_then(|servers| check.servers(servers));
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
            .filter_map(|drive| check.drive(drive))
            .collect();
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
            path,
            data_classes,
            volume_ranges,
            drives,
        })
    }
}

/// Where lines end, what must not be given twice, and what has been found wrong so far.
struct Check {
    lines: Vec<usize>,
    /// Those of data classes, also of ones with other faults.
    names: Vec<At<ClassName>>,
    /// First and last of volume ranges.
    spans: Vec<(At<Volser>, Volser)>,
    serials: Vec<At<DriveSerial>>,
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

    fn drive(&mut self, drive: Drive) -> Option<HostDrive> {
        let Drive { serial, path } = drive;
        let serial: Option<At<DriveSerial>> = self.parse("drives.serial", serial);
        self.serials.extend(serial.clone());
        let path: Option<Option<At<KeyPath>>> = match path {
            Some(path) => self.parse("drives.path", path).map(Some),
            None => Some(None),
        };
        Some(HostDrive {
            serial: serial?,
            path: path?,
        })
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

    fn servers(&mut self, servers: Spanned<Servers>) -> Option<KeyServers> {
        let table = self.line(&servers);
        let before = self.faults.len();
        let Servers {
            primary,
            secondary,
            servers,
            maxconn,
            maxpconn,
        } = servers.into_inner();
        if let (None, Some(secondary)) = (&primary, &secondary) {
            let at = self.line(secondary);
            self.fault(at, "key_servers.secondary: there is no primary".to_owned());
        }
        let named: Vec<Text> = primary.into_iter().chain(secondary).collect();
        let list = match servers {
            None => named,
            Some(list) => {
                let at = self.line(&list);
                if !named.is_empty() {
                    self.fault(
                        at,
                        "key_servers.servers: give primary and secondary, or the list".to_owned(),
                    );
                }
                let got = list.get_ref().len();
                if got > KeyServers::MAX {
                    let most = KeyServers::MAX;
                    self.fault(
                        at,
                        format!("key_servers.servers: {got} servers, at most {most}"),
                    );
                }
                list.into_inner()
            }
        };
        if list.is_empty() {
            self.fault(table, "key_servers: it names no server".to_owned());
        }
        let mut read: Vec<ServerAddress> = Vec::new();
        for text in list.into_iter().take(KeyServers::MAX) {
            let Some(At { value, at }) = self.parse("key_servers", text) else {
                continue;
            };
            if read.contains(&value) {
                self.fault(at, format!("key_servers: {value} is listed twice"));
            }
            read.push(value);
        }
        let maxconn = self.bound(
            "maxconn",
            maxconn,
            1..=KeyServers::MAXCONN,
            KeyServers::MAXCONN,
        );
        // A bound that is wrong itself is told once.
        let most = maxconn.unwrap_or(KeyServers::MAXCONN);
        let maxpconn = self.bound(
            "maxpconn",
            maxpconn,
            0..=most,
            KeyServers::MAXPCONN.min(most),
        );
        (self.faults.len() == before).then_some(KeyServers {
            servers: read,
            maxconn: maxconn?,
            maxpconn: maxpconn?,
        })
    }

    fn bound(
        &mut self,
        key: &str,
        given: Option<Spanned<i64>>,
        range: std::ops::RangeInclusive<u16>,
        default: u16,
    ) -> Option<u16> {
        let Some(given) = given else {
            return Some(default);
        };
        let found = u16::try_from(*given.get_ref())
            .ok()
            .filter(|given| range.contains(given));
        if found.is_none() {
            let at = self.line(&given);
            let (least, most) = range.into_inner();
            let given = given.get_ref();
            self.fault(
                at,
                format!("key_servers.{key}: {given} is not {least} to {most}"),
            );
        }
        found
    }

    /// No name and no serial is given twice.
    fn once(&mut self) {
        let names = repeated("data_classes.name", &self.names);
        let serials = repeated("drives.serial", &self.serials);
        self.faults.extend(names.into_iter().chain(serials));
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
