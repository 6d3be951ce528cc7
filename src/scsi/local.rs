//! Which tape drives this host has, and whether one is in use. All from sysfs and /proc; no drive
//! is sent a command.
//!
//! A drive has two nodes. The tape driver's, `/dev/nstN`, is for whoever writes the tape and can be
//! open once; `/dev/sgN` is for commands, and can be open often. The drive knows one initiator
//! only, this host: what it tells with a unit attention, a new cartridge or a reset, it tells once,
//! to whichever of the two asks first. Where a command of ours takes it, the tape driver goes on
//! with a position that no longer holds, and the next write lands where it should not. So whoever
//! sends more than INQUIRY first takes a [`Claim`].

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::sg::{OpenError, Sg};
use crate::drive::Wwn;
use crate::t10::{Designators, Inquiry, UnitSerial};

/// Where the kernel tells of its devices, and where their nodes are.
#[derive(Clone, Debug)]
pub struct Host {
    sys: PathBuf,
    dev: PathBuf,
    proc: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self::new("/")
    }
}

impl Host {
    /// A host whose `sys`, `dev` and `proc` are in this directory.
    pub fn new(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        Self {
            sys: root.join("sys"),
            dev: root.join("dev"),
            proc: root.join("proc"),
        }
    }

    /// The tape drives, by the number of their `/dev/sgN`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] where the kernel has no SCSI generic driver.
    pub fn tape_drives(&self) -> io::Result<Vec<LocalDrive>> {
        let mut drives = Vec::new();
        for entry in fs::read_dir(self.sys.join("class/scsi_generic"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let device = self.generic(&name);
            if word(&device, "type").as_deref() != Some(TAPE) {
                continue;
            }
            drives.push(LocalDrive {
                generic: self.dev.join(&name),
                tape: self.tape_of(&name).map(|tape| self.dev.join(tape)),
                vendor: word(&device, "vendor").unwrap_or_default(),
                product: word(&device, "model").unwrap_or_default(),
                revision: word(&device, "rev").unwrap_or_default(),
                serial: vital(&device, UnitSerial::PAGE)
                    .and_then(|page| UnitSerial::decode(&page).ok())
                    .map(|serial| serial.0)
                    .filter(|serial| !serial.is_empty()),
                wwn: vital(&device, Designators::PAGE)
                    .and_then(|page| Designators::decode(&page).ok())
                    .and_then(|page| page.logical_unit()),
            });
        }
        drives.sort_by_key(|drive| number(&drive.generic));
        Ok(drives)
    }

    /// The `/dev/sgN` of a drive that was named by it or by a node of the tape driver's.
    pub fn generic_of(&self, path: &Path) -> PathBuf {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return path.to_owned();
        };
        let generic = self
            .sys
            .join("class/scsi_tape")
            .join(name)
            .join("device/scsi_generic");
        names(&generic)
            .into_iter()
            .next()
            .map_or_else(|| path.to_owned(), |generic| self.dev.join(generic))
    }

    /// Opens a drive, and claims it where nobody else uses it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where it cannot be opened at all.
    pub fn open(&self, path: &Path) -> Result<(Sg, Result<Claim, InUse>), OpenError> {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let sg = match Sg::open_alone(path) {
            Ok(sg) => sg,
            Err(OpenError::Busy { .. }) => {
                let users = self.users(path);
                return Ok((Sg::open(path)?, Err(InUse::new(path, &users))));
            }
            Err(error) => return Err(error),
        };
        let Some(tape) = self.tape_of(&name) else {
            return Ok((sg, Ok(Claim::none())));
        };
        let tape = self.dev.join(tape);
        // As `mt status` opens it: the driver looks at the drive, takes what unit attention waits,
        // and moves nothing. While it is open here, nobody else can open it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let claim = match openat(CWD, &tape, flags, Mode::empty()) {
            Ok(file) => Ok(Claim { _tape: Some(file) }),
            Err(Errno::BUSY) => Err(InUse::new(&tape, &self.users(&tape))),
            Err(errno) => Err(InUse(format!(
                "whether somebody uses {} cannot be told: {}",
                tape.display(),
                io::Error::from(errno)
            ))),
        };
        Ok((sg, claim))
    }

    /// Who has a node open, as far as this user may see it.
    fn users(&self, node: &Path) -> BTreeSet<String> {
        let mut users = BTreeSet::new();
        for pid in names(&self.proc) {
            if users.len() == MAX_USERS || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let process = self.proc.join(&pid);
            let holds = names(&process.join("fd")).iter().any(|file| {
                fs::read_link(process.join("fd").join(file)).is_ok_and(|link| link == node)
            });
            if holds && pid != std::process::id().to_string() {
                let name = word(&process, "comm").unwrap_or_default();
                users.insert(format!("{name}, process {pid}"));
            }
        }
        users
    }

    fn generic(&self, name: &str) -> PathBuf {
        self.sys
            .join("class/scsi_generic")
            .join(name)
            .join("device")
    }

    /// `nstN` of a drive.
    fn tape_of(&self, generic: &str) -> Option<String> {
        names(&self.generic(generic).join("scsi_tape"))
            .into_iter()
            .find(|name| {
                name.strip_prefix("nst").is_some_and(|number| {
                    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
                })
            })
    }
}

/// A tape drive of this host, as the kernel found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDrive {
    /// `/dev/sgN`.
    pub generic: PathBuf,
    /// `/dev/nstN`, where the tape driver has it.
    pub tape: Option<PathBuf>,
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION.
    pub product: String,
    /// PRODUCT REVISION LEVEL.
    pub revision: String,
    /// The serial number of VPD page 80h, as the drive spells it.
    pub serial: Option<String>,
    /// The world-wide name of its logical unit, of VPD page 83h.
    pub wwn: Option<Wwn>,
}

/// That nobody else uses a drive, and nobody else can as long as this lives.
#[derive(Debug)]
pub struct Claim {
    _tape: Option<OwnedFd>,
}

impl Claim {
    /// The claim on a drive that no tape driver has.
    pub const fn none() -> Self {
        Self { _tape: None }
    }
}

/// Somebody uses a drive: who, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InUse(String);

impl InUse {
    fn new(node: &Path, users: &BTreeSet<String>) -> Self {
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        let users = if users.is_empty() {
            "another program".to_owned()
        } else {
            users.join("; ")
        };
        Self(format!("{} is open ({users})", node.display()))
    }
}

/// What a directory holds, in order; nothing where there is none.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// A file of one line, without what is not printable.
fn word(directory: &Path, name: &str) -> Option<String> {
    let text = crate::files::read_limited(&directory.join(name), MAX_FILE).ok()?;
    let text = String::from_utf8_lossy(&text);
    let text: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    Some(text)
}

/// A page of vital product data, which the kernel has read when it found the drive.
fn vital(device: &Path, page: u8) -> Option<Vec<u8>> {
    let name = format!("vpd_pg{page:02x}");
    crate::files::read_limited(&device.join(name), MAX_FILE).ok()
}

fn number(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.trim_start_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .ok()
}

/// [`Inquiry::TAPE`], as the kernel writes it.
const TAPE: &str = "1";
const _: () = assert!(Inquiry::TAPE == 1);

/// A file of sysfs is a page of memory at most; VPD pages may have more.
const MAX_FILE: u64 = 64 * 1024;

/// Names of more users help nobody.
const MAX_USERS: usize = 4;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host with a disk, a library's changer and two drives, the second without a tape node.
    fn host() -> (Host, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        for (name, kind, tape) in [
            ("sg0", "0", ""),
            ("sg2", "8", ""),
            ("sg10", "1", ""),
            ("sg3", "1", "nst0"),
        ] {
            let device = root.path().join("sys/devices").join(name);
            fs::create_dir_all(device.join("scsi_generic").join(name)).unwrap();
            for (file, text) in [
                ("type", kind),
                ("vendor", "HP      "),
                ("model", "Ultrium 6-SCSI  "),
                ("rev", "J3UZ"),
            ] {
                fs::write(device.join(file), format!("{text}\n")).unwrap();
            }
            let class = root.path().join("sys/class/scsi_generic").join(name);
            fs::create_dir_all(&class).unwrap();
            symlink(&device, class.join("device")).unwrap();
            if !tape.is_empty() {
                fs::write(device.join("vpd_pg80"), b"\x01\x80\0\x0aHUJ5485716").unwrap();
                let wwn = "500104F000ABCDEF".parse().unwrap();
                fs::write(device.join("vpd_pg83"), Designators::of_naa(wwn)).unwrap();
                for node in ["st0", "st0a", "nst0a", tape] {
                    fs::create_dir_all(device.join("scsi_tape").join(node)).unwrap();
                    let class = root.path().join("sys/class/scsi_tape").join(node);
                    fs::create_dir_all(&class).unwrap();
                    symlink(&device, class.join("device")).unwrap();
                }
            }
        }
        (Host::new(root.path()), root)
    }

    #[test]
    fn tape_drives_are_found_with_their_names() {
        let (host, root) = host();
        let drives = host.tape_drives().unwrap();
        let generic: Vec<_> = drives.iter().map(|drive| &drive.generic).collect();
        assert_eq!(
            generic,
            [&root.path().join("dev/sg3"), &root.path().join("dev/sg10")]
        );
        let first = &drives[0];
        assert_eq!(first.tape, Some(root.path().join("dev/nst0")));
        assert_eq!(
            (first.vendor.as_str(), first.product.as_str()),
            ("HP", "Ultrium 6-SCSI")
        );
        assert_eq!(first.serial.as_deref(), Some("HUJ5485716"));
        assert_eq!(first.wwn.unwrap().to_string(), "500104F000ABCDEF");
        assert_eq!((&drives[1].tape, &drives[1].serial), (&None, &None));
    }

    #[test]
    fn host_without_the_driver_says_so() {
        let root = tempfile::tempdir().unwrap();
        let error = Host::new(root.path()).tape_drives().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn tape_node_leads_to_the_generic_one() {
        let (host, root) = host();
        for given in ["/dev/nst0", "/dev/st0", "/dev/st0a"] {
            assert_eq!(
                host.generic_of(Path::new(given)),
                root.path().join("dev/sg3")
            );
        }
        for given in ["/dev/sg3", "/run/drive.scsi", "/"] {
            assert_eq!(host.generic_of(Path::new(given)), Path::new(given));
        }
    }

    #[test]
    fn users_of_a_node_are_named() {
        let (host, root) = host();
        let node = root.path().join("dev/nst0");
        let process = root.path().join("proc/4711");
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), "tar\n").unwrap();
        symlink(&node, process.join("fd/3")).unwrap();
        assert_eq!(
            InUse::new(&node, &host.users(&node)).to_string(),
            format!("{} is open (tar, process 4711)", node.display())
        );
        let other = root.path().join("dev/nst1");
        assert!(
            InUse::new(&other, &host.users(&other))
                .to_string()
                .contains("another program")
        );
    }
}
