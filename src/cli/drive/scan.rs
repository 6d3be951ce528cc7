//! `ekm drive scan`

use std::io;

use anyhow::bail;
use serde::Serialize;

use super::super::{Context, output};
use super::{state, table_of_server};
use crate::drive::{DriveSerial, Wwn};
use crate::scsi::Host;
use crate::store::Drive;

/// Nothing more to say.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Scan {}

impl Scan {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let drives = match Host::default().tape_drives() {
            Ok(drives) => drives,
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "this host has no SCSI generic driver, and so no /dev/sgN; load it: modprobe sg"
            ),
            Err(error) => return Err(error.into()),
        };
        let table = table_of_server(context);
        let found: Vec<Found> = drives
            .into_iter()
            .map(|drive| {
                let table_serial = drive
                    .serial
                    .as_ref()
                    .and_then(|serial| serial.parse::<DriveSerial>().ok());
                Found {
                    enrolled: enrolled(table.as_deref(), table_serial.as_ref()),
                    device: drive.generic.display().to_string(),
                    tape: drive.tape.map(|tape| tape.display().to_string()),
                    vendor: drive.vendor,
                    product: drive.product,
                    revision: drive.revision,
                    serial: drive.serial,
                    drive: table_serial,
                    wwn: drive.wwn,
                }
            })
            .collect();
        if context.json {
            return output::json(&found);
        }
        if found.is_empty() {
            return output::say("this host has no tape drive");
        }
        output::table(
            &["device", "tape", "drive", "serial", "enrolled"],
            found.iter().map(|found| {
                let dash = || "-".to_owned();
                vec![
                    found.device.clone(),
                    found.tape.clone().unwrap_or_else(dash),
                    format!("{} {}", found.vendor, found.product),
                    found.serial.clone().unwrap_or_else(dash),
                    found.enrolled.map_or_else(dash, str::to_owned),
                ]
            }),
        )
    }
}

/// A drive of this host.
#[derive(Debug, Serialize)]
struct Found {
    device: String,
    tape: Option<String>,
    vendor: String,
    product: String,
    revision: String,
    serial: Option<String>,
    drive: Option<DriveSerial>,
    wwn: Option<Wwn>,
    enrolled: Option<&'static str>,
}

/// `active`, `pending` or `no`; none where no server answers on this machine.
pub(super) fn enrolled(
    table: Option<&[Drive]>,
    serial: Option<&DriveSerial>,
) -> Option<&'static str> {
    let row = table?.iter().find(|drive| Some(&drive.serial) == serial);
    Some(row.map_or("no", state))
}
