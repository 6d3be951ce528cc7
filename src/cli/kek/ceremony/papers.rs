//! The files of a ceremony: the copy, the shares, the transcript.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::{Ceremony, Done, holders, points};
use crate::admin::CopyAsked;
use crate::bridge::message::KekAttributes;
use crate::cli::output;
use crate::copies::secret::{self, Point};
use crate::copies::share::{Share, ShareHead};
use crate::copies::transcript::Transcript;
use crate::copies::{KekCopyFile, Quorum, TransportKey};
use crate::files::{private_dir, write_private};
use crate::key::KeyLabel;

/// Where everything goes.
pub(super) struct Papers {
    pub(super) copy: PathBuf,
    shares: Vec<PathBuf>,
    transcript: PathBuf,
    begun: OffsetDateTime,
}

/// A file that was written.
pub(super) struct Paper {
    pub(super) path: PathBuf,
    pub(super) sha256: String,
    /// What the transcript says of it.
    what: String,
}

impl Paper {
    pub(super) fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }
}

impl Papers {
    pub(super) fn new(
        label: &KeyLabel,
        copy: &Path,
        share_dir: &Path,
        transcript: Option<&Path>,
        quorum: Quorum,
    ) -> anyhow::Result<Self> {
        let begun = OffsetDateTime::now_utc().truncate_to_second();
        let date = begun.format(format_description!(
            "[year]-[month]-[day]T[hour][minute][second]Z"
        ))?;
        let name: String = label
            .as_str()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        let transcript = transcript.map_or_else(
            || copy.with_file_name(format!("ceremony-{name}-{date}.txt")),
            Path::to_owned,
        );
        Ok(Self {
            copy: copy.to_owned(),
            shares: (1..=quorum.total())
                .map(|number| share_dir.join(format!("{name}-{number}.share")))
                .collect(),
            transcript,
            begun,
        })
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.copy, &self.transcript]
            .into_iter()
            .chain(&self.shares)
    }

    /// That nothing is written over, and that there is where to write.
    pub(super) fn vacant(&self) -> anyhow::Result<()> {
        if self
            .shares
            .iter()
            .any(|share| share.parent() == self.copy.parent())
        {
            bail!(
                "the copy {} and the shares would be in one directory, and whoever has both has the KEK; give the shares another with --share-dir",
                self.copy.display()
            );
        }
        // The copy and the transcript first: where they cannot be, nothing is made.
        for path in self.all() {
            if path.symlink_metadata().is_ok() {
                bail!(
                    "{} is there already; a ceremony writes over nothing",
                    path.display()
                );
            }
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            if self.shares.contains(path) {
                private_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            } else if !folder.is_dir() {
                // It may be a medium that is not mounted.
                bail!(
                    "there is no directory {} for {}; is its medium mounted?",
                    folder.display(),
                    path.display()
                );
            }
            // A full or read-only disk is found out before there is a key.
            tempfile::NamedTempFile::new_in(folder)
                .with_context(|| format!("cannot write in {}", folder.display()))?;
        }
        Ok(())
    }

    /// Writes the copy and the shares.
    pub(super) fn write(
        &self,
        file: &KekCopyFile,
        key: &TransportKey,
        phrases: &[SecretString],
    ) -> anyhow::Result<Vec<Paper>> {
        let quorum = file.quorum()?;
        let mut written = vec![put(
            &self.copy,
            &file.to_text()?,
            "the KEK, wrapped under the transport key".to_owned(),
        )?];
        for ((point, phrase), path) in points(key, quorum)?.iter().zip(phrases).zip(&self.shares) {
            let head = ShareHead {
                ceremony: file.copy.ceremony,
                label: file.copy.label.clone(),
                kek: file.copy.hash,
                number: point.x,
                quorum,
            };
            let share = Share::seal(head, point, phrase)?;
            written.push(put(
                path,
                &share.to_text(),
                format!(
                    "share {} of {}, checksum {}",
                    point.x,
                    quorum.total(),
                    share.fingerprint()
                ),
            )?);
        }
        Ok(written)
    }

    /// The key, from the files. Each share takes part in one of the sets that
    /// are put together, and all must give the copy's key.
    pub(super) fn combined_again(
        &self,
        file: &KekCopyFile,
        phrases: &[SecretString],
    ) -> anyhow::Result<TransportKey> {
        let read = holders::read_copy(&self.copy)?;
        if read != *file {
            bail!("{} does not read as it was written", self.copy.display());
        }
        let quorum = read.quorum()?;
        let points = self
            .shares
            .iter()
            .zip(phrases)
            .map(|(path, phrase)| {
                holders::read_share(path)?
                    .open(phrase)
                    .with_context(|| format!("the share {}", path.display()))
            })
            .collect::<anyhow::Result<Vec<Point>>>()?;
        let points: Vec<&Point> = points.iter().collect();
        let mut key = None;
        for set in points.windows(usize::from(quorum.needed())) {
            let combined = secret::combine(set, quorum)?;
            read.authenticate(&combined)?;
            key = Some(combined);
        }
        key.context("no set of shares could be put together")
    }

    /// Removes what was written.
    pub(super) fn remove(&self) {
        for path in self.all() {
            // Some were never written.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Writes the transcript. Of a ceremony that failed there is only the record.
    pub(super) fn transcript(
        &self,
        ceremony: &Ceremony,
        asked: &CopyAsked,
        done: &Done,
    ) -> anyhow::Result<Paper> {
        let Done {
            opened,
            born,
            written,
            proof,
        } = done;
        let mut text = Transcript::new("ekm: transcript of a key ceremony");
        text.section("What");
        text.line("ceremony", asked.ceremony);
        text.line("KEK", &ceremony.label);
        text.line("public-key hash", format!("sha256:{}", born.kek.hash));
        text.line("modulus", format!("{} bits", born.kek.bits));
        text.line("custody", ceremony.custody);
        text.line("shares", format!("{} restore it", ceremony.quorum));
        text.section("Who and when");
        text.line(
            "operator",
            format!("uid {}", rustix::process::getuid().as_raw()),
        );
        text.line("begun", date(self.begun)?);
        text.line(
            "ended",
            date(OffsetDateTime::now_utc().truncate_to_second())?,
        );
        text.line("program", concat!("ekm ", env!("CARGO_PKG_VERSION")));
        text.section("Where");
        let token = &opened.token;
        text.line(
            "token",
            format!("{} (configured as {})", token.label, asked.token),
        );
        text.line("serial number", &token.serial);
        text.line("product", format!("{} {}", token.manufacturer, token.model));
        text.section("How");
        text.line("key pair", "C_GenerateKeyPair, CKM_RSA_PKCS_KEY_PAIR_GEN");
        text.line("transport key", "AES-256, random numbers of aws-lc-rs");
        text.line("brought in by", &opened.brought);
        text.line(
            "wrapped by",
            format!("C_WrapKey, {}", born.wrapped.mechanism),
        );
        text.line("frozen by", "C_SetAttributeValue, CKA_EXTRACTABLE false");
        text.line("wrapped again", format!("refused: {}", born.refusal));
        text.line("split by", "Shamir's scheme over GF(2^8)");
        text.line(
            "shares sealed by",
            "Argon2id and AES-256-GCM, a passphrase each",
        );
        text.section("Attributes of the private half");
        attributes(&mut text, &born.before, &born.after);
        text.section("Proof");
        match proof {
            Ok(again) => {
                text.note("every share was read back from its file; every set gave the same key");
                text.note(&format!(
                    "the copy was unwrapped as a session object (transport key by {}) and opened an EEDK made under the public key: a proven copy",
                    again.brought
                ));
            }
            Err(why) => text.note(&format!("THE COPY IS NOT PROVEN: {why}")),
        }
        text.section("What stayed in host memory, and how long");
        text.note("the transport key and its shares: in this command and in its bridge, until they ended; wiped");
        text.note("the holders' passphrases: in this command, likewise");
        text.note("the KEK's private half: never in clear outside the token");
        if !born.notes.is_empty() {
            text.section("To be known");
            born.notes.iter().for_each(|note| text.note(note));
        }
        text.section("Files, by SHA-256");
        for paper in written {
            text.line(&paper.name(), &paper.sha256);
            text.note(&paper.what);
        }
        text.section("Signed by");
        for role in ["operator", "witness"] {
            text.line(role, "______________________________");
        }
        for number in 1..=ceremony.quorum.total() {
            text.line(
                &format!("holder of share {number}"),
                "______________________________",
            );
        }
        put(&self.transcript, text.text(), "this transcript".to_owned())
    }
}

fn attributes(text: &mut Transcript, before: &KekAttributes, after: &KekAttributes) {
    text.line("", "when wrapped -> now");
    for ((name, was), (_, is)) in before.named().into_iter().zip(after.named()) {
        text.line(name, format!("{} -> {}", output::yes(was), output::yes(is)));
    }
}

fn date(at: OffsetDateTime) -> anyhow::Result<String> {
    Ok(at.format(&time::format_description::well_known::Rfc3339)?)
}

fn put(path: &Path, text: &str, what: String) -> anyhow::Result<Paper> {
    write_private(path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Paper {
        path: path.to_owned(),
        sha256: hex::encode(Sha256::digest(text.as_bytes())),
        what,
    })
}
