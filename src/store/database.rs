//! Where a state is that several servers share.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr as _;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::StoreError;
use crate::bridge::pin::{Pin, PinSource};

/// `[database]`: a PostgreSQL database in the place of the SQLite file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=/PATH`; a Unix
    /// socket's directory as `?host=/PATH`. No password.
    pub url: String,
    /// Where the password comes from, where one is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PinSource>,
    /// Seconds that the database has to answer; for a commit four times as long.
    #[serde(default = "default_answer")]
    pub answer_seconds: u64,
    /// Seconds that the cached table serves while the database is out of reach.
    #[serde(default = "default_cache")]
    pub cache_seconds: u64,
    /// Which creates are served while the database is out of reach.
    #[serde(default)]
    pub outage_creates: OutageCreates,
}

/// Which creates are served while the database is out of reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutageCreates {
    /// None.
    Refuse,
    /// Those of drives that store the EEDKs on the cartridge, where they are read back.
    #[default]
    Stored,
}

const fn default_answer() -> u64 {
    3
}

const fn default_cache() -> u64 {
    24 * 3600
}

impl DatabaseConfig {
    /// The database of that URL; all else as it is where nothing is said.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password: None,
            answer_seconds: default_answer(),
            cache_seconds: default_cache(),
            outage_creates: OutageCreates::default(),
        }
    }

    /// How long the database has to answer.
    pub(crate) const fn answer(&self) -> Duration {
        Duration::from_secs(self.answer_seconds)
    }

    /// How long the cached table serves.
    pub(crate) const fn cache(&self) -> Duration {
        Duration::from_secs(self.cache_seconds)
    }

    /// What is wrong with it, one sentence each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let url = match self.url.parse::<AnyConnectOptions>() {
            Ok(options) => options.database_url,
            Err(_) => return vec!["database: url is no URL".to_owned()],
        };
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return vec!["database: url must begin with postgresql://".to_owned()];
        }
        if url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password") {
            return vec![
                "database: the password must not be in url; put it into a file and say password = { file = \"…\" }"
                    .to_owned(),
            ];
        }
        let options = match PgConnectOptions::from_str(&self.url) {
            Ok(options) => options,
            Err(error) => return vec![format!("database: url: {error}")],
        };
        let mut faults = Vec::new();
        for (name, value, most) in [
            ("answer_seconds", self.answer_seconds, 60),
            ("cache_seconds", self.cache_seconds, 30 * 24 * 3600),
        ] {
            if !(1..=most).contains(&value) {
                faults.push(format!("database: {name} = {value} is not 1 to {most}"));
            }
        }
        let host = options.get_host();
        let here = options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let verified = matches!(
            options.get_ssl_mode(),
            PgSslMode::VerifyFull | PgSslMode::VerifyCa
        );
        if !here && !verified {
            faults.push(format!(
                "database: {host} is another computer, and who can come between rules the drive table; say sslmode=verify-full and sslrootcert=/PATH in url"
            ));
        }
        if options.get_database().is_none() {
            faults.push("database: url names no database".to_owned());
        }
        if let Some(password) = &self.password {
            match password {
                // What a server is started with does not stay in its environment, and the password
                // is wanted for every new connection.
                PinSource::Operator | PinSource::Pad | PinSource::Env(_) => faults.push(
                    "database: password: a database's password comes from a file, a credential or a command"
                        .to_owned(),
                ),
                source => faults.extend(
                    source
                        .fault()
                        .map(|fault| format!("database: password: {fault}")),
                ),
            }
        }
        faults
    }

    /// The CA's certificate that the server's is verified by, where `url` names one.
    #[must_use]
    pub fn root_certificate(&self) -> Option<std::path::PathBuf> {
        let options: AnyConnectOptions = self.url.parse().ok()?;
        let (_, path) = options.database_url.query_pairs().find(|(name, _)| {
            matches!(name.as_ref(), "sslrootcert" | "ssl-root-cert" | "ssl-ca")
        })?;
        Some(path.into_owned().into())
    }

    /// How to connect, with the password.
    ///
    /// # Errors
    /// The URL is none, or the password cannot be had.
    pub(super) fn options(&self) -> Result<AnyConnectOptions, StoreError> {
        let fail = |why: String| StoreError::Unconfigured {
            name: self.to_string(),
            why,
        };
        let mut options: AnyConnectOptions = self
            .url
            .parse()
            .map_err(|_| fail("url is no URL".to_owned()))?;
        if let Some(source) = &self.password {
            let password = Pin::Source(source.clone())
                .read_secret("database")
                .map_err(|error| fail(error.of_password()))?;
            options
                .database_url
                .set_password(Some(password.expose_secret()))
                .map_err(|()| fail("url takes no password".to_owned()))?;
        }
        Ok(options)
    }
}

/// Server and database, without user and password.
impl fmt::Display for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PgConnectOptions::from_str(&self.url) {
            Ok(options) => {
                let place = options.get_socket().map_or_else(
                    || options.get_host().to_owned(),
                    |path| path.display().to_string(),
                );
                let database = options.get_database().unwrap_or_default();
                write!(f, "postgresql {place}:{} {database}", options.get_port())
            }
            Err(_) => f.write_str("postgresql"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(url: &str) -> Vec<String> {
        DatabaseConfig::at(url).faults()
    }

    #[test]
    fn a_database_elsewhere_wants_a_verified_connection() {
        assert!(faults("postgresql://ekm@127.0.0.1:5432/ekm").is_empty());
        assert!(faults("postgresql://ekm@localhost/ekm?host=%2Frun%2Fpostgresql").is_empty());
        assert!(faults("postgresql://ekm@db1/ekm?sslmode=verify-full").is_empty());
        let open = faults("postgresql://ekm@db1/ekm?sslmode=require");
        assert!(open[0].contains("db1 is another computer"), "{open:?}");
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        for url in [
            "postgresql://ekm:secret@127.0.0.1/ekm",
            "postgresql://ekm@127.0.0.1/ekm?password=secret",
        ] {
            let faults = faults(url);
            assert!(faults[0].contains("must not be in url"), "{faults:?}");
            assert!(!faults[0].contains("secret"));
        }
        assert!(faults("mysql://ekm@127.0.0.1/ekm")[0].contains("postgresql://"));
        assert!(faults("nonsense")[0].contains("no URL"));
    }
}
