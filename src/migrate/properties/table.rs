//! The properties that are known of EKM 2.1.

/// What becomes of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// This key of `ekm.toml`.
    Config(&'static str),
    /// It names something that is read and moved.
    Moved(&'static str),
    /// Nothing.
    Nothing,
}

impl std::fmt::Display for Becomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Config(key) => key,
            Self::Moved(what) => what,
            Self::Nothing => "-",
        })
    }
}

/// A property that EKM 2.1 knows.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Its name; one that ends in `*` stands for all that begin so.
    pub name: &'static str,
    /// What becomes of it.
    pub becomes: Becomes,
    /// How, or why not; one sentence.
    pub why: &'static str,
}

const fn row(name: &'static str, becomes: Becomes, why: &'static str) -> Property {
    Property { name, becomes, why }
}

use Becomes::{Config, Moved, Nothing};

const OWN_TLS: &str = "ekm has certificates of its own, PEM files under [server] (ekm tls init)";
const LTO: &str = "symmetric keys of LTO drives are not served; ekm makes a data key per cartridge";
const CHAIN: &str = "ekm's audit log is a chain of its own, without settings but its directory";
const NEEDLESS: &str = "the history is in the state's database and is never cut off";

/// Every property that is known of EKM 2.1.
pub const PROPERTIES: &[Property] = &[
    row(
        "TransportListener.tcp.port",
        Config("server.listen"),
        "the same port, but for TLS: EKM's own protocol is not public and not spoken; while EKM runs on this host, choose another",
    ),
    row(
        "TransportListener.tcp.timeout",
        Nothing,
        "an idle connection is kept until its place is needed; a request's time is server.request_seconds",
    ),
    row(
        "TransportListener.ssl.port",
        Nothing,
        "ekm has one door, and it is TLS; EKM used this one for its command line and for sync",
    ),
    row(
        "TransportListener.ssl.timeout",
        Nothing,
        "as TransportListener.tcp.timeout",
    ),
    row(
        "TransportListener.ssl.protocols",
        Nothing,
        "always TLS 1.2 or 1.3",
    ),
    row(
        "TransportListener.ssl.ciphersuites",
        Nothing,
        "those of TLS 1.3, and the ephemeral AEAD ones of TLS 1.2",
    ),
    row(
        "TransportListener.ssl.clientauthentication",
        Nothing,
        "always 2: every peer shows a certificate",
    ),
    row("TransportListener.ssl.keystore.*", Nothing, OWN_TLS),
    row("TransportListener.ssl.truststore.*", Nothing, OWN_TLS),
    row("Admin.ssl.keystore.*", Nothing, OWN_TLS),
    row("Admin.ssl.truststore.*", Nothing, OWN_TLS),
    row(
        "Admin.ssl.protocol",
        Nothing,
        "operators come over the server's Unix socket, or by TLS: operators.listen",
    ),
    row(
        "Admin.ssl.protocols",
        Nothing,
        "operators come over the server's Unix socket, or by TLS: operators.listen",
    ),
    row(
        "Admin.ssl.ciphersuites",
        Nothing,
        "operators come over the server's Unix socket, or by TLS: operators.listen",
    ),
    row(
        "Admin.ssl.timeout",
        Nothing,
        "operators come over the server's Unix socket, or by TLS: operators.listen",
    ),
    row(
        "config.keystore.file",
        Moved("KEKs"),
        "its RSA key pairs go into the token: ekm kek import, or ekm kek adopt where they are in an HSM",
    ),
    row(
        "config.keystore.type",
        Moved("KEKs"),
        "says which way its keys can go",
    ),
    row(
        "config.keystore.provider",
        Moved("KEKs"),
        "says which way its keys can go",
    ),
    row(
        "config.keystore.password",
        Moved("KEKs"),
        "used to look into the keystore, and never written down",
    ),
    row(
        "config.keystore.password.obfuscated",
        Nothing,
        "how EKM obfuscates it is not public: give the password with --password-file",
    ),
    row(
        "config.drivetable.file.url",
        Moved("drives"),
        "EKM's own serialized file cannot be read: give the text of listdrives -verbose with --drive-table",
    ),
    row("config.keygroup.xml.file", Nothing, LTO),
    row(
        "drive.acceptUnknownDrives",
        Config("policy.accept_unknown_drives"),
        "true becomes pending, false becomes reject: an unknown drive is never accepted on its own word",
    ),
    row(
        "drive.default.alias1",
        Moved("default kek1"),
        "the default for drives and requests that name none: ekm kek default",
    ),
    row(
        "drive.default.alias2",
        Moved("default kek2"),
        "the default for drives and requests that name none: ekm kek default",
    ),
    row("symmetricKeySet", Nothing, LTO),
    row(
        "zOSCompatibility",
        Nothing,
        "chose 3DES for symmetric keys; data keys are AES-256 here",
    ),
    row("requireHardwareProtectionForSymmetricKeys", Nothing, LTO),
    row(
        "cert.valiDATE",
        Nothing,
        "a KEK is taken by its key, and its certificate's dates are shown",
    ),
    row(
        "fips",
        Nothing,
        "what is validated is the token: use one that is",
    ),
    row(
        "maximum.threads",
        Nothing,
        "workers are of the token's profile: session.workers; ekm slot bench says how many it sustains",
    ),
    row(
        "Server.authMechanism",
        Nothing,
        "an operator is a Unix user or a certificate: operators.people",
    ),
    row(
        "sync.ipaddress",
        Nothing,
        "[[sync.from]] address, written by hand beside the name that the peer's certificate has; ekm sync (docs/sync.md)",
    ),
    row(
        "sync.action",
        Nothing,
        "[[sync.from]] mode, merge or rewrite, where a peer is configured (docs/sync.md)",
    ),
    row(
        "sync.type",
        Nothing,
        "[[sync.from]] what, drivetab, config, history or all, where a peer is configured (docs/sync.md)",
    ),
    row(
        "sync.timeinhours",
        Nothing,
        "[[sync.from]] every_seconds, where a peer is configured (docs/sync.md)",
    ),
    row(
        "debug",
        Nothing,
        "RUST_LOG says what is logged, to standard error",
    ),
    row(
        "debug.output",
        Nothing,
        "the log goes to standard error; EKM_LOG_FORMAT=json makes it JSON",
    ),
    row(
        "debug.output.file",
        Nothing,
        "the log goes to standard error; EKM_LOG_FORMAT=json makes it JSON",
    ),
    row(
        "Audit.event.types",
        Nothing,
        "everything is recorded, always",
    ),
    row(
        "Audit.event.outcome",
        Nothing,
        "everything is recorded, always",
    ),
    row(
        "Audit.eventQueue.max",
        Nothing,
        "no key leaves before its record is on the disk",
    ),
    row(
        "Audit.handler.file.directory",
        Nothing,
        "the records are of another form; keep EKM's, and give ekm a directory of its own (audit)",
    ),
    row("Audit.handler.file.name", Nothing, CHAIN),
    row("Audit.handler.file.size", Nothing, CHAIN),
    row("Audit.handler.file.multithreads", Nothing, CHAIN),
    row("Audit.handler.file.threadlifespan", Nothing, CHAIN),
    row(
        "Audit.metadata.file.name",
        Moved("history"),
        "its records are kept beside the state, so that it is known which cartridges EKM keyed",
    ),
    row("Audit.metadata.file.size", Nothing, NEEDLESS),
    row("Audit.metadata.file.cachecount", Nothing, NEEDLESS),
    row(
        "backup.keycert.before.serving",
        Nothing,
        "a property of GKLM: set policy.backup_before_serving",
    ),
    row("stopRoundRobinKeyGrps", Nothing, LTO),
    row("KMIPListener.ssl.port", Nothing, "ekm does not speak KMIP"),
    row(
        "device.AutoPendingAutoDiscovery",
        Nothing,
        "a property of GKLM: set policy.accept_unknown_drives",
    ),
    row(
        "pkcs11.*",
        Nothing,
        "a property of TKLM and later: name the token under [[tokens]]",
    ),
];

/// The row of a property, by name without regard to case.
#[must_use]
pub fn known(name: &str) -> Option<&'static Property> {
    let name = name.to_ascii_lowercase();
    PROPERTIES.iter().find(|property| {
        let row = property.name.to_ascii_lowercase();
        match row.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => row == name,
        }
    })
}
