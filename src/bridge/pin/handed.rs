//! PINs that the server passes to its bridges without reading them.
//!
//! A PIN from an environment variable or from an operator is there once, but
//! bridges are started again and again. It waits in a file in memory that has
//! no name, sealed against changes (memfd_create(2), F_ADD_SEALS), and a
//! bridge gets the descriptor in place of its standard output. So no PIN is
//! ever in the memory, the environment or the arguments of the process that
//! faces the network; what that process could be made to do with the
//! descriptor is no more than what it could do with a PIN file of its user.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Most bytes of all the variables that are taken out of the environment.
const MOST: u64 = 64 << 10;

/// A PIN on its way to a bridge. Whoever has it has a descriptor, not the PIN.
#[derive(Clone, Debug)]
pub struct Handed(Arc<OwnedFd>);

impl Handed {
    /// Puts a PIN into a sealed file of its own.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(pin: &SecretString) -> io::Result<Self> {
        sealed(pin.expose_secret().as_bytes()).map(Self::from)
    }

    /// Takes a descriptor that another process made with [`Handed::new`].
    ///
    /// # Errors
    /// It is not a file in memory that nobody can change any more.
    pub fn accept(descriptor: OwnedFd) -> io::Result<Self> {
        if is_sealed(&descriptor) {
            Ok(Self::from(descriptor))
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is not a sealed file in memory",
            ))
        }
    }

    /// The descriptor itself.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// For the standard output of a bridge.
    ///
    /// # Errors
    /// The operating system's.
    pub fn stdio(&self) -> io::Result<Stdio> {
        self.0.try_clone().map(Stdio::from)
    }

    /// What this bridge was handed; none where it was handed nothing.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn receive() -> io::Result<Option<(Zeroizing<Vec<u8>>, Metadata)>> {
        let stdout = io::stdout();
        if !is_sealed(&stdout) {
            return Ok(None);
        }
        let file = File::from(stdout.as_fd().try_clone_to_owned()?);
        let mut text = Zeroizing::new(vec![0; 300]);
        // At its place: other processes share the position.
        let length = file.read_at(&mut text, 0)?;
        text.truncate(length);
        Ok(Some((text, file.metadata()?)))
    }
}

impl From<OwnedFd> for Handed {
    fn from(descriptor: OwnedFd) -> Self {
        Self(Arc::new(descriptor))
    }
}

fn is_sealed(file: impl AsFd) -> bool {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
    fcntl_get_seals(file).is_ok_and(|found| found.contains(seals))
}

fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("ekm-pin", flags)?);
    file.write_all(content)?;
    file.rewind()?;
    fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK,
    )?;
    Ok(file.into())
}

/// The PINs that came in the environment, by variable.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentPins(Arc<BTreeMap<String, Handed>>);

impl EnvironmentPins {
    /// The variables of this process. They stay in its environment, so this
    /// is for commands that end soon.
    ///
    /// # Errors
    /// The operating system's.
    pub fn of_environment<'a>(names: impl IntoIterator<Item = &'a str>) -> io::Result<Self> {
        let pins = Variables::read(names)?;
        pins.split()
    }

    /// The variables of this process as one sealed file, for the standard
    /// input of the process that takes its place; none where none is set.
    ///
    /// # Errors
    /// The operating system's.
    pub fn to_stdin<'a>(names: impl IntoIterator<Item = &'a str>) -> io::Result<Option<Stdio>> {
        let Variables(found) = Variables::read(names)?;
        if found.is_empty() {
            return Ok(None);
        }
        let text: Vec<(&str, &str)> = found
            .iter()
            .map(|(name, pin)| (name.as_str(), pin.expose_secret()))
            .collect();
        // The size first, so that the buffer never moves and leaves a copy behind.
        let size = postcard::experimental::serialized_size(&text).map_err(io::Error::other)?;
        let mut content = Zeroizing::new(vec![0; size]);
        postcard::to_slice(&text, &mut content).map_err(io::Error::other)?;
        sealed(&content).map(Stdio::from).map(Some)
    }

    /// Takes what [`EnvironmentPins::to_stdin`] made, and closes it.
    ///
    /// # Errors
    /// Standard input is something else.
    pub fn from_stdin() -> io::Result<Self> {
        let stdin = io::stdin();
        if !is_sealed(&stdin) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard input is not a sealed file in memory",
            ));
        }
        let file = File::from(stdin.as_fd().try_clone_to_owned()?);
        let room = usize::try_from(MOST).unwrap_or_default();
        let mut content = Zeroizing::new(Vec::with_capacity(room));
        file.take(MOST).read_to_end(&mut content)?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        let found: Vec<(&str, &str)> = postcard::from_bytes(&content).map_err(io::Error::other)?;
        let found = found
            .into_iter()
            .map(|(name, pin)| (name.to_owned(), SecretString::from(pin)))
            .collect();
        Variables(found).split()
    }

    /// The PIN that was in the variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Handed> {
        self.0.get(name)
    }
}

struct Variables(BTreeMap<String, SecretString>);

impl Variables {
    fn read<'a>(names: impl IntoIterator<Item = &'a str>) -> io::Result<Self> {
        let mut found = BTreeMap::new();
        for name in names {
            match std::env::var(name) {
                Ok(pin) => {
                    found.insert(name.to_owned(), SecretString::from(pin));
                }
                Err(std::env::VarError::NotPresent) => {}
                // The error itself would show it.
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("the PIN in the environment variable {name} is not UTF-8"),
                    ));
                }
            }
        }
        Ok(Self(found))
    }

    /// A file for each: no bridge gets the PIN of another's token.
    fn split(self) -> io::Result<EnvironmentPins> {
        let pins = self
            .0
            .into_iter()
            .map(|(name, pin)| Ok((name, Handed::new(&pin)?)))
            .collect::<io::Result<_>>()?;
        Ok(EnvironmentPins(Arc::new(pins)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handed_pin_cannot_be_changed() {
        let handed = Handed::new(&SecretString::from("1234")).unwrap();
        let mut file = File::from(handed.descriptor().try_clone().unwrap());
        assert!(file.write_all(b"9").is_err());
        assert!(file.set_len(0).is_err());
        assert!(Handed::accept(file.into()).is_ok());
    }

    #[test]
    fn only_a_sealed_file_in_memory_is_accepted() {
        let file = tempfile::tempfile().unwrap();
        assert!(Handed::accept(file.into()).is_err());
        let open = memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(Handed::accept(open).is_err());
    }
}
