//! The path of each drive: an operator's command before the host's file, a drive's own before the
//! default of all.

use std::collections::{BTreeMap, BTreeSet};

use crate::drive::DriveSerial;
use crate::proxy::config::{HostConfig, KeyPath};
use crate::proxy::control::{DriveShown, PathFrom, PathShown};

/// Most drives with a path by command.
const MOST: usize = 4_096;

/// What operators have said since the daemon began.
#[derive(Debug, Default)]
pub(super) struct Paths {
    default: Option<KeyPath>,
    drives: BTreeMap<DriveSerial, KeyPath>,
}

impl Paths {
    pub(super) fn of(&self, config: &HostConfig, serial: &DriveSerial) -> (KeyPath, PathFrom) {
        let own = config
            .drives()
            .iter()
            .find(|drive| drive.serial.value == *serial)
            .and_then(|drive| drive.path.as_ref());
        match (self.drives.get(serial), own) {
            (Some(path), _) => (*path, PathFrom::Command),
            (None, Some(own)) => (own.value, PathFrom::Line(own.at)),
            (None, None) => {
                let PathShown { path, by } = self.usual(config);
                (path, by)
            }
        }
    }

    pub(super) fn usual(&self, config: &HostConfig) -> PathShown {
        let (path, by) = match (self.default, &config.path) {
            (Some(path), _) => (path, PathFrom::Command),
            (None, Some(path)) => (path.value, PathFrom::Line(path.at)),
            (None, None) => (KeyPath::default(), PathFrom::Rule),
        };
        PathShown { path, by }
    }

    /// Those that the file or a command names.
    pub(super) fn drives(&self, config: &HostConfig) -> Vec<DriveShown> {
        let listed = config.drives().iter().map(|drive| &drive.serial.value);
        let serials: BTreeSet<&DriveSerial> = self.drives.keys().chain(listed).collect();
        let shown = serials.into_iter().map(|serial| {
            let (path, by) = self.of(config, serial);
            DriveShown {
                serial: serial.clone(),
                path: PathShown { path, by },
            }
        });
        shown.collect()
    }

    pub(super) fn set(
        &mut self,
        drive: Option<DriveSerial>,
        path: Option<KeyPath>,
    ) -> Result<(), String> {
        match (drive, path) {
            (None, path) => self.default = path,
            (Some(serial), None) => drop(self.drives.remove(&serial)),
            (Some(serial), Some(path)) => {
                if self.drives.len() >= MOST && !self.drives.contains_key(&serial) {
                    return Err(format!(
                        "{MOST} drives have a path by command, which is the most; put them into the host's file"
                    ));
                }
                self.drives.insert(serial, path);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HOST: &str = "path = \"in-band\"\n[[drives]]\nserial = \"000000000001\"\npath = \"out-of-band\"\n[[drives]]\nserial = \"000000000002\"\n";

    #[test]
    fn a_command_comes_before_the_file_and_a_drive_before_the_default() {
        let config = HostConfig::parse(Path::new("host.toml"), HOST).unwrap();
        let serial = |n: u32| format!("{n:012}").parse::<DriveSerial>().unwrap();
        let mut paths = Paths::default();
        let of = |paths: &Paths, n| paths.of(&config, &serial(n));
        let (inside, outside) = (KeyPath::InBand, KeyPath::OutOfBand);
        assert_eq!(of(&paths, 1), (outside, PathFrom::Line(4)));
        assert_eq!(of(&paths, 2), (inside, PathFrom::Line(1)));
        assert_eq!(of(&paths, 9), (inside, PathFrom::Line(1)));
        paths.set(None, Some(outside)).unwrap();
        paths.set(Some(serial(1)), Some(inside)).unwrap();
        assert_eq!(of(&paths, 1), (inside, PathFrom::Command));
        assert_eq!(of(&paths, 2), (outside, PathFrom::Command));
        assert_eq!(paths.drives(&config).len(), 2);
        paths.set(Some(serial(9)), Some(inside)).unwrap();
        assert_eq!(paths.drives(&config).len(), 3);
        paths.set(Some(serial(1)), None).unwrap();
        assert_eq!(of(&paths, 1), (outside, PathFrom::Line(4)));
        paths.set(None, None).unwrap();
        assert_eq!(of(&paths, 2), (inside, PathFrom::Line(1)));
        let empty = HostConfig::parse(Path::new("host.toml"), "").unwrap();
        let none = Paths::default().of(&empty, &serial(1));
        assert_eq!(none, (outside, PathFrom::Rule));
    }
}
