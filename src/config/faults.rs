//! What is wrong with a configuration, all of it at once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Config, KeystoreConfig, TokenConfigError};
use crate::bridge::pin::{PinError, PinSource};
use crate::bridge::profile::HsmProfile;
use crate::policy::Pkcs1V15Eedks;
use crate::store::DatabaseConfig;

impl Config {
    /// Every fault that can be seen without a token, one sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.policy.faults();
        let Self {
            node,
            state: _,
            database,
            fleet,
            audit: _,
            server,
            metrics: _,
            operators,
            tokens,
            records,
            keystores,
            sync,
            policy,
            alarms,
        } = self;
        faults.extend(alarms.faults());
        faults.extend(operators.faults());
        faults.extend(policy.approval.faults(operators));
        faults.extend(records.faults());
        if node.is_empty() || node.len() > 64 {
            faults.push("node: give the server a name of 1 to 64 bytes".to_owned());
        }
        if node.starts_with("server:") {
            faults.push("node: a name that begins with server: is a peer's".to_owned());
        }
        for (name, path) in [
            ("certificate", Some(&server.certificate)),
            ("key", Some(&server.key)),
            ("client_ca", Some(&server.client_ca)),
            ("crl", server.crl.as_ref()),
            ("drive_ca", server.drive_ca.as_ref()),
        ] {
            if let Some(path) = path.filter(|path| !path.is_file()) {
                faults.push(format!(
                    "server.{name}: there is no file {}; ekm tls init and ekm tls issue make one",
                    path.display()
                ));
            }
        }
        for (name, value, range) in [
            ("handshake_seconds", server.handshake_seconds, 1..=300),
            ("request_seconds", server.request_seconds, 1..=300),
            ("stop_seconds", server.stop_seconds, 1..=300),
        ] {
            if !range.contains(&value) {
                faults.push(format!("server.{name}: {value} is not 1 to 300"));
            }
        }
        for (name, value) in [
            ("max_connections", server.max_connections),
            ("max_connections_per_peer", server.max_connections_per_peer),
            ("max_waiting", server.max_waiting),
            ("max_waiting_per_peer", server.max_waiting_per_peer),
        ] {
            if !(1..=100_000).contains(&value) {
                faults.push(format!("server.{name}: {value} is not 1 to 100000"));
            }
        }
        // Most bytes of a Unix socket's name (unix(7)), its final zero not counted.
        if self.socket().as_os_str().len() > 107 {
            faults.push(format!(
                "state: the operators' socket {} is longer than the 107 bytes that its name may have; choose a shorter directory",
                self.socket().display()
            ));
        }
        if tokens.is_empty() && keystores.is_empty() {
            faults.push("tokens: at least one [[tokens]] is needed".to_owned());
        }
        let named: Vec<(&str, &str, u32)> = tokens
            .iter()
            .map(|token| ("tokens", token.name.as_str(), token.weight))
            .chain(
                keystores
                    .iter()
                    .map(|keystore| ("keystores", keystore.name.as_str(), keystore.weight)),
            )
            .collect();
        for (index, (kind, name, weight)) in named.iter().enumerate() {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
                faults.push(format!(
                    "{kind}: {name:?} is no name; use letters, digits, - and _"
                ));
            }
            if named.iter().take(index).any(|(_, other, _)| other == name) {
                faults.push(format!("{kind}: the name {name} is given twice"));
            }
            if !(1..=1000).contains(weight) {
                faults.push(format!("{kind} {name}: weight {weight} is not 1 to 1000"));
            }
        }
        faults.extend(keystores.iter().flat_map(KeystoreConfig::faults));
        faults.extend(sync.faults());
        faults.extend(database.iter().flat_map(DatabaseConfig::faults));
        faults.extend(
            fleet
                .iter()
                .flat_map(|fleet| fleet.faults(database.is_some())),
        );
        for token in tokens {
            let name = &token.name;
            if token.serials.iter().any(String::is_empty) {
                faults.push(format!("tokens {name}: a serial is empty"));
            }
            if !token.serials.is_empty() && token.uri.has_serial() {
                faults.push(format!(
                    "tokens {name}: the URI names a serial and serials names others; leave one of them out"
                ));
            }
            if let Some(fault) = token.pin.fault() {
                faults.push(format!("tokens {name}: pin: {fault}"));
            }
            match HsmProfile::load(&token.profile) {
                Err(error) => faults.push(format!("tokens {name}: {error}")),
                Ok(profile) => {
                    if let Err(error) = profile.serves() {
                        faults.push(format!("tokens {name}: {error}"));
                    }
                    if profile.wrap_algorithm().is_v15()
                        && self.policy.pkcs1_v15_eedks == Pkcs1V15Eedks::Refuse
                    {
                        let refused = TokenConfigError::Pkcs1V15 {
                            token: name.clone(),
                            profile: profile.name.clone(),
                        };
                        faults.push(refused.to_string());
                    }
                    if profile.wants_directory() && token.directory.is_none() {
                        faults.push(format!(
                            "tokens {name}: profile {} needs directory = \"…\"",
                            profile.name
                        ));
                    }
                }
            }
        }
        faults
    }

    /// What is wrong with the files of tokens and keystores, and with those that PINs and passwords
    /// come from, one sentence each. A server starts all the same, and such a token is ready once
    /// its file is put right.
    #[must_use]
    pub fn file_faults(&self) -> Vec<String> {
        let keystores = self.keystores.iter().filter(|one| !one.file.is_file());
        let gone = keystores.map(|keystore| {
            format!(
                "keystores {}: there is no file {}",
                keystore.name,
                keystore.file.display()
            )
        });
        let tokens = self.tokens.iter().filter_map(|token| {
            let mut profile = HsmProfile::load(&token.profile).ok()?;
            profile.settle(token.directory.as_deref()?);
            let reason = profile.there().err()?;
            Some(format!("tokens {}: {reason}", token.name))
        });
        gone.chain(tokens).chain(self.pin_file_faults()).collect()
    }

    /// Which of the private keys are open to everybody, one sentence each. They are used all the same.
    #[must_use]
    pub fn exposed_keys(&self) -> Vec<String> {
        let authority = self.server.client_ca.with_file_name("ca.key");
        let syslog = self.records.syslog.iter();
        let syslog = syslog.filter_map(|to| to.key.as_ref());
        let own = [&self.server.key, &authority];
        let keys = own.into_iter().chain(syslog);
        keys.filter_map(|path| exposed(path)).collect()
    }

    fn pin_file_faults(&self) -> Vec<String> {
        let tokens = self.tokens.iter().filter_map(|token| {
            let error = file_fault(&token.name, &token.pin)?;
            Some(format!("{}: {error}", token.name))
        });
        let keystores = self.keystores.iter().flat_map(|keystore| {
            std::iter::once(&keystore.password)
                .chain(&keystore.key_password)
                .filter_map(|source| {
                    let error = file_fault(&keystore.name, source)?;
                    Some(format!("{}: {}", keystore.name, error.of_password()))
                })
        });
        tokens.chain(keystores).collect()
    }
}

/// That it is open to everybody. A group may be there for the server's own user.
fn exposed(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o007 != 0).then(|| {
        format!(
            "the private key {0} is open to everybody (mode {mode:03o}); run: chmod 600 {0}",
            path.display()
        )
    })
}

/// What is wrong with the file of a source that is one.
fn file_fault(name: &str, source: &PinSource) -> Option<PinError> {
    matches!(source, PinSource::File(_))
        .then(|| source.read(name).err())
        .flatten()
}
