//! What is documented of drive models: which of the ways to a data key each of them has.
//!
//! The rows are code and documentation at once: `ekm assess --models` prints them. No real drive has
//! been tried with `ekm`; "yes" says that the way is documented, or was seen used, for that model.

use serde::Serialize;

/// Whether something is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum May {
    /// It is documented, or was seen.
    Yes,
    /// It is not.
    No,
    /// Nothing that is public says so, or what does contradicts itself.
    Unknown,
}

impl std::fmt::Display for May {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        })
    }
}

/// A model of drive.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Model {
    /// The name that `--model` takes.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// T10 key format 02h: the data key wrapped for the drive's public key.
    pub wrapped: May,
    /// T10 key format 00h: the data key in clear, custody `host`.
    pub plain: May,
    /// Where that is known from.
    pub source: &'static str,
}

/// What is true of every drive.
pub const LIBRARY: &str = "a library that manages the keys itself asks over its own port to the drive, which ekm has no part in; set the drive to application-managed encryption";

/// What is true of every drive.
pub const TRANSPARENT: &str = "the transparent path of IBM's drives, libraries and z/OS is IBM's own protocol, which is not public";

/// The models that something is known of.
pub const MODELS: &[Model] = &[
    Model {
        name: "ts1120",
        what: "IBM 3592-E05",
        wrapped: May::Unknown,
        plain: May::Unknown,
        source: "it knows application-managed encryption; which key formats its T10 pages take is not public: read page 0011h",
    },
    Model {
        name: "ts1130",
        what: "IBM 3592-E06",
        wrapped: May::Unknown,
        plain: May::Unknown,
        source: "as ts1120",
    },
    Model {
        name: "ts1140",
        what: "IBM 3592-E07",
        wrapped: May::Unknown,
        plain: May::Unknown,
        source: "as ts1120",
    },
    Model {
        name: "ibm-lto4",
        what: "IBM LTO-4, LTO-5, LTO-6",
        wrapped: May::No,
        plain: May::Yes,
        source: "IBM's LTO SCSI reference documents key format 00h only; open-source programs set it",
    },
    Model {
        name: "ibm-lto7",
        what: "IBM LTO-7 and later",
        wrapped: May::Unknown,
        plain: May::Yes,
        source: "IBM's reference has the page of the public key (0031h) and documents key format 00h only: read page 0011h",
    },
    Model {
        name: "hp-lto5",
        what: "HP LTO-5",
        wrapped: May::No,
        plain: May::Yes,
        source: "its SCSI manual lists no page of a public key (0031h)",
    },
    Model {
        name: "hp-lto6",
        what: "HP LTO-6",
        wrapped: May::Yes,
        plain: May::Yes,
        source: "a public program reads both formats from one such drive and sets keys wrapped by 02h",
    },
    Model {
        name: "quantum-lto4",
        what: "Quantum LTO-4",
        wrapped: May::Unknown,
        plain: May::Yes,
        source: "its SCSI manual says \"only 00h\" in its text and lists 02h in its table",
    },
    Model {
        name: "t10000",
        what: "Oracle StorageTek T10000",
        wrapped: May::No,
        plain: May::Unknown,
        source: "its manual lists format 00h only, and its algorithm is AES-CCM, for which ekm was not made",
    },
    Model {
        name: "softdrive",
        what: "ekm softdrive",
        wrapped: May::Yes,
        plain: May::Yes,
        source: "the drive in software, which the tests use",
    },
];

/// The model of a name.
#[must_use]
pub fn model(name: &str) -> Option<&'static Model> {
    let same = |model: &&Model| model.name.eq_ignore_ascii_case(name);
    MODELS.iter().find(same)
}
