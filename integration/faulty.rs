//! The faulty module before a token, and how a test has it misbehave.

mod control;
mod hand;
mod names;
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::mem::{offset_of, size_of};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ekm::config::TokenConfig;

pub(crate) use control::{Fault, Rule, Rules, SessionLimit, Slots};
pub(crate) use hand::Hand;

use control::{BOARD, Board, CLIENTS, Client, RULES};
use names::FUNCTIONS;

use crate::support::{Hsm, example};

/// A token behind the faulty module. All clients that are given its
/// environment are clients of the one token.
pub(crate) struct Faulty {
    directory: PathBuf,
    module: PathBuf,
    environment: Vec<(&'static str, String)>,
    board: File,
    rules: Mutex<Rules>,
}

impl Faulty {
    /// The faulty module before that token.
    pub(crate) fn before(hsm: &Hsm) -> Self {
        let (module, environment) = hsm.module();
        let directory = hsm.directory.path().join("faulty");
        fs::create_dir_all(&directory).unwrap();
        let board = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(directory.join(BOARD))
            .unwrap();
        board
            .set_len(size_of::<Board>().try_into().unwrap())
            .unwrap();
        Self {
            directory,
            module,
            environment,
            board,
            rules: Mutex::default(),
        }
    }

    /// The library to load in place of the token's own.
    pub(crate) fn library() -> PathBuf {
        example("libfaulty.so")
    }

    /// What the library's process needs in its environment.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let own = [
            ("FAULTY_MODULE", self.module.display().to_string()),
            ("FAULTY_DIRECTORY", self.directory.display().to_string()),
            ("FAULTY_LOG", self.log().display().to_string()),
        ];
        self.environment
            .iter()
            .cloned()
            .chain(own)
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// The token in a configuration, reached through the faulty module.
    pub(crate) fn config(&self, hsm: &Hsm, name: &str) -> TokenConfig {
        self.through(hsm.config(name))
    }

    /// That configuration of the token, with the faulty module in it.
    pub(crate) fn through(&self, mut config: TokenConfig) -> TokenConfig {
        config.library = Some(Self::library().display().to_string());
        config.environment = self.environment();
        config
    }

    /// File with a line for each call that has returned.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("calls")
    }

    /// Changes the rules; the next call of every client goes by the new ones.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Rules)) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut rules);
        replace(
            &self.directory.join(RULES),
            &serde_json::to_vec(&*rules).unwrap(),
        );
        let generation = offset_of!(Board, generation);
        let next = self.word(generation) + 1;
        self.board
            .write_all_at(&next.to_ne_bytes(), generation.try_into().unwrap())
            .unwrap();
    }

    /// Has calls of a function, or of all, meet a fault: after `skip` more
    /// calls, so many; or all that follow.
    pub(crate) fn strike(
        &self,
        function: Option<&str>,
        skip: u64,
        count: Option<u64>,
        fault: Fault,
    ) {
        let made = match function {
            Some(function) => self.called(function),
            None => self.word(offset_of!(Board, all)),
        };
        self.change(|rules| {
            rules.faults.push(Rule {
                function: function.map(str::to_owned),
                first: made + skip,
                count,
                fault,
            });
        });
    }

    /// Ends every fault. What was lost stays lost.
    pub(crate) fn heal(&self) {
        self.change(|rules| {
            *rules = Rules {
                sessions_lost: rules.sessions_lost,
                logins_lost: rules.logins_lost,
                ..Rules::default()
            };
        });
    }

    /// Number of calls of each function so far.
    pub(crate) fn counters(&self) -> BTreeMap<String, usize> {
        FUNCTIONS
            .iter()
            .map(|name| {
                (
                    (*name).to_owned(),
                    usize::try_from(self.called(name)).unwrap(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Number of calls of a function so far.
    pub(crate) fn called(&self, function: &str) -> u64 {
        let index = FUNCTIONS
            .iter()
            .position(|name| *name == function)
            .expect("a function of PKCS#11 v2.40");
        self.word(offset_of!(Board, calls) + index * size_of::<u64>())
    }

    /// Wrong user PINs since the last right one.
    pub(crate) fn wrong_pins(&self) -> u64 {
        self.word(offset_of!(Board, wrong_pins))
    }

    /// Logins as security officer so far.
    pub(crate) fn officer_logins(&self) -> u64 {
        self.word(offset_of!(Board, officer_logins))
    }

    /// Every client that the token has had: process id and sessions.
    pub(crate) fn clients(&self) -> Vec<(u64, u64)> {
        (0..CLIENTS)
            .map(|n| offset_of!(Board, clients) + n * size_of::<Client>())
            .map(|at| {
                (
                    self.word(at + offset_of!(Client, pid)),
                    self.word(at + offset_of!(Client, sessions)),
                )
            })
            .filter(|(pid, _)| *pid != 0)
            .collect()
    }

    fn word(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        self.board
            .read_exact_at(&mut word, at.try_into().unwrap())
            .unwrap();
        u64::from_ne_bytes(word)
    }
}

/// Whoever reads the file has the old text or the new one.
fn replace(path: &Path, text: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}
