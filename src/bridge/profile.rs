//! What differs from one PKCS#11 product to the next, as TOML.
//!
//! One file per product stands in `hsm-profiles/`; its README explains every
//! field. The profiles that ship are compiled in, so `profile = "softhsm2"`
//! works without any file beside the program; a path names a file of the site.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::faults::FaultRule;
use super::pkcs11::User;
use crate::key::{OaepHash, SedkForm, WrapAlgorithm};

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../hsm-profiles/", $name, ".toml")))),*]
    };
}

/// The profiles that are compiled in: name and text.
const SHIPPED: &[(&str, &str)] = shipped![
    "embedded",
    "softhsm2",
    "p11-kit-remote",
    "opencryptoki-soft",
    "opencryptoki-cca",
    "opencryptoki-ep11",
    "opencryptoki-icsf",
    "nss",
    "tpm2-pkcs11",
    "luna",
    "nshield",
    "utimaco",
    "aws-cloudhsm",
    "securosys",
    "fortanix",
    "marvell",
    "yubihsm2",
    "nethsm",
    "google-kms",
];

/// How to drive one product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HsmProfile {
    /// Name of the profile, as `profile = "…"` gives it.
    pub name: String,
    /// What product this is.
    pub description: String,
    /// Which version was checked, when and by what; or that it was not.
    pub verified: String,
    /// Why `ekm` cannot use the product. Its slots can be listed, and no more.
    // Never skipped: the bridge's messages carry no field names.
    #[serde(default)]
    pub unsupported: Option<String>,
    /// The library and its surroundings.
    pub module: ModuleProfile,
    /// Who logs in.
    #[serde(default)]
    pub login: LoginProfile,
    /// How EEDKs are wrapped.
    pub eedk: WrapAlgorithm,
    /// What the token can wrap for a drive.
    pub drive: DriveProfile,
    /// Attributes of data keys.
    pub data_key: DataKeyProfile,
    /// Attributes of new KEKs.
    pub kek: KekProfile,
    /// Sessions and times.
    pub session: SessionProfile,
    /// What this product means by a `CKR_` code, where it is something else
    /// than what the fault table says (`ekm token explain`).
    #[serde(default)]
    pub faults: Vec<FaultRule>,
}

/// The library and its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleProfile {
    /// Path of the PKCS#11 library, or `embedded`.
    pub library: String,
    /// Environment of the bridge process; `{directory}` stands for the token's directory.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// `pReserved` of `C_Initialize`; `{directory}` as above.
    #[serde(default)]
    pub reserved: Option<String>,
    /// The file or folder that every token of this product has; without it there is none.
    /// `{directory}` as above, and the directory itself where this is left out.
    #[serde(default)]
    pub keeps: Option<String>,
    /// Files to make in a new token's directory if they are not there: name to content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Folders to make in a new token's directory if they are not there.
    #[serde(default)]
    pub folders: Vec<String>,
}

/// Whether a token shows that a wrong PIN was given (PKCS#11 v2.40, 3.2: the
/// PIN flags "may always be set to false if the token does not support the
/// functionality or will not reveal the information").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountLow {
    /// The first wrong user PIN sets `CKF_USER_PIN_COUNT_LOW`, and the next right one clears it.
    Reported,
    /// Nobody has looked, or it does not.
    #[default]
    Unknown,
}

/// Who logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginProfile {
    /// `userType` of `C_Login`: 1 is `CKU_USER`, from 0x80000000 on they are a vendor's own.
    #[serde(default = "LoginProfile::cku_user")]
    pub user_type: u32,
    /// Whether the token shows that a wrong PIN was given.
    #[serde(default)]
    pub pin_count_low: CountLow,
}

impl LoginProfile {
    const CKU_USER: u32 = 1;
    const CKU_VENDOR_DEFINED: u32 = 0x8000_0000;

    const fn cku_user() -> u32 {
        Self::CKU_USER
    }

    /// As `C_Login` takes it.
    #[must_use]
    pub const fn user(&self) -> User {
        if self.user_type == Self::CKU_USER {
            User::User
        } else {
            User::Vendor(self.user_type)
        }
    }
}

impl Default for LoginProfile {
    fn default() -> Self {
        Self {
            user_type: Self::CKU_USER,
            pin_count_low: CountLow::default(),
        }
    }
}

/// What the token can wrap for a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveProfile {
    /// SEDK forms that the token makes itself; none where it cannot wrap and unwrap.
    pub forms: Vec<SedkForm>,
}

/// Whether an attribute goes into a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Send {
    /// It is sent.
    Send,
    /// It is left out: the token refuses it.
    #[default]
    Omit,
}

/// How an unwrapped key becomes sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitive {
    /// `CKA_SENSITIVE` in the unwrap template.
    Send,
    /// `C_SetAttributeValue` after the unwrap, because the template's is ignored.
    SetAfter,
}

/// Attributes of data keys on unwrap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataKeyProfile {
    /// How it becomes sensitive.
    pub sensitive: Sensitive,
    /// Whether `CKA_EXTRACTABLE` true is sent.
    pub extractable: Send,
    /// Whether `CKA_VALUE_LEN` 32 is sent.
    pub value_len: Send,
    /// Whether data keys are `CKA_WRAP_WITH_TRUSTED`: the token wraps them only under public
    /// keys that its security officer has blessed (`ekm drive trust`).
    #[serde(default)]
    pub wrap_with_trusted: bool,
    /// Whether its security officer can bless public keys at all (`CKA_TRUSTED`); true where
    /// nobody knows that he cannot.
    #[serde(default = "blesses")]
    pub blesses: bool,
}

const fn blesses() -> bool {
    true
}

/// How KEKs come into the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generate {
    /// `C_GenerateKeyPair` with `CKM_RSA_PKCS_KEY_PAIR_GEN`.
    Pkcs11,
    /// Only with the vendor's own tools.
    VendorTool,
}

/// Whether a KEK has `CKA_UNWRAP_TEMPLATE`, by which the token itself refuses to open a data key
/// in any weaker way (PKCS#11 v2.40, 4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnwrapTemplate {
    /// It is not asked for: the token refuses it, or does not keep to it.
    Never,
    /// It is asked for; where the token refuses it the KEK is made without.
    Try,
    /// It is asked for, and a KEK that does not show it is refused.
    Require,
}

/// Attributes of new KEKs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekProfile {
    /// How KEKs come into the token.
    pub generate: Generate,
    /// Whether KEKs have `CKA_UNWRAP_TEMPLATE`.
    pub unwrap_template: UnwrapTemplate,
    /// Whether the uses that a KEK is not for are sent as well, as false.
    pub denied_uses: Send,
    /// Whether `CKA_MODIFIABLE` false is sent, so that no usage flag can be turned on later.
    pub frozen: Send,
    /// Whether `CKA_COPYABLE` false is sent, so that no copy can be made that has other uses.
    #[serde(default)]
    pub uncopyable: Send,
}

/// Sessions and times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionProfile {
    /// Bridge processes that drive the token, each with as many workers. More than one is for a
    /// module that does one exchange at a time, whatever the number of sessions.
    pub processes: usize,
    /// Threads of one such process, each with a session of its own.
    pub workers: usize,
    /// Most sessions that the token allows; `None` where no limit is known.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Longest time that one exchange may take before the module counts as hung, seconds.
    pub deadline_seconds: u64,
    /// Host-custody exchanges after which the bridge is started anew.
    pub host_exchanges: u64,
    /// Exchanges of any custody after which the bridge is started anew, for a module that never
    /// frees all that a session object took; `None` for one that does.
    #[serde(default)]
    pub exchanges: Option<u64>,
}

/// Why a profile could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile of that name ships.
    #[error("there is no profile {name}; shipped are {shipped}, or give the path of a .toml file")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        shipped: String,
    },
    /// The file cannot be read.
    #[error("cannot read the profile {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is not a profile.
    #[error("profile {name}: {source}")]
    Syntax {
        /// Name or path.
        name: String,
        /// The cause, with the line.
        source: Box<toml::de::Error>,
    },
    /// The product cannot do what `ekm` needs.
    #[error("profile {name}: ekm cannot use this product: {reason}")]
    Unsupported {
        /// Name.
        name: String,
        /// What it cannot do.
        reason: String,
    },
    /// A value is out of its range.
    #[error("profile {name}: {reason}")]
    Value {
        /// Name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl HsmProfile {
    /// A shipped profile by name, or a site's by the path of its `.toml` file.
    ///
    /// # Errors
    /// The name is unknown, or the file is unreadable or wrong.
    pub fn load(name: &str) -> Result<Self, ProfileError> {
        if let Some((_, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            return Self::parse(name, text);
        }
        if Path::new(name)
            .extension()
            .is_none_or(|extension| extension != "toml")
        {
            return Err(ProfileError::Unknown {
                name: name.to_owned(),
                shipped: Self::shipped().collect::<Vec<_>>().join(", "),
            });
        }
        let text = std::fs::read_to_string(name).map_err(|source| ProfileError::Read {
            path: name.into(),
            source,
        })?;
        Self::parse(name, &text)
    }

    /// How a software keystore works: nothing is a token's, everything custody `host`.
    #[must_use]
    pub fn software() -> Self {
        Self {
            name: "software".to_owned(),
            description: "RSA private keys of a key file, in memory".to_owned(),
            verified: String::new(),
            unsupported: None,
            module: ModuleProfile {
                library: String::new(),
                environment: BTreeMap::new(),
                reserved: None,
                keeps: None,
                files: BTreeMap::new(),
                folders: Vec::new(),
            },
            login: LoginProfile::default(),
            eedk: WrapAlgorithm::oaep(OaepHash::Sha256, true),
            drive: DriveProfile { forms: Vec::new() },
            data_key: DataKeyProfile {
                sensitive: Sensitive::Send,
                extractable: Send::Omit,
                value_len: Send::Omit,
                wrap_with_trusted: false,
                blesses: false,
            },
            kek: KekProfile {
                generate: Generate::VendorTool,
                unwrap_template: UnwrapTemplate::Never,
                denied_uses: Send::Omit,
                frozen: Send::Omit,
                uncopyable: Send::Omit,
            },
            session: SessionProfile {
                processes: 1,
                workers: 2,
                limit: None,
                deadline_seconds: 30,
                host_exchanges: 10_000,
                exchanges: None,
            },
            faults: Vec::new(),
        }
    }

    /// The names of the shipped profiles.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text).map_err(|source| ProfileError::Syntax {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        profile.check().map_err(|reason| ProfileError::Value {
            name: name.to_owned(),
            reason,
        })?;
        Ok(profile)
    }

    /// Whether the values are in their ranges and fit together.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let Self {
            name: _,
            description: _,
            verified: _,
            unsupported: _,
            module: _,
            login,
            eedk: _,
            drive,
            data_key,
            kek,
            session,
            // Each was checked when it was read.
            faults: _,
        } = self;
        if login.user_type != LoginProfile::CKU_USER
            && login.user_type < LoginProfile::CKU_VENDOR_DEFINED
        {
            return Err(
                "login.user_type must be 1 (CKU_USER) or a vendor's own, 0x80000000 or more; ekm never serves as CKU_SO",
            );
        }
        if drive.forms.contains(&SedkForm::T10Plain) {
            return Err(
                "drive.forms: t10-00h is the key in clear and never made by a token; leave it out",
            );
        }
        if data_key.sensitive == Sensitive::SetAfter && kek.unwrap_template != UnwrapTemplate::Never
        {
            return Err(
                "data_key.sensitive = \"set-after\" contradicts kek.unwrap_template other than \"never\": the KEK would refuse every unwrap",
            );
        }
        if data_key.wrap_with_trusted && drive.forms.is_empty() {
            return Err(
                "data_key.wrap_with_trusted is for a token that wraps for drives itself, and drive.forms is empty",
            );
        }
        if kek.denied_uses == Send::Omit && !drive.forms.is_empty() {
            return Err(
                "kek.denied_uses = \"omit\" is for drive.forms = [] only: a KEK that may also decrypt or sign gives a data key out of the token",
            );
        }
        if !(1..=16).contains(&session.processes) {
            return Err("session.processes must be 1 to 16");
        }
        if !(1..=64).contains(&session.workers) {
            return Err("session.workers must be 1 to 64");
        }
        // One more session in each process keeps the login.
        let sessions = session.processes * (session.workers + 1);
        if session.limit.is_some_and(|limit| sessions > limit) {
            return Err(
                "session.processes times (workers + 1) is more than session.limit, the sessions that the token allows",
            );
        }
        if !(1..=300).contains(&session.deadline_seconds) {
            return Err("session.deadline_seconds must be 1 to 300");
        }
        if session.host_exchanges == 0 {
            return Err("session.host_exchanges must be 1 or more");
        }
        if session.exchanges == Some(0) {
            return Err("session.exchanges must be 1 or more, or left out");
        }
        Ok(())
    }

    /// That the product can serve at all.
    ///
    /// # Errors
    /// `Unsupported`, with what it cannot do.
    pub fn serves(&self) -> Result<(), ProfileError> {
        self.unsupported.as_ref().map_or(Ok(()), |reason| {
            Err(ProfileError::Unsupported {
                name: self.name.clone(),
                reason: reason.clone(),
            })
        })
    }

    /// Whether the token can only decrypt, so that its KEKs are all of custody `host`.
    #[must_use]
    pub const fn host_only(&self) -> bool {
        self.drive.forms.is_empty()
    }

    /// How this token wraps EEDKs.
    #[must_use]
    pub const fn wrap_algorithm(&self) -> WrapAlgorithm {
        self.eedk
    }

    /// Whether a token of this product has a directory of its own here.
    #[must_use]
    pub fn wants_directory(&self) -> bool {
        let text = toml::to_string(self).unwrap_or_default();
        self.module.library == "embedded" || text.contains("{directory}")
    }

    /// Puts the token's directory where the profile says `{directory}`. Nothing is made.
    pub fn settle(&mut self, directory: &Path) {
        let wants_directory = self.wants_directory();
        let place = |text: &str| text.replace("{directory}", &directory.display().to_string());
        let ModuleProfile {
            library,
            environment,
            reserved,
            keeps,
            files,
            folders: _,
        } = &mut self.module;
        *library = place(library);
        for text in environment
            .values_mut()
            .chain(files.values_mut())
            .chain(reserved.as_mut())
        {
            *text = place(text);
        }
        *keeps = match keeps {
            Some(text) => Some(place(text)),
            None => wants_directory.then(|| directory.display().to_string()),
        };
    }

    /// Makes the directory of a new token, and the files and folders that the profile wants in
    /// it. For a token that is there already (`keeps`) it adds what is missing.
    ///
    /// # Errors
    /// The operating system's.
    pub fn make(&self, directory: &Path) -> std::io::Result<()> {
        if self.module.keeps.is_some() {
            crate::files::private_dir(directory)?;
        }
        for folder in &self.module.folders {
            crate::files::private_dir(&directory.join(folder))?;
        }
        for (name, content) in &self.module.files {
            let path = directory.join(name);
            if !path.exists() {
                crate::files::write_private(&path, content.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Why no token of this profile can be where it should be, its paths settled. What is not
    /// there is never made anew: whoever loads a module on the place where a disk is not mounted
    /// would have an empty token.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn there(&self) -> Result<(), String> {
        match &self.module.keeps {
            Some(place) if !Path::new(place).exists() => Err(format!(
                "there is no {place}, where the token's keys are; nothing was made in its place. Mount the disk that it is on, or restore it from the backup; a new, empty token is made by ekm slot init alone"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_parses_under_its_own_name() {
        for name in HsmProfile::shipped() {
            assert_eq!(HsmProfile::load(name).unwrap().name, name);
        }
    }

    #[test]
    fn every_file_of_the_folder_is_shipped_and_in_its_readme() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/hsm-profiles");
        let readme = std::fs::read_to_string(format!("{folder}/README.md")).unwrap();
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.strip_suffix(".toml").map(str::to_owned)
            })
            .collect();
        let mut shipped: Vec<&str> = HsmProfile::shipped().collect();
        files.sort();
        shipped.sort_unstable();
        assert_eq!(files, shipped);
        for name in shipped {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_profile_says_when_it_was_checked_or_that_it_was_not() {
        for name in HsmProfile::shipped() {
            let verified = HsmProfile::load(name).unwrap().verified;
            let dated = verified.contains("20") && verified.contains("conformance tests");
            assert!(
                dated || verified.starts_with("NOT verified"),
                "{name}: {verified}"
            );
        }
    }

    #[test]
    fn the_guide_to_opencryptoki_says_what_its_profiles_say() {
        let guide = include_str!("../../docs/opencryptoki.md");
        let row = |head: &str| -> Vec<&str> {
            let line = guide.lines().find(|line| line.starts_with(head)).unwrap();
            let cells = line.trim_matches('|').split('|').skip(1);
            cells.map(str::trim).collect()
        };
        let names = row("| Profile |");
        let (wraps, labels) = (row("| EEDK wrap |"), row("| DKi as OAEP label |"));
        let forms = row("| SEDK forms that it makes |");
        let templates = row("| `CKA_UNWRAP_TEMPLATE` |");
        for (at, name) in names.iter().enumerate() {
            let profile = HsmProfile::load(name.trim_matches('`')).unwrap();
            assert_eq!(profile.unsupported, None, "{name}");
            match profile.eedk {
                WrapAlgorithm::Oaep { hash, .. } => {
                    assert!(wraps[at].contains("SHA-256"), "{name}");
                    assert_eq!(hash, OaepHash::Sha256, "{name}");
                }
                WrapAlgorithm::Pkcs1V15 => {
                    assert!(wraps[at].contains("PKCS#1 v1.5"), "{name}");
                }
            }
            assert_eq!(
                labels[at].starts_with("yes"),
                profile.eedk.labelled(),
                "{name}"
            );
            for form in [SedkForm::T10Wrapped, SedkForm::RsaOaepSha1] {
                let told = forms[at].starts_with(&format!("`{form}`"))
                    || forms[at].contains(&format!(", `{form}`"));
                assert_eq!(told, profile.drive.forms.contains(&form), "{name} {form}");
            }
            let never = profile.kek.unwrap_template == UnwrapTemplate::Never;
            assert_eq!(never, templates[at].starts_with("no"), "{name}");
        }
    }

    #[test]
    fn a_product_that_cannot_serve_says_why() {
        let text = include_str!("../../hsm-profiles/softhsm2.toml").replacen(
            "[module]",
            "unsupported = \"it has no RSA\"\n\n[module]",
            1,
        );
        let refused = HsmProfile::parse("changed", &text).unwrap();
        let refused = refused.serves().unwrap_err().to_string();
        assert!(refused.contains("it has no RSA"), "{refused}");
        assert!(HsmProfile::load("softhsm2").unwrap().serves().is_ok());
    }

    #[test]
    fn only_the_product_without_oaep_wraps_by_v15_and_in_custody_host() {
        for name in HsmProfile::shipped() {
            let profile = HsmProfile::load(name).unwrap();
            let v15 = profile.wrap_algorithm().is_v15();
            assert_eq!(v15, name == "opencryptoki-icsf", "{name}");
            assert!(!v15 || profile.host_only(), "{name}");
        }
    }

    #[test]
    fn values_that_do_not_fit_together_are_refused() {
        let good = include_str!("../../hsm-profiles/softhsm2.toml");
        for (field, wrong, reason) in [
            ("processes = 1", "processes = 17", "session.processes"),
            ("workers = 4", "workers = 0", "session.workers"),
            ("workers = 4", "workers = 4\nlimit = 4", "session.limit"),
            (
                "sensitive = \"send\"",
                "sensitive = \"set-after\"",
                "contradict",
            ),
            (
                "denied_uses = \"send\"",
                "denied_uses = \"omit\"",
                "denied_uses",
            ),
            ("[login]", "[login]\nuser_type = 0", "CKU_SO"),
            ("[eedk]", "[eedk]\nsource = 1", "unknown field"),
            (
                "[eedk]",
                "[eedk]\npadding = \"pkcs1-v1.5\"",
                "leave both out",
            ),
        ] {
            assert!(good.contains(field), "{field}");
            let text = good.replacen(field, wrong, 1);
            let error = HsmProfile::parse("changed", &text).unwrap_err();
            let full = format!("{error}");
            assert!(full.contains(reason), "{wrong}: {full}");
        }
    }

    #[test]
    fn a_vendors_user_type_is_taken() {
        let text = include_str!("../../hsm-profiles/softhsm2.toml").replacen(
            "[login]",
            "[login]\nuser_type = 0x80000001",
            1,
        );
        let profile = HsmProfile::parse("changed", &text).unwrap();
        assert_eq!(profile.login.user(), User::Vendor(0x8000_0001));
    }

    #[test]
    fn an_unknown_name_lists_what_there_is() {
        let error = HsmProfile::load("sofhtsm").unwrap_err().to_string();
        assert!(error.contains("softhsm2"), "{error}");
    }
}
