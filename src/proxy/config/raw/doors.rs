//! The part of the host's file that the daemon lives by: certificates, key servers, times.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{Check, Text};
use crate::proxy::config::ListedIn;
use crate::proxy::labels::At;
use crate::proxy::servers::{KeyServer, KeyServers, ServerAddress};
use crate::proxy::service::Times;
use crate::tls::ClientPaths;

/// Longest time of a request, seconds: well inside the 300 s that drives grant.
const MAX_TOTAL: u16 = 240;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    ca: Text,
    certificate: Text,
    key: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Servers {
    primary: Option<Text>,
    secondary: Option<Text>,
    servers: Option<Spanned<Vec<Text>>>,
    file: Option<Text>,
    maxconn: Option<Spanned<i64>>,
    maxpconn: Option<Spanned<i64>>,
    connect_seconds: Option<Spanned<i64>>,
    answer_seconds: Option<Spanned<i64>>,
    retries: Option<Spanned<i64>>,
    total_seconds: Option<Spanned<i64>>,
    probe_seconds: Option<Spanned<i64>>,
}

/// Where the list of key servers stands.
pub(super) enum Source {
    /// In this file.
    Here(KeyServers),
    /// In another.
    File(ListedIn),
}

impl Check {
    pub(super) fn file(&mut self, folder: &Path, key: &str, text: Text) -> Option<PathBuf> {
        let at = self.line(&text);
        let text = text.into_inner();
        if text.is_empty() {
            self.fault(at, format!("{key}: it is empty, and should name a file"));
            return None;
        }
        Some(folder.join(text))
    }

    pub(super) fn tls(&mut self, folder: &Path, tls: Tls) -> Option<ClientPaths> {
        let Tls {
            ca,
            certificate,
            key,
        } = tls;
        let ca = self.file(folder, "tls.ca", ca);
        let certificate = self.file(folder, "tls.certificate", certificate);
        let key = self.file(folder, "tls.key", key);
        Some(ClientPaths {
            ca: ca?,
            certificate: certificate?,
            key: key?,
        })
    }

    pub(super) fn servers(
        &mut self,
        folder: &Path,
        servers: Spanned<Servers>,
    ) -> Option<(Source, Times)> {
        let table = self.line(&servers);
        let before = self.faults.len();
        let Servers {
            primary,
            secondary,
            servers,
            file,
            maxconn,
            maxpconn,
            connect_seconds,
            answer_seconds,
            retries,
            total_seconds,
            probe_seconds,
        } = servers.into_inner();
        if let (None, Some(secondary)) = (&primary, &secondary) {
            let at = self.line(secondary);
            self.fault(at, "key_servers.secondary: there is no primary".to_owned());
        }
        let named: Vec<Text> = primary.into_iter().chain(secondary).collect();
        let source = match file {
            Some(file) => {
                if !named.is_empty() || servers.is_some() {
                    let at = self.line(&file);
                    self.fault(
                        at,
                        "key_servers.file: name the servers here, or the file that lists them"
                            .to_owned(),
                    );
                }
                Err(self.file(folder, "key_servers.file", file))
            }
            None => Ok(self.list(table, named, servers)),
        };
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
        let usual = Times::default();
        let mut time = |key: &str, given, most, usual: Duration| {
            let usual = u16::try_from(usual.as_secs()).unwrap_or(most);
            let seconds = self.bound(key, given, 1..=most, usual)?;
            Some(Duration::from_secs(seconds.into()))
        };
        let connect = time("connect_seconds", connect_seconds, 60, usual.connect);
        let answer = time("answer_seconds", answer_seconds, MAX_TOTAL, usual.answer);
        let total = time("total_seconds", total_seconds, MAX_TOTAL, usual.total);
        let probe = time("probe_seconds", probe_seconds, 3600, usual.probe);
        let usual = u16::try_from(usual.retries).unwrap_or(1);
        let retries = self.bound("retries", retries, 0..=10, usual);
        if self.faults.len() > before {
            return None;
        }
        let (maxconn, maxpconn) = (maxconn?, maxpconn?);
        let source = match source {
            Ok(servers) => Source::Here(KeyServers {
                servers,
                maxconn,
                maxpconn,
            }),
            Err(path) => Source::File(ListedIn {
                path: path?,
                maxconn,
                maxpconn,
            }),
        };
        let times = Times {
            connect: connect?,
            answer: answer?,
            retries: retries?.into(),
            total: total?,
            probe: probe?,
            wait: true,
        };
        Some((source, times))
    }

    fn list(
        &mut self,
        table: usize,
        named: Vec<Text>,
        servers: Option<Spanned<Vec<Text>>>,
    ) -> Vec<KeyServer> {
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
        let mut read: Vec<KeyServer> = Vec::new();
        for text in list.into_iter().take(KeyServers::MAX) {
            let Some(At { value, at }) = self.parse::<ServerAddress>("key_servers", text) else {
                continue;
            };
            if read.iter().any(|one| one.address == value) {
                self.fault(at, format!("key_servers: {value} is listed twice"));
            }
            read.push(value.into());
        }
        read
    }

    fn bound(
        &mut self,
        key: &str,
        given: Option<Spanned<i64>>,
        range: RangeInclusive<u16>,
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
}
