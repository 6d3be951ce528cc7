//! Shares and the passphrases of their holders.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::copies::secret::{self, Point};
use crate::copies::share::{self, Share};
use crate::copies::{KekCopyFile, Quorum, SplitError, TransportKey};

/// Longest passphrase, bytes.
const LONGEST: u64 = 1024;

/// A new passphrase for each share: from the files in their order, or typed
/// twice by each holder in turn.
pub(super) fn new_passphrases(
    quorum: Quorum,
    files: &[PathBuf],
) -> anyhow::Result<Vec<SecretString>> {
    let total = usize::from(quorum.total());
    if !files.is_empty() {
        if files.len() != total {
            bail!(
                "{} passphrase files were given, and there are {total} shares: give --passphrase-file once for each",
                files.len()
            );
        }
        let mut phrases: Vec<SecretString> = Vec::new();
        for path in files {
            let phrase = passphrase(path)?;
            share::check(&phrase)
                .with_context(|| format!("the passphrase in {}", path.display()))?;
            if taken(&phrases, &phrase) {
                bail!(
                    "the passphrase in {} is another holder's as well; each holder has one of his own",
                    path.display()
                );
            }
            phrases.push(phrase);
        }
        return Ok(phrases);
    }
    if !std::io::stdin().is_terminal() {
        bail!(
            "there is no terminal for the {total} holders to type their passphrases at; give --passphrase-file once for each share"
        );
    }
    let mut phrases: Vec<SecretString> = Vec::new();
    for number in 1..=total {
        let phrase = loop {
            let phrase = typed_twice(number, total)?;
            if !taken(&phrases, &phrase) {
                break phrase;
            }
            super::tell("another holder has chosen that one; each holder has one of his own");
        };
        phrases.push(phrase);
    }
    Ok(phrases)
}

fn taken(phrases: &[SecretString], phrase: &SecretString) -> bool {
    phrases
        .iter()
        .any(|other| other.expose_secret() == phrase.expose_secret())
}

fn typed_twice(number: usize, total: usize) -> anyhow::Result<SecretString> {
    loop {
        let first = typed(&format!(
            "Holder of share {number} of {total}, choose a passphrase ({} characters at least): ",
            share::SHORTEST
        ))?;
        if let Err(error) = share::check(&first) {
            super::tell(&error.to_string());
            continue;
        }
        let second = typed("The same again: ")?;
        if first.expose_secret() == second.expose_secret() {
            return Ok(first);
        }
        super::tell("The two are not the same.");
    }
}

fn typed(prompt: &str) -> anyhow::Result<SecretString> {
    Ok(SecretString::from(rpassword::prompt_password(prompt)?))
}

/// The shares in these files, as many as are needed, opened and put together
/// to the key of this copy.
pub(super) fn combined(
    copy: &KekCopyFile,
    files: &[PathBuf],
    passphrase_files: &[PathBuf],
) -> anyhow::Result<TransportKey> {
    let quorum = copy.quorum()?;
    let shares = read(copy, files)?;
    let needed = usize::from(quorum.needed());
    if shares.len() < needed {
        bail!(
            "{} given, and {}",
            if shares.len() == 1 {
                "1 share was".to_owned()
            } else {
                format!("{} shares were", shares.len())
            },
            SplitError::TooFew {
                missing: u8::try_from(needed - shares.len()).unwrap_or(u8::MAX),
                needed: quorum.needed(),
            }
        );
    }
    if !passphrase_files.is_empty() && passphrase_files.len() != files.len() {
        bail!(
            "{} passphrase files were given for {} shares: give them in the order of the shares",
            passphrase_files.len(),
            files.len()
        );
    }
    let mut points = Vec::new();
    for (index, (path, share)) in shares.iter().enumerate().take(needed) {
        let head = share.head();
        let phrase = match passphrase_files.get(index) {
            Some(path) => passphrase(path)?,
            None if std::io::stdin().is_terminal() => typed(&format!(
                "Holder of share {} of {}, your passphrase: ",
                head.number,
                quorum.total()
            ))?,
            None => bail!(
                "there is no terminal to type the passphrases at; give --passphrase-file once for each share"
            ),
        };
        let point = share.open(&phrase).with_context(|| {
            format!(
                "share {} of {}, {}",
                head.number,
                quorum.total(),
                path.display()
            )
        })?;
        points.push(point);
    }
    let points: Vec<&Point> = points.iter().collect();
    let key = secret::combine(&points, quorum)?;
    copy.authenticate(&key)?;
    Ok(key)
}

/// The shares in these files, each of this copy and none twice.
fn read(copy: &KekCopyFile, files: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, Share)>> {
    let mut seen: BTreeMap<u8, PathBuf> = BTreeMap::new();
    let mut shares = Vec::new();
    for path in files {
        let share = read_share(path)?;
        let head = share.head();
        if head.ceremony != copy.copy.ceremony || head.kek != copy.copy.hash {
            bail!(
                "the share {} is of another copy: of KEK {} (ceremony {}), and this copy is of KEK {} (ceremony {})",
                path.display(),
                head.label,
                head.ceremony,
                copy.copy.label,
                copy.copy.ceremony
            );
        }
        if let Some(other) = seen.insert(head.number, path.clone()) {
            bail!(
                "{} and {} are both share {}; shares of {} different holders are needed",
                other.display(),
                path.display(),
                head.number,
                head.quorum.needed()
            );
        }
        shares.push((path.clone(), share));
    }
    Ok(shares)
}

/// One share.
pub(super) fn read_share(path: &Path) -> anyhow::Result<Share> {
    let text = crate::files::read_limited(path, share::MOST)
        .with_context(|| format!("cannot read the share {}", path.display()))?;
    let text = String::from_utf8(text)
        .with_context(|| format!("the share {} is not text", path.display()))?;
    Share::parse(&text).with_context(|| format!("the share {}", path.display()))
}

/// A copy's file.
pub(super) fn read_copy(path: &Path) -> anyhow::Result<KekCopyFile> {
    let text = crate::files::read_limited(path, crate::copies::file::MOST)
        .with_context(|| format!("cannot read the copy {}", path.display()))?;
    KekCopyFile::parse(&text).with_context(|| format!("the copy {}", path.display()))
}

/// The passphrase in a file of its owner's, without the line's end.
fn passphrase(path: &Path) -> anyhow::Result<SecretString> {
    let cannot = || format!("cannot read the passphrase from {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let mode = file.metadata().with_context(cannot)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!(
            "the passphrase file {0} is readable by others (mode {mode:03o}); run: chmod 600 {0}",
            path.display()
        );
    }
    // As large as it may be from the start, so that the buffer never moves.
    let mut text = Zeroizing::new(String::with_capacity(2048));
    file.take(LONGEST + 2)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if u64::try_from(line.len()).unwrap_or(u64::MAX) > LONGEST {
        bail!(
            "the passphrase in {} has more than {LONGEST} bytes",
            path.display()
        );
    }
    Ok(SecretString::from(line.to_owned()))
}
