//! The seven kinds of keystore that EKM 2.1 knows, and what can become of their keys.

use serde::Serialize;

/// What can become of the keys of a keystore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// They are in an HSM that `ekm` can drive: `ekm kek adopt`.
    Stays,
    /// The file is read as it is: `ekm kek import`.
    Moves,
    /// After an export by the system's own means, where that lets the private keys go.
    Export,
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Stays => "in place",
            Self::Moves => "moves",
            Self::Export => "after export",
        })
    }
}

/// A kind of keystore.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StoreKind {
    /// Its names in `config.keystore.type`; the second is the older one.
    pub names: &'static [&'static str],
    /// Where its private keys are.
    pub place: &'static str,
    /// What can become of them.
    pub fate: Fate,
    /// How.
    pub how: &'static str,
    /// What cannot be done, and why.
    pub not: &'static str,
}

/// The seven kinds, as EKM's manual lists them.
pub const STORES: &[StoreKind] = &[
    StoreKind {
        names: &["PKCS11IMPLKS"],
        place: "in an HSM, behind PKCS#11",
        fate: Fate::Stays,
        how: "name the HSM under [[tokens]], then ekm kek adopt says of each key whether it can serve as it is",
        not: "a key that the HSM lets nobody unwrap or decrypt with cannot serve; adopt says which attribute is in the way",
    },
    StoreKind {
        names: &["JCECCAKS", "JCE4758KS"],
        place: "in ICSF's PKDS (or, as tokens under the coprocessor's master key, in the file)",
        fate: Fate::Export,
        how: "only a key that was made outside and has a copy there: import that copy (PKCS#12, ekm kek import)",
        not: "keys that were made in the coprocessor never leave it, and no PKCS#11 token shows the PKDS; keep EKM for their cartridges",
    },
    StoreKind {
        names: &["JCECCARACFKS", "JCE4758RACFKS"],
        place: "certificates in a RACF ring, private keys in ICSF's PKDS",
        fate: Fate::Export,
        how: "only where RACF keeps the private key itself: RACDCERT EXPORT … FORMAT(PKCS12DER), then ekm kek import",
        not: "private keys in the PKDS (RACDCERT LIST shows ICSF or PCICC) are not exported, and no PKCS#11 token shows the PKDS",
    },
    StoreKind {
        names: &["JCEKS"],
        place: "in the file, sealed under its password",
        fate: Fate::Moves,
        how: "ekm kek import reads the file as it is; or it serves in place, as [[keystores]] of ekm.toml, in custody host",
        not: "secret keys in it are for LTO drives and are not served",
    },
    StoreKind {
        names: &["JCERACFKS"],
        place: "in RACF's database",
        fate: Fate::Export,
        how: "RACDCERT EXPORT … FORMAT(PKCS12DER), then ekm kek import",
        not: "a certificate without its private key in RACF moves as a partner's public half only",
    },
    StoreKind {
        names: &["IBMi5OSKeyStore"],
        place: "in a certificate store of Digital Certificate Manager",
        fate: Fate::Export,
        how: "DCM: Manage Certificates, Export, to a file, PKCS#12; then ekm kek import",
        not: "keys that DCM keeps in a cryptographic coprocessor are not exported",
    },
    StoreKind {
        names: &["PKCS12", "JKS"],
        place: "in the file, sealed under its password",
        fate: Fate::Moves,
        how: "ekm kek import reads the file as it is; or it serves in place, as [[keystores]] of ekm.toml, in custody host",
        not: "-",
    },
];

/// The kind that a `config.keystore.type` names.
#[must_use]
pub fn kind(name: &str) -> Option<&'static StoreKind> {
    STORES.iter().find(|kind| {
        kind.names
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_manual_has_a_row() {
        for (name, fate) in [
            ("jceks", Fate::Moves),
            ("PKCS11IMPLKS", Fate::Stays),
            ("JCERACFKS", Fate::Export),
            ("JCE4758RACFKS", Fate::Export),
            ("JCECCARACFKS", Fate::Export),
            ("JCE4758KS", Fate::Export),
            ("JCECCAKS", Fate::Export),
            ("IBMi5OSKeyStore", Fate::Export),
        ] {
            assert_eq!(kind(name).map(|kind| kind.fate), Some(fate), "{name}");
        }
        assert!(kind("BKS").is_none());
    }
}
