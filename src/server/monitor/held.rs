//! What each token held when it was last up, over restarts of the server.
//!
//! A token that is down when the server starts shows nothing, and the registry has a KEK on the
//! token of its birth and on those that it was restored to: of a copy that the vendor's tools
//! made only the token tells. So what the tokens were last seen to hold is in a file of the state
//! directory. Nothing but alarms comes of it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Monitor, Seen};
use crate::bridge::message::{PrivateHalf, Ready};
use crate::bridge::supervisor::Bridge;
use crate::files;
use crate::key::{KekHash, KeyLabel};

/// Largest file that is read, bytes: some 100,000 KEKs.
const MOST: u64 = 16 << 20;

/// The file, of each server its own.
pub(super) fn file(state: &Path) -> PathBuf {
    state.join("held.json")
}

/// The KEKs whose private half serves, by the token's configured name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Held(BTreeMap<String, BTreeMap<KekHash, KeyLabel>>);

impl Held {
    /// What was noted last; nothing where there is no file yet, or none that can be read.
    pub(super) fn read(path: &Path) -> Self {
        let read = match files::read_limited(path, MOST) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        };
        read.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what the tokens held before this start cannot be read: copies on tokens that are down are not counted until they are up; the file is written anew");
            Self::default()
        })
    }

    /// Notes it for the next start.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        files::write_private(path, &serde_json::to_vec(self)?)
    }

    /// What a token was last seen to hold.
    pub(super) fn of(&self, token: &str) -> Vec<(KekHash, String)> {
        let keks = self.0.get(token).into_iter().flatten();
        keks.map(|(hash, label)| (*hash, label.to_string()))
            .collect()
    }

    /// The same as of now: what each token shows, and of one that has not been up, what it showed
    /// before. Tokens that are not configured any more are left out.
    pub(super) fn now<'a>(
        &self,
        tokens: impl IntoIterator<Item = (&'a str, Option<&'a Ready>)>,
    ) -> Self {
        let each = tokens.into_iter().filter_map(|(name, found)| {
            let keks = match found {
                Some(found) => found
                    .keks
                    .iter()
                    .filter(|kek| matches!(kek.private, PrivateHalf::Serves { .. }))
                    .map(|kek| (kek.hash, kek.label.clone()))
                    .collect(),
                None => self.0.get(name)?.clone(),
            };
            Some((name.to_owned(), keks))
        });
        Self(each.collect())
    }
}

impl Monitor {
    /// Notes what the tokens hold, for the next start.
    pub(super) async fn note_held(&self) {
        let bridges = self.service.tokens().bridges();
        let found: Vec<Option<Arc<Ready>>> = bridges.iter().map(Bridge::found).collect();
        let shown = found.iter().map(Option::as_deref);
        let tokens = bridges.iter().map(Bridge::name).zip(shown);
        let held = self.seen().before.now(tokens);
        if held == self.seen().noted {
            return;
        }
        let (path, new) = (file(&self.state), held.clone());
        // A file system on the network may not answer.
        let written = tokio::task::spawn_blocking(move || new.write(&path)).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mut seen = self.seen();
        let why = match written {
            Ok(()) => {
                seen.noted = held;
                None
            }
            Err(error) => Some(error.to_string()),
        };
        // Once, and not every few seconds.
        if let Some(why) = &why
            && seen.unnoted.as_ref() != Some(why)
        {
            tracing::warn!(path = %file(&self.state).display(), %why, "what the tokens hold cannot be noted: a server that starts while one of them is down will not count the copies on it (EKM-A05)");
        }
        seen.unnoted = why;
    }
}

impl Seen {
    /// What a token that has not been up since the start holds, by the registry and by what it
    /// showed before.
    pub(super) fn away(&self, token: &str) -> Vec<(KekHash, String)> {
        let mut keks = self.away.get(token).cloned().unwrap_or_default();
        for (kek, label) in self.before.of(token) {
            let known = keks.iter().any(|(known, _)| *known == kek);
            if !known && !self.ended.contains(&kek) {
                keks.push((kek, label));
            }
        }
        keks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(tokens: &[(&str, &[u8])]) -> Held {
        let kek = |n: &u8| -> (KekHash, KeyLabel) {
            (KekHash::of_spki(&[*n]), format!("KEK{n}").parse().unwrap())
        };
        let each = tokens.iter();
        Held(
            each.map(|(name, numbers)| ((*name).to_owned(), numbers.iter().map(kek).collect()))
                .collect(),
        )
    }

    #[test]
    fn a_token_that_was_not_up_yet_counts_with_what_it_held_before() {
        let (one, two) = (KekHash::of_spki(&[1]), KekHash::of_spki(&[2]));
        let mut seen = Seen {
            before: held(&[("b", &[1, 2, 3])]),
            ..Seen::default()
        };
        seen.away
            .insert("b".to_owned(), vec![(one, "KEK1".to_owned())]);
        seen.ended.insert(KekHash::of_spki(&[3]));
        assert_eq!(
            seen.away("b"),
            [(one, "KEK1".to_owned()), (two, "KEK2".to_owned())]
        );
        assert!(seen.away("a").is_empty());
    }

    #[test]
    fn what_a_token_held_is_read_again_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path());
        assert_eq!(Held::read(&path), Held::default());
        let noted = held(&[("a", &[1, 2]), ("b", &[1])]);
        noted.write(&path).unwrap();
        let read = Held::read(&path);
        assert_eq!(read, noted);
        assert_eq!(read.of("b"), [(KekHash::of_spki(&[1]), "KEK1".to_owned())]);
        assert!(read.of("c").is_empty());
        // One that is damaged keeps no server from its alarms.
        std::fs::write(&path, b"{\"a\":").unwrap();
        assert_eq!(Held::read(&path), Held::default());
    }

    #[test]
    fn a_token_that_is_down_keeps_what_it_held_and_one_that_is_up_has_what_it_shows() {
        let noted = held(&[("a", &[1, 2]), ("b", &[1]), ("sold", &[3])]);
        let empty = Ready {
            token: crate::bridge::pkcs11::TokenInfo::default(),
            keks: Vec::new(),
            probe: None,
            trusted: Vec::new(),
            sessions: 1,
            trouble: None,
        };
        let now = noted.now([("a", None), ("b", Some(&empty)), ("new", None)]);
        assert_eq!(now, held(&[("a", &[1, 2]), ("b", &[])]));
    }
}
