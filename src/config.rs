//! `ekm.toml`: what a server serves, where it keeps things, what it allows.
//!
//! Relative paths are relative to the file. Unknown keys are refused, and a
//! check names every fault at once with its key.

mod cautions;
mod faults;
mod fleet;
mod keystore;
mod operators;
mod records;
mod token;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::alarms::AlarmsConfig;
use crate::bridge::message::Hello;
use crate::bridge::pin::PinSource;
use crate::bridge::profile::HsmProfile;
use crate::keystore::Tokens;
use crate::policy::{Pkcs1V15Eedks, PolicyConfig};
use crate::service::{Bounds, Gates};
use crate::store::DatabaseConfig;
use crate::sync::SyncConfig;

pub use fleet::FleetConfig;
pub use keystore::KeystoreConfig;
pub use operators::{ApprovalConfig, OperatorsConfig, PersonConfig};
pub use records::{RecordsConfig, SyslogConfig};
pub use token::{TokenConfig, TokenConfigError};

/// The configuration that `ekm config example` prints.
pub const EXAMPLE: &str = include_str!("config/example.toml");

/// What only a host's file has.
const HOST_KEYS: &[&str] = &[
    "path",
    "socket",
    "tls",
    "key_servers",
    "data_classes",
    "volume_ranges",
    "drives",
    "in_band",
];

/// Longest configuration file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// `ekm.toml`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this server in its records.
    #[serde(default = "default_node")]
    pub node: String,
    /// Directory of the state database, the operators' socket and the PIN ledgers.
    pub state: PathBuf,
    /// The PostgreSQL database that this server shares with others, in the place of SQLite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseConfig>,
    /// What this server expects of those that share the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetConfig>,
    /// Directory of the audit records.
    pub audit: PathBuf,
    /// The door for drives and proxies.
    pub server: ServerConfig,
    /// The door for Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
    /// Who operators are, and how they come.
    #[serde(default, skip_serializing_if = "nobody_named")]
    pub operators: OperatorsConfig,
    /// The tokens.
    #[serde(default)]
    pub tokens: Vec<TokenConfig>,
    /// How audit records are sealed, kept and sent.
    #[serde(default)]
    pub records: RecordsConfig,
    /// The software keystores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keystores: Vec<KeystoreConfig>,
    /// Servers beside this one that share no database with it.
    #[serde(default, skip_serializing_if = "SyncConfig::is_none")]
    pub sync: SyncConfig,
    /// What is allowed.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// What is run when an alarm is raised, and when it is over.
    #[serde(default, skip_serializing_if = "AlarmsConfig::is_none")]
    pub alarms: AlarmsConfig,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port; 3801 is EKM's own.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// This server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The CA of drives, proxies and operators, PEM.
    pub client_ca: PathBuf,
    /// Its revocation list, PEM.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// The CA whose certificates vouch for drives' session keys, PEM.
    #[serde(default)]
    pub drive_ca: Option<PathBuf>,
    /// Connections at once.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// Connections of one peer at once; before the handshake, of one address.
    #[serde(default = "default_connections_per_peer")]
    pub max_connections_per_peer: usize,
    /// Requests that wait for a token at once.
    #[serde(default = "default_waiting")]
    pub max_waiting: usize,
    /// Of these, requests of one peer.
    #[serde(default = "default_waiting_per_peer")]
    pub max_waiting_per_peer: usize,
    /// Seconds for a TLS handshake, for the headers of a request, and for its body.
    #[serde(default = "default_handshake")]
    pub handshake_seconds: u64,
    /// Seconds for a whole request, its body and the token's work included.
    #[serde(default = "default_request")]
    pub request_seconds: u64,
    /// Seconds that a stop waits for requests in flight.
    #[serde(default = "default_stop")]
    pub stop_seconds: u64,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address and port of `GET /metrics`, plain HTTP.
    #[serde(default = "default_metrics")]
    pub listen: SocketAddr,
}

fn nobody_named(operators: &OperatorsConfig) -> bool {
    *operators == OperatorsConfig::default()
}

fn default_node() -> String {
    "ekm".to_owned()
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 3801))
}

// A thousand drives that mount in the same second fit, also behind one proxy
// that has a connection for each.
const fn default_connections() -> usize {
    4096
}

const fn default_connections_per_peer() -> usize {
    2048
}

const fn default_waiting() -> usize {
    4096
}

const fn default_waiting_per_peer() -> usize {
    2048
}

fn default_metrics() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9464))
}

const fn default_handshake() -> u64 {
    10
}

const fn default_request() -> u64 {
    60
}

const fn default_stop() -> u64 {
    30
}

impl ServerConfig {
    /// Where the door's certificates are.
    #[must_use]
    pub fn tls_paths(&self) -> crate::tls::Paths {
        crate::tls::Paths {
            cert: self.certificate.clone(),
            key: self.key.clone(),
            client_ca: self.client_ca.clone(),
            crl: self.crl.clone(),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not TOML of this shape.
    Syntax {
        /// The file.
        path: PathBuf,
        /// The cause, with the line.
        source: Box<toml::de::Error>,
    },
    /// Values are wrong; all of them.
    Faults {
        /// The file.
        path: PathBuf,
        /// One sentence each.
        faults: Vec<String>,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => write!(
                f,
                "cannot read the configuration {}: {source}; ekm config example prints one",
                path.display()
            ),
            Self::Syntax { path, source } => {
                let hint = "is it a host's file? ekm tape and ekm proxy read that, and ekm config check --host FILE checks it";
                let told = syntax(source, "node", HOST_KEYS, hint);
                write!(f, "{}: {told}", path.display())
            }
            Self::Faults { path, faults } => {
                write!(f, "{}:", path.display())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong with TOML whose own first key is `first`, and the hint where it begins with a key
/// of the other kind of file.
pub(crate) fn syntax(error: &toml::de::Error, first: &str, other: &[&str], hint: &str) -> String {
    let top = format!("expected one of `{first}`");
    let foreign = |key: &&str| {
        error
            .message()
            .starts_with(&format!("unknown field `{key}`, {top}"))
    };
    if other.iter().any(foreign) {
        format!("{}; {hint}", error.to_string().trim_end())
    } else {
        error.to_string()
    }
}

impl Config {
    /// Reads and checks a configuration; paths become absolute.
    ///
    /// # Errors
    /// The file is unreadable, or its faults, all of them.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::draft(path)?;
        let faults = config.faults();
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Faults {
                path: path.to_owned(),
                faults,
            })
        }
    }

    /// Reads a configuration as [`load`](Self::load) does, and does not look at what it names:
    /// certificates and tokens may be missing yet.
    ///
    /// # Errors
    /// The file is unreadable, or not of this shape.
    pub fn draft(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let text = crate::files::read_limited(path, MAX_FILE).map_err(read)?;
        let text = String::from_utf8(text)
            .map_err(|error| read(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
        Self::parse(&text, path)
    }

    /// Reads the text of a configuration as if it stood in that file.
    ///
    /// # Errors
    /// It is not of this shape.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let here = std::path::absolute(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        config.settle(here.parent().unwrap_or(Path::new("/")));
        Ok(config)
    }

    fn settle(&mut self, folder: &Path) {
        let Self {
            node: _,
            state,
            database,
            fleet: _,
            audit,
            server,
            metrics: _,
            operators,
            tokens,
            records,
            keystores,
            sync,
            policy: _,
            alarms: _,
        } = self;
        sync.settle(folder);
        if let Some(socket) = &mut operators.socket {
            *socket = folder.join(&*socket);
        }
        records.settle(folder);
        let ServerConfig {
            listen: _,
            certificate,
            key,
            client_ca,
            crl,
            drive_ca,
            max_connections: _,
            max_connections_per_peer: _,
            max_waiting: _,
            max_waiting_per_peer: _,
            handshake_seconds: _,
            request_seconds: _,
            stop_seconds: _,
        } = server;
        let own = [state, audit, certificate, key, client_ca];
        let optional = crl.iter_mut().chain(drive_ca.iter_mut());
        for path in own.into_iter().chain(optional) {
            *path = folder.join(&*path);
        }
        for keystore in keystores {
            keystore.settle(folder);
        }
        if let Some(DatabaseConfig {
            password: Some(PinSource::File(path)),
            ..
        }) = database
        {
            *path = folder.join(&*path);
        }
        for token in tokens {
            if let Some(directory) = &mut token.directory {
                *directory = folder.join(&*directory);
            }
            if let PinSource::File(path) = &mut token.pin {
                *path = folder.join(&*path);
            }
            if Path::new(&token.profile).extension().is_some() {
                token.profile = folder.join(&token.profile).display().to_string();
            }
        }
    }

    /// The tokens whose profile wraps EEDKs by RSAES-PKCS1-v1_5.
    pub fn v15_tokens(&self) -> impl Iterator<Item = &str> {
        self.tokens
            .iter()
            .filter(|token| {
                HsmProfile::load(&token.profile)
                    .is_ok_and(|profile| profile.wrap_algorithm().is_v15())
            })
            .map(|token| token.name.as_str())
    }

    /// That the policy allows what a token's profile needs.
    ///
    /// # Errors
    /// [`TokenConfigError::Pkcs1V15`]
    pub fn allows(&self, token: &Hello) -> Result<(), TokenConfigError> {
        if token.profile.wrap_algorithm().is_v15()
            && self.policy.pkcs1_v15_eedks == Pkcs1V15Eedks::Refuse
        {
            return Err(TokenConfigError::Pkcs1V15 {
                token: token.name.clone(),
                profile: token.profile.name.clone(),
            });
        }
        Ok(())
    }

    /// The environment variables that PINs come in.
    pub fn pin_variables(&self) -> impl Iterator<Item = &str> {
        let tokens = self.tokens.iter().map(|token| &token.pin);
        let keystores = self.keystores.iter().map(|keystore| &keystore.password);
        tokens.chain(keystores).filter_map(|source| match source {
            PinSource::Env(name) => Some(name.as_str()),
            PinSource::File(_)
            | PinSource::Credential(_)
            | PinSource::Command(_)
            | PinSource::Operator
            | PinSource::Pad => None,
        })
    }

    /// The operators' socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.operators
            .socket
            .clone()
            .unwrap_or_else(|| self.state.join("ekm.sock"))
    }

    /// Gates before the tokens.
    pub(crate) fn gates(&self, tokens: &Tokens) -> Gates {
        let bounds = Bounds {
            total: self.server.max_waiting,
            per_peer: self.server.max_waiting_per_peer,
        };
        let bridges = tokens.bridges().iter();
        let workers = bridges.map(|bridge| (bridge.name().to_owned(), bridge.capacity()));
        Gates::new(workers, bounds, self.request_time())
    }

    /// The longest that a request may take.
    #[must_use]
    pub const fn request_time(&self) -> Duration {
        Duration::from_secs(self.server.request_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::HostConfig;

    #[test]
    fn the_example_has_the_shape_of_a_configuration() {
        toml::from_str::<Config>(EXAMPLE).unwrap();
    }

    #[test]
    fn a_private_key_that_others_can_read_is_named() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse(EXAMPLE, &dir.path().join("ekm.toml")).unwrap();
        let key = &config.server.key;
        std::fs::create_dir_all(key.parent().unwrap()).unwrap();
        std::fs::write(key, "").unwrap();
        let mode = |mode| {
            std::fs::set_permissions(key, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o640);
        assert!(config.exposed_keys().is_empty());
        mode(0o644);
        let exposed = config.exposed_keys();
        assert_eq!(exposed.len(), 1, "{exposed:?}");
        assert!(exposed[0].contains("mode 644"), "{exposed:?}");
        let remedy = format!("chmod 600 {}", key.display());
        assert!(exposed[0].ends_with(&remedy), "{exposed:?}");
    }

    #[test]
    fn the_file_of_a_host_is_told_from_that_of_a_server() {
        let told = |text: &str| {
            let parsed = Config::parse(text, Path::new("host.toml"));
            parsed.unwrap_err().to_string()
        };
        let hosts = told("[tls]\nkey = \"k\"\n");
        assert!(hosts.contains("config check --host"), "{hosts}");
        assert!(!told("stats = 1\n").contains("--host"));
        // The list is what the host's file has and this one has not.
        for key in HOST_KEYS {
            let text = format!("{key} = 1\n");
            assert!(told(&text).contains("config check --host"), "{key}");
            let host = HostConfig::parse(Path::new("host.toml"), &text).unwrap_err();
            assert!(!host.to_string().contains("unknown field"), "{host}");
        }
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ekm.toml");
        std::fs::write(
            &path,
            EXAMPLE.replace("request_seconds = 60", "request_seconds = 6000"),
        )
        .unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("request_seconds"), "{error}");
        assert!(error.contains("server.certificate"), "{error}");
    }

    #[test]
    fn a_product_that_cannot_serve_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ekm.toml");
        let unsupported = include_str!("../hsm-profiles/softhsm2.toml").replacen(
            "[module]",
            "unsupported = \"it has no RSA\"\n\n[module]",
            1,
        );
        std::fs::write(dir.path().join("none.toml"), unsupported).unwrap();
        let none = EXAMPLE.replace("profile = \"embedded\"", "profile = \"none.toml\"");
        assert_ne!(none, EXAMPLE);
        std::fs::write(&path, none).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("tokens main: profile softhsm2: ekm cannot use this product"),
            "{error}"
        );
        assert!(error.contains("it has no RSA"), "{error}");
    }

    #[test]
    fn a_token_without_oaep_is_used_only_where_the_policy_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ekm.toml");
        let icsf = EXAMPLE.replace("profile = \"embedded\"", "profile = \"opencryptoki-icsf\"");
        assert_ne!(icsf, EXAMPLE);
        std::fs::write(&path, &icsf).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("token main is not used"), "{error}");
        assert!(
            error.contains("set policy.pkcs1_v15_eedks = \"allow\""),
            "{error}"
        );
        let allowed = icsf.replace(
            "pkcs1_v15_eedks = \"refuse\"",
            "pkcs1_v15_eedks = \"allow\"",
        );
        assert_ne!(allowed, icsf);
        std::fs::write(&path, allowed).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(!error.contains("is not used"), "{error}");
        let draft = Config::draft(&path).unwrap();
        assert_eq!(draft.v15_tokens().collect::<Vec<_>>(), ["main"]);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ekm.toml");
        std::fs::write(&path, format!("stat = \"x\"\n{EXAMPLE}")).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 1") && error.contains("stat"),
            "{error}"
        );
    }
}
