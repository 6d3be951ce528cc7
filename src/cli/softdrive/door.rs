//! How the drive reaches its key servers: it has a list of its own, as a control unit has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::proxy::{KeyServers, KeyService, ServerAddress, Times};
use crate::tls::{ClientPaths, ClientTls, check_client_files};

/// How to reach the key servers.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Door {
    /// The key server, host:port; repeated for further ones, which are asked where those before it
    /// cannot answer.
    #[arg(
        long,
        visible_alias = "servers",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    #[serde(default, deserialize_with = "one_or_more")]
    server: Vec<ServerAddress>,
    /// The CA of the servers' certificates, PEM.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The drive's TLS certificate, PEM.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Waits so many seconds while no key server answers, at most 240; by default it does not wait.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=240))]
    #[serde(skip)]
    wait: Option<u64>,
}

/// A list of servers, or one alone, as it was written when there was only one.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<ServerAddress>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        One(ServerAddress),
        More(Vec<ServerAddress>),
    }
    Ok(match Given::deserialize(from)? {
        Given::One(server) => vec![server],
        Given::More(servers) => servers,
    })
}

impl Door {
    fn file(directory: &Path) -> PathBuf {
        directory.join("server.toml")
    }

    /// Looks at what is given, and connects to nobody.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if !self.server.is_empty() {
            servers(self.server.clone())?;
        }
        Ok(check_client_files(
            self.ca.as_deref(),
            self.tls_cert.as_deref(),
            self.tls_key.as_deref(),
        )?)
    }

    /// What is given, in a line.
    pub(super) fn noted(&self) -> String {
        let servers: Vec<String> = self.server.iter().map(ToString::to_string).collect();
        let missing: Vec<&str> = [
            ("--server", self.server.is_empty()),
            ("--ca", self.ca.is_none()),
            ("--tls-cert", self.tls_cert.is_none()),
            ("--tls-key", self.tls_key.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        let mut said = if servers.is_empty() {
            "no key server".to_owned()
        } else {
            servers.join(", ")
        };
        if let Some(certificate) = &self.tls_cert {
            said.push_str(&format!(", with {}", certificate.display()));
        }
        if !missing.is_empty() {
            said.push_str(&format!(
                "; commands have yet to be given {}",
                missing.join(", ")
            ));
        }
        said
    }

    /// Writes it into the drive's directory.
    pub(super) fn save(&self, directory: &Path) -> anyhow::Result<()> {
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
        let saved = Self {
            server: self.server.clone(),
            ca: absolute(&self.ca)?,
            tls_cert: absolute(&self.tls_cert)?,
            tls_key: absolute(&self.tls_key)?,
            wait: None,
        };
        crate::files::write_private(&Self::file(directory), toml::to_string(&saved)?.as_bytes())?;
        Ok(())
    }

    /// The key servers by what is given here, else by what the drive's directory says.
    pub(super) async fn keys(&self, directory: &Path) -> anyhow::Result<KeyService> {
        let saved: Self = match std::fs::read_to_string(Self::file(directory)) {
            Ok(text) => toml::from_str(&text)
                .with_context(|| format!("{} is damaged", Self::file(directory).display()))?,
            Err(_) => Self::default(),
        };
        let once = format!(
            "or say it once with: ekm softdrive connect {}",
            directory.display()
        );
        let path = |own: &Option<PathBuf>, saved: Option<PathBuf>, name: &str| {
            own.clone()
                .or(saved)
                .with_context(|| format!("give --{name}, {once}"))
        };
        let list = if self.server.is_empty() {
            saved.server
        } else {
            self.server.clone()
        };
        if list.is_empty() {
            anyhow::bail!("give --server HOST:PORT, {once}");
        }
        let tls = ClientTls::load(ClientPaths {
            ca: path(&self.ca, saved.ca, "ca")?,
            certificate: path(&self.tls_cert, saved.tls_cert, "tls-cert")?,
            key: path(&self.tls_key, saved.tls_key, "tls-key")?,
        })?;
        let mut times = Times::default();
        match self.wait {
            Some(seconds) => times.total = Duration::from_secs(seconds),
            None => times.wait = false,
        }
        Ok(KeyService::start(servers(list)?, tls, times).await)
    }
}

fn servers(list: Vec<ServerAddress>) -> anyhow::Result<KeyServers> {
    Ok(KeyServers::of(list.into_iter().map(Into::into).collect())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_alone_is_read_as_it_was_written_before_there_were_lists() {
        for (text, wanted) in [
            ("server = \"a:1\"", vec!["a:1"]),
            ("server = [\"a:1\", \"b\"]", vec!["a:1", "b:3801"]),
            ("", vec![]),
        ] {
            let door: Door = toml::from_str(text).unwrap();
            let read: Vec<String> = door.server.iter().map(ToString::to_string).collect();
            assert_eq!(read, wanted, "{text}");
        }
        assert!(toml::from_str::<Door>("server = \"a b\"").is_err());
        let port: Door = toml::from_str("server = \"localhost\"").unwrap();
        assert_eq!(
            port.noted(),
            "localhost:3801; commands have yet to be given --ca, --tls-cert, --tls-key"
        );
        let twice = ["a:1", "A:1"].map(|server| server.parse().unwrap());
        assert!(servers(twice.to_vec()).is_err());
    }
}
