//! The way to a drive of the host's file: opened when it is needed, and again when it was lost.
//!
//! Names and numbers of devices move: a drive that was away can be another `/dev/sgN` and `/dev/nstN`
//! when it comes back, and its old names another drive's. So no command goes through a descriptor
//! whose drive has not said its serial first, and a tape device is looked for each time.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::seams::{Hold, HoldError};
use super::st::St;
use crate::drive::DriveSerial;
use crate::proxy::{Device, HostDrive};
use crate::scsi::{Channel, Completion, Data, Drive, DriveError, Sg, Transport, TransportError};

/// Where a drive is: as the host's file says, or where it is found by its serial.
#[derive(Clone, Debug)]
struct Place {
    serial: DriveSerial,
    device: Option<Device>,
    /// Where `sys` and `dev` are.
    root: PathBuf,
}

impl Place {
    fn device(&self) -> io::Result<Device> {
        match &self.device {
            Some(device) => Ok(device.clone()),
            None => find(&self.root, &self.serial).map(Device::Sg),
        }
    }
}

/// The transport to a drive.
pub struct Way {
    place: Place,
    name: String,
    open: Option<Open>,
}

/// A way that is open, whose drive has said that it is the one.
enum Open {
    Sg(Sg),
    Channel(Channel),
}

impl Open {
    fn transport(&mut self) -> &mut dyn Transport {
        match self {
            Self::Sg(sg) => sg,
            Self::Channel(channel) => channel,
        }
    }

    /// A channel connects anew by itself, and who answers then has not been asked.
    fn stands(&self) -> bool {
        match self {
            Self::Sg(_) => true,
            Self::Channel(channel) => channel.stands(),
        }
    }
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// The seat of a drive: its tape device, or none where it is a channel.
#[derive(Debug)]
pub struct WaySeat {
    place: Place,
    st: Option<St>,
    tape: String,
    /// Where the kernel counts what fails.
    counts: Option<PathBuf>,
}

/// Transport and seat of a drive; nothing is opened yet.
#[must_use]
pub fn way(drive: &HostDrive) -> (Way, WaySeat) {
    way_under(Path::new("/"), drive)
}

/// The same on a host whose `sys` and `dev` are in that directory.
pub(super) fn way_under(root: &Path, drive: &HostDrive) -> (Way, WaySeat) {
    let place = Place {
        serial: drive.serial.value.clone(),
        device: drive.device.as_ref().map(|device| device.value.clone()),
        root: root.to_owned(),
    };
    let name = match &place.device {
        Some(device) => format!("drive {} ({device})", place.serial),
        None => format!("drive {}", place.serial),
    };
    let seat = WaySeat {
        tape: format!("the tape device of drive {}", place.serial),
        place: place.clone(),
        st: None,
        counts: None,
    };
    let way = Way {
        place,
        name,
        open: None,
    };
    (way, seat)
}

impl Way {
    fn opened(&mut self) -> Result<&mut Open, TransportError> {
        let open = match self.open.take() {
            Some(open) if open.stands() => open,
            _ => self.open_anew()?,
        };
        Ok(self.open.insert(open))
    }

    fn open_anew(&self) -> Result<Open, TransportError> {
        let open = self.place.device().and_then(|device| match device {
            Device::Sg(path) => Sg::open(&path).map(Open::Sg).map_err(io::Error::other),
            Device::Channel(path) => Channel::open(&path)
                .map(Open::Channel)
                .map_err(io::Error::other),
        });
        let mut open = open.map_err(|source| self.io(source))?;
        self.identify(open.transport())?;
        Ok(open)
    }

    /// INQUIRY alone, which takes no unit attention from whosever drive it is.
    fn identify(&self, transport: &mut dyn Transport) -> Result<(), TransportError> {
        let shown = match Drive::new(transport).unit_serial() {
            Ok(shown) => shown.0,
            Err(DriveError::Transport { source, .. }) => return Err(source),
            Err(error) => return Err(self.io(io::Error::other(error))),
        };
        if shown.trim().parse::<DriveSerial>().as_ref() == Ok(&self.place.serial) {
            return Ok(());
        }
        Err(TransportError::OtherDrive {
            device: self.name.clone(),
            expected: self.place.serial.to_string(),
            got: shown,
        })
    }

    fn io(&self, source: io::Error) -> TransportError {
        TransportError::Io {
            device: self.name.clone(),
            source,
        }
    }
}

impl Transport for Way {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        let done = self.opened()?.transport().execute(cdb, data, limit);
        // The next command opens it anew: a device that was switched off has another file by then.
        if done.is_err() {
            self.open = None;
        }
        done
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Hold for WaySeat {
    fn take(&mut self) -> Result<(), HoldError> {
        // Looked for anew each time: numbers move, also while it is held.
        self.release();
        let lost = |source| HoldError::Open {
            tape: self.tape.clone(),
            source,
        };
        match self.place.device().map_err(lost)? {
            Device::Channel(path) => {
                self.tape = format!("unix:{}", path.display());
                Ok(())
            }
            Device::Sg(path) => {
                let mut st = St::under(&self.place.root, &path).map_err(lost)?;
                let taken = st.take();
                self.tape = st.tape().to_owned();
                self.counts = Some(st.directory().to_owned());
                self.st = taken.is_ok().then_some(st);
                taken
            }
        }
    }

    fn release(&mut self) {
        self.st = None;
    }

    fn tape(&self) -> &str {
        &self.tape
    }

    fn failures(&self) -> Option<u64> {
        super::st::failures(self.counts.as_deref()?)
    }
}

/// The SCSI generic device of the drive with this serial, without a word to any drive: the kernel
/// keeps VPD page 80h of each.
fn find(root: &Path, serial: &DriveSerial) -> io::Result<PathBuf> {
    let class = root.join("sys/class/scsi_generic");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(class)? {
        let entry = entry?;
        let device = entry.path().join("device");
        let kind = std::fs::read_to_string(device.join("type")).unwrap_or_default();
        if kind.trim() != "1" {
            continue;
        }
        let page = std::fs::read(device.join("vpd_pg80")).unwrap_or_default();
        let shown = page.get(4..).unwrap_or_default();
        let shown = String::from_utf8_lossy(shown);
        let shown = shown.trim_matches(['\0', ' ']);
        if shown.parse::<DriveSerial>().as_ref() == Ok(serial) {
            return Ok(root.join("dev").join(entry.file_name()));
        }
        seen.push(format!("{} ({shown})", entry.file_name().to_string_lossy()));
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!(
            "no tape drive with serial {serial} on this host; there are {}",
            if seen.is_empty() {
                "none".to_owned()
            } else {
                seen.join(", ")
            }
        ),
    ))
}
