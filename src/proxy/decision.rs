//! The decision for one file of one job.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::config::{ClassName, DataClass, HostConfig};
use super::dd::{Dd, Disp};
use super::labels::{At, Labels};
use crate::key::KekRef;
use crate::volser::Volser;

/// What is known of a job when its tape is about to be used.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Its data class, if it has one.
    pub data_class: Option<&'a ClassName>,
    /// Its DD statement; an empty one where it has none.
    pub dd: &'a Dd,
    /// The cartridge, where it is known.
    pub volser: Option<&'a Volser>,
    /// What is on the cartridge.
    pub loaded: Loaded,
}

/// Whether the files that a cartridge already holds are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Nobody has looked yet.
    Unknown,
    /// In clear.
    Clear,
    /// Encrypted.
    Encrypted,
}

/// What is asked of the key server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Asks {
    /// A new data key under these KEKs. One serves both EEDKs of the cartridge; with none the
    /// drive table decides, then the server's defaults.
    Create {
        /// The first.
        kek1: Option<KekRef>,
        /// The second; never without a first.
        kek2: Option<KekRef>,
    },
    /// The data key that the cartridge has.
    Resolve {
        /// Whether more is written under it.
        append: bool,
    },
    /// One of the two others, as soon as it is known whether the cartridge is encrypted. Not to be
    /// acted upon: look, and decide again.
    ResolveIfEncrypted {
        /// Whether more is written.
        append: bool,
    },
    /// Nothing: the file is in clear.
    Nothing,
}

/// What a job's file gets, and why. Only [`HostConfig::decide`] makes one.
///
/// ```compile_fail,E0451
/// use ekm::proxy::{Asks, Decision};
/// let forged = Decision { asks: Asks::Nothing, labels_from: None, reasons: vec![], warnings: vec![] };
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    asks: Asks,
    labels_from: Option<LabelLevel>,
    reasons: Vec<Reason>,
    warnings: Vec<Reason>,
}

impl Decision {
    /// What is asked of the key server.
    #[must_use]
    pub const fn asks(&self) -> &Asks {
        &self.asks
    }

    /// Which level supplies the labels; only a create has one.
    #[must_use]
    pub const fn labels_from(&self) -> Option<LabelLevel> {
        self.labels_from
    }

    /// What decided, in the order in which it was looked at.
    #[must_use]
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// What was said and has no effect, or may surprise.
    #[must_use]
    pub fn warnings(&self) -> &[Reason] {
        &self.warnings
    }
}

/// Who names the labels of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelLevel {
    /// The job's DD statement.
    Dd,
    /// Its data class.
    DataClass,
    /// The volume range of its cartridge.
    VolumeRange,
    /// The key server: drive table, then defaults.
    KeyServer,
}

/// A sentence, and where what it is about stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Where.
    pub at: Place,
    /// What it says.
    pub why: String,
}

/// Where something stands; serialised as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the host's file.
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A character of the DD statement, from 1.
    Dd(usize),
    /// Nowhere: a rule, where nothing was said.
    Rule,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Self::Dd(position) => write!(f, "--dd, position {position}"),
            Self::Rule => f.write_str("by rule"),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Why nothing can be decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The job names a data class that the host does not have.
    #[error("{} has no data class {name}; it has {known}", file.display())]
    NoSuchClass {
        /// The file.
        file: PathBuf,
        /// The name.
        name: ClassName,
        /// Those that it has.
        known: String,
    },
}

impl HostConfig {
    /// Decides what is asked of the key server for a job's file.
    ///
    /// # Errors
    /// The job names a data class that is not in the file.
    pub fn decide(&self, job: &Job<'_>) -> Result<Decision, JobError> {
        let class = job.data_class.map(|name| self.class(name)).transpose()?;
        let mut story = Story {
            host: self,
            job,
            class,
            reasons: Vec::new(),
            warnings: Vec::new(),
        };
        let (asks, labels_from) = match (job.dd.disp(), job.dd.file()) {
            (Disp::New, 1) => story.load_point(),
            (Disp::New | Disp::Mod, _) => (story.follow(true), None),
            (Disp::Old, _) => (story.follow(false), None),
        };
        let Story {
            reasons, warnings, ..
        } = story;
        Ok(Decision {
            asks,
            labels_from,
            reasons,
            warnings,
        })
    }

    fn class(&self, name: &ClassName) -> Result<&DataClass, JobError> {
        let found = self
            .data_classes
            .iter()
            .find(|class| class.name.value == *name);
        found.ok_or_else(|| {
            // A long list helps nobody.
            let known: Vec<String> = self
                .data_classes
                .iter()
                .take(10)
                .map(|class| class.name.value.to_string())
                .collect();
            let known = match self.data_classes.len() {
                0 => "none".to_owned(),
                all if all > known.len() => format!("{} and others", known.join(", ")),
                _ => known.join(", "),
            };
            JobError::NoSuchClass {
                file: self.file.clone(),
                name: name.clone(),
                known,
            }
        })
    }
}

/// A decision in the making.
struct Story<'a> {
    host: &'a HostConfig,
    job: &'a Job<'a>,
    class: Option<&'a DataClass>,
    reasons: Vec<Reason>,
    warnings: Vec<Reason>,
}

impl Story<'_> {
    fn line(&self, line: usize) -> Place {
        Place::Line {
            file: self.host.file.clone(),
            line,
        }
    }

    fn because(&mut self, at: Place, why: impl Into<String>) {
        self.reasons.push(Reason {
            at,
            why: why.into(),
        });
    }

    fn warn(&mut self, at: Place, why: impl Into<String>) {
        self.warnings.push(Reason {
            at,
            why: why.into(),
        });
    }

    /// Where DISP and the file's number stand.
    fn file_place(&self) -> Place {
        let Dd { disp, file, .. } = self.job.dd;
        let file = file.as_ref().map(|file| file.at);
        let disp = disp.as_ref().map(|disp| disp.at);
        // The one that makes it no first file; else either.
        let at = if self.job.dd.disp() == Disp::New {
            file.or(disp)
        } else {
            disp.or(file)
        };
        at.map_or(Place::Rule, Place::Dd)
    }

    /// The first file: the data class decides whether, and the first level with labels under what.
    fn load_point(&mut self) -> (Asks, Option<LabelLevel>) {
        let place = self.file_place();
        self.because(
            place,
            "first file, DISP=NEW: the data class decides on encryption",
        );
        let Some(class) = self.class else {
            self.because(
                Place::Rule,
                "no data class is given, so it is not encrypted",
            );
            self.labels_in_vain("only a data class encrypts");
            return (Asks::Nothing, None);
        };
        let DataClass {
            name,
            format,
            labels: _,
        } = class;
        let format_line = self.line(format.at);
        let (name, drive) = (&name.value, format.value.drive());
        if !format.value.encrypts() {
            self.because(
                format_line,
                format!(
                    "data class {name} writes {}, which is in clear",
                    format.value
                ),
            );
            self.labels_in_vain("only a data class encrypts");
            return (Asks::Nothing, None);
        }
        self.because(
            format_line,
            format!(
                "data class {name} writes {} ({drive}), which is encrypted",
                format.value
            ),
        );
        if self.job.loaded == Loaded::Encrypted {
            self.because(
                Place::Rule,
                "what the cartridge held is written over, so its old EEDKs decide nothing",
            );
        }
        self.create()
    }

    fn create(&mut self) -> (Asks, Option<LabelLevel>) {
        let levels = self.levels();
        let Some((level, place, labels)) = levels.first() else {
            self.because(
                Place::Rule,
                "no label here: the key server decides, by the drive's row, then its defaults",
            );
            if self.job.volser.is_none() && !self.host.volume_ranges.is_empty() {
                self.warn(
                    Place::Rule,
                    "no volume serial is given, so no volume range was looked at",
                );
            }
            return (
                Asks::Create {
                    kek1: None,
                    kek2: None,
                },
                Some(LabelLevel::KeyServer),
            );
        };
        let Labels { kek1, kek2 } = labels;
        let count = if kek2.is_some() {
            "two labels"
        } else {
            "one label, which serves both EEDKs"
        };
        self.because(
            place.clone(),
            format!("{} names {count}", self.named(*level)),
        );
        // What is passed over, so that nobody takes the two for a mixture.
        for (level, place, _) in levels.iter().skip(1) {
            self.because(
                place.clone(),
                format!("passed over: the labels of {}", self.named(*level)),
            );
        }
        (
            Asks::Create {
                kek1: Some(kek1.value.clone()),
                kek2: kek2.as_ref().map(|kek2| kek2.value.clone()),
            },
            Some(*level),
        )
    }

    /// The levels of the host that name labels, the first counts.
    fn levels(&self) -> Vec<(LabelLevel, Place, Labels)> {
        let first = |labels: &Labels| {
            let Labels {
                kek1: At { at, .. },
                ..
            } = labels;
            *at
        };
        let dd = self
            .job
            .dd
            .labels
            .as_ref()
            .map(|labels| (LabelLevel::Dd, Place::Dd(first(labels)), labels.clone()));
        let class = self.class.and_then(|class| class.labels.as_ref());
        let class = class.map(|labels| {
            (
                LabelLevel::DataClass,
                self.line(first(labels)),
                labels.clone(),
            )
        });
        let range = self.job.volser.and_then(|volser| {
            self.host
                .volume_ranges
                .iter()
                .find(|range| range.has(volser))
        });
        let range = range.map(|range| {
            (
                LabelLevel::VolumeRange,
                self.line(first(&range.labels)),
                range.labels.clone(),
            )
        });
        [dd, class, range].into_iter().flatten().collect()
    }

    fn named(&self, level: LabelLevel) -> String {
        match level {
            LabelLevel::Dd => "the DD statement".to_owned(),
            LabelLevel::DataClass => self.class.map_or_else(
                || "the data class".to_owned(),
                |class| format!("data class {}", class.name.value),
            ),
            LabelLevel::VolumeRange => self.job.volser.map_or_else(
                || "the volume range".to_owned(),
                |volser| format!("the volume range of {volser}"),
            ),
            LabelLevel::KeyServer => "the key server".to_owned(),
        }
    }

    fn labels_in_vain(&mut self, why: &str) {
        for (level, place, _) in self.levels() {
            let whose = self.named(level);
            self.warn(
                place,
                format!("the labels of {whose} have no effect: {why}"),
            );
        }
    }

    /// Any other file is as the cartridge is.
    fn follow(&mut self, append: bool) -> Asks {
        let (disp, file) = (self.job.dd.disp(), self.job.dd.file());
        let place = self.file_place();
        let what = if append { "is written" } else { "is read" };
        self.because(
            place,
            format!("file {file}, DISP={disp}: it {what} as the cartridge is, whatever the data class says"),
        );
        if let Some(labels) = &self.job.dd.labels {
            self.warn(
                Place::Dd(labels.kek1.at),
                "the labels of the DD statement have no effect: the first file decided",
            );
        }
        let in_clear = match self.job.loaded {
            Loaded::Encrypted => {
                self.because(
                    Place::Rule,
                    "the cartridge is encrypted: its own EEDKs are sent to be opened",
                );
                return Asks::Resolve { append };
            }
            Loaded::Clear => {
                self.because(Place::Rule, "the cartridge is in clear");
                "the cartridge is in clear, so this file will be"
            }
            Loaded::Unknown => "if the cartridge is in clear, so will this file be",
        };
        if append && let Some(class) = self.class.filter(|class| class.format.value.encrypts()) {
            self.warn(
                self.line(class.format.at),
                format!(
                    "data class {} encrypts, but {in_clear}; file 1 with DISP=NEW (no FILESEQ) starts an encrypted one",
                    class.name.value
                ),
            );
        }
        match self.job.loaded {
            Loaded::Clear => Asks::Nothing,
            Loaded::Unknown | Loaded::Encrypted => Asks::ResolveIfEncrypted { append },
        }
    }
}
