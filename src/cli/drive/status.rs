//! `ekm drive status`

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::super::{Context, output};
use super::scan::enrolled;
use super::{fingerprint, table_of_server};
use crate::scsi::local::{Claim, InUse};
use crate::scsi::survey::{Cartridge, Depth, Encryption, KadView, NextBlock, Setting, State};
use crate::scsi::{Channel, Drive, Host, Survey, Transport};

/// Which drive, and how much of it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ShowStatus {
    /// The drive: /dev/sgN, its /dev/nstN, or the socket of a SCSI channel.
    device: PathBuf,
    /// Asks for everything also while somebody else uses the drive. He may then
    /// miss a new cartridge or a reset: a write of his can land in the wrong place.
    #[arg(long)]
    force: bool,
    /// Reads TapeAlert flags also where that takes them away from whoever asks
    /// next, a backup program for one (log page 2Eh).
    #[arg(long)]
    take_alerts: bool,
    /// Writes the drive's wrapping key here as PEM, for ekm drive add --key.
    #[arg(long, value_name = "FILE")]
    export_key: Option<PathBuf>,
}

impl ShowStatus {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let (transport, claim) = self.open()?;
        let in_use = claim.as_ref().err().map(ToString::to_string);
        let depth = if in_use.is_some() && !self.force {
            Depth::Names
        } else {
            Depth::Whole {
                take_alerts: self.take_alerts,
            }
        };
        let mut survey = Survey::of(&mut Drive::new(transport), depth)?;
        drop(claim);
        if let Some(path) = &self.export_key {
            export(&survey, path)?;
        }
        let enrolled = self.enrolled(context, &survey);
        if let Some(Enrolled {
            state: "active",
            same_key,
        }) = &enrolled
            && *same_key != Some(false)
            && let Some(verdict) = &mut survey.verdict
        {
            verdict.of_enrolled();
        }
        let seen = Seen {
            survey,
            in_use,
            enrolled,
        };
        if context.json {
            return output::json(&seen);
        }
        seen.show(self.force)
    }

    fn open(&self) -> anyhow::Result<(Box<dyn Transport>, Result<Claim, InUse>)> {
        // As the host's file names a socket.
        let text = self.device.to_str();
        let named = text
            .and_then(|text| text.strip_prefix("unix:"))
            .map(Path::new);
        let device = named.unwrap_or(&self.device);
        let is_socket = std::fs::metadata(device).is_ok_and(|file| file.file_type().is_socket());
        if is_socket || named.is_some() {
            // There is no tape driver in between that could miss anything.
            return Ok((Box::new(Channel::open(device)?), Ok(Claim::none())));
        }
        let host = Host::default();
        let (sg, claim) = host.open(&host.generic_of(&self.device))?;
        Ok((Box::new(sg), claim))
    }

    /// What the drive table says of the drive, where a server answers on this machine.
    fn enrolled(&self, context: &Context, survey: &Survey) -> Option<Enrolled> {
        let table = table_of_server(context)?;
        let state = enrolled(Some(&table), survey.drive.as_ref())?;
        let row = table
            .iter()
            .find(|drive| Some(&drive.serial) == survey.drive.as_ref());
        let shown = survey
            .state
            .as_ref()
            .and_then(|state| state.encryption.as_ref())
            .and_then(|encryption| encryption.wrapping_key.as_ref());
        let same_key = row
            .zip(shown)
            .map(|(row, shown)| &fingerprint(&row.key) == shown);
        Some(Enrolled { state, same_key })
    }
}

/// What is told of a drive.
#[derive(Debug, Serialize)]
struct Seen {
    #[serde(flatten)]
    survey: Survey,
    /// Who else uses it.
    in_use: Option<String>,
    enrolled: Option<Enrolled>,
}

/// What the drive table says of it.
#[derive(Debug, Serialize)]
struct Enrolled {
    /// `active`, `pending` or `no`.
    state: &'static str,
    /// The table has the wrapping key that the drive shows.
    same_key: Option<bool>,
}

impl Seen {
    fn show(&self, force: bool) -> anyhow::Result<()> {
        let Self {
            survey,
            in_use,
            enrolled,
        } = self;
        let mut names = vec![
            ("device", survey.device.clone()),
            (
                "drive",
                format!(
                    "{} {}, firmware {}",
                    survey.vendor, survey.product, survey.revision
                ),
            ),
            ("serial", serial(survey)),
            ("wwn", shown(survey.wwn.as_ref())),
        ];
        if let Some(enrolled) = enrolled {
            names.push(("enrolled", enrolled.to_words().to_owned()));
        }
        let Some(state) = &survey.state else {
            output::fields(&names)?;
            return unasked(in_use.as_deref());
        };
        names.push(("cartridge", state.medium.clone()));
        output::fields(&names)?;
        if let Some(encryption) = &state.encryption {
            section("encryption", &encryption_fields(encryption))?;
        }
        if let Some(setting) = &state.setting {
            section("set to", &setting_fields(setting))?;
        }
        if let Some(cartridge) = &state.cartridge {
            section("cartridge", &cartridge_fields(cartridge))?;
        }
        alerts(state)?;
        if let Some(in_use) = in_use.as_ref().filter(|_| force) {
            output::say("")?;
            output::paragraph(&format!(
                "--force: {in_use}, and it was asked all the same."
            ))?;
        }
        told("it told, and tells nobody else:", &state.attentions)?;
        told("it could not say:", &survey.faults)?;
        if let Some(verdict) = &survey.verdict {
            for sentence in &verdict.told {
                output::say("")?;
                output::paragraph(sentence)?;
            }
        }
        Ok(())
    }
}

impl Enrolled {
    const fn to_words(&self) -> &'static str {
        match (self.state.as_bytes(), self.same_key) {
            (b"no", _) => "no",
            (b"pending", _) => "pending (ekm drive accept)",
            (_, Some(true)) => "yes, with this wrapping key",
            (_, Some(false)) => "yes, but NOT with this wrapping key",
            (_, None) => "yes",
        }
    }
}

/// Why only the names are shown.
fn unasked(in_use: Option<&str>) -> anyhow::Result<()> {
    let Some(in_use) = in_use else { return Ok(()) };
    output::say("")?;
    output::paragraph(&format!(
        "Nothing more was asked: {in_use}. A drive tells a new cartridge or a reset once, to \
         whoever asks first, and who writes the tape must hear it. Ask again when it is free, or \
         with --force."
    ))
}

fn encryption_fields(encryption: &Encryption) -> Vec<(&'static str, String)> {
    let Encryption {
        aes_256_gcm,
        algorithm_index,
        engine,
        key_formats,
        wrapping_key,
        wrapping_key_changes,
        max_eedks,
        max_eedk_len,
        max_ukad_len,
        max_akad_len,
        clears_on_demount,
        lock,
        all_nexus,
        configuration,
        control,
        method,
        ..
    } = encryption;
    let formats: Vec<String> = key_formats
        .iter()
        .map(|format| {
            let word = match format.as_str() {
                "00h" => " in clear",
                "01h" => " maker's reference",
                "02h" => " wrapped for the drive",
                "03h" => " ESP-SCSI",
                _ => "",
            };
            format!("{format}{word}")
        })
        .collect();
    let mut fields = vec![
        (
            "algorithm",
            if *aes_256_gcm {
                format!("AES-256-GCM, index {algorithm_index:02X}h")
            } else {
                "no AES-256-GCM".to_owned()
            },
        ),
        ("done by", (*engine).to_owned()),
        ("host may set", (*configuration).to_owned()),
    ];
    if let Some(control) = control {
        fields.push(("controlled by", (*control).to_owned()));
    }
    if let Some(method) = method {
        fields.push(("IBM method", method.clone()));
    }
    fields.push(("key formats", formats.join(", ")));
    fields.push((
        "wrapping key",
        match wrapping_key {
            Some(key) if *wrapping_key_changes => format!("{key} (CHANGES)"),
            Some(key) => key.clone(),
            None => "none".to_owned(),
        },
    ));
    fields.push((
        "EEDKs kept",
        if *max_eedks == 0 {
            "none".to_owned()
        } else {
            format!("{max_eedks} of at most {max_eedk_len} bytes")
        },
    ));
    fields.push((
        "key names",
        format!("A-KAD of at most {max_akad_len} bytes, U-KAD of at most {max_ukad_len}"),
    ));
    for (name, flag) in [
        ("forgets key at demount", clears_on_demount),
        ("locks to a host", lock),
        ("scope all hosts", all_nexus),
    ] {
        if flag.is_some() {
            fields.push((name, output::yes(*flag).to_owned()));
        }
    }
    fields
}

fn setting_fields(setting: &Setting) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("writing", setting.writing.to_owned()),
        ("reading", setting.reading.to_owned()),
        ("scope", setting.scope.to_owned()),
        ("checks", setting.check.to_owned()),
        (
            "raw reading",
            if setting.raw_disabled {
                "not of what is written now".to_owned()
            } else {
                "as the algorithm has it".to_owned()
            },
        ),
        ("keys accepted", setting.key_instance.to_string()),
    ];
    fields.extend(kads(setting.dki.map(|dki| dki.to_string()), &setting.kads));
    fields
}

fn cartridge_fields(cartridge: &Cartridge) -> Vec<(&'static str, String)> {
    let Cartridge {
        write_protected,
        software_write_protect,
        saved_software_write_protect,
        block,
        next_block,
        barcode,
        medium_serial,
        memory,
        memory_free,
        first_encrypted,
        first_unencrypted,
    } = cartridge;
    let mut fields = vec![
        ("barcode", shown(barcode.as_ref())),
        ("medium serial", shown(medium_serial.as_ref())),
        ("write protected", output::yes(*write_protected).to_owned()),
    ];
    if let Some(swp) = software_write_protect {
        let after = match saved_software_write_protect {
            Some(true) if *swp => ", and after power on",
            Some(true) => "; yes after power on or a reset",
            Some(false) if *swp => "; no after power on or a reset",
            Some(false) | None => "",
        };
        let now = if *swp { "yes" } else { "no" };
        fields.push(("by the drive (SWP)", format!("{now}{after}")));
    }
    fields.push((
        "memory",
        match (memory, memory_free) {
            (Some(memory), Some(free)) => format!("{memory} bytes, {free} free"),
            (None, Some(free)) => format!("{free} bytes free"),
            (Some(memory), None) => format!("{memory} bytes"),
            (None, None) => "-".to_owned(),
        },
    ));
    if let Some(block) = first_encrypted {
        fields.push(("encrypted from block", block.to_string()));
    }
    if let Some(block) = first_unencrypted {
        fields.push(("in clear from block", block.to_string()));
    }
    fields.push(("next block", shown(block.as_ref())));
    if let Some(NextBlock {
        status,
        dki,
        kads: names,
    }) = next_block
    {
        fields.push(("it is", (*status).to_owned()));
        fields.extend(kads(dki.map(|dki| dki.to_string()), names));
    }
    fields
}

/// What blocks say of their key; an A-KAD that is a DKi is shown as one.
fn kads(dki: Option<String>, kads: &[KadView]) -> Vec<(&'static str, String)> {
    let is_dki = dki.is_some();
    let mut fields: Vec<_> = dki.into_iter().map(|dki| ("DKi", dki)).collect();
    fields.extend(
        kads.iter()
            .filter(|kad| !(is_dki && kad.kind == "A-KAD"))
            .map(|kad| {
                let text = match &kad.text {
                    Some(text) => format!("{text:?}"),
                    None if kad.hex.len() > 48 => format!("{} bytes", kad.hex.len() / 2),
                    None => kad.hex.clone(),
                };
                (kad.kind, text)
            }),
    );
    fields
}

fn alerts(state: &State) -> anyhow::Result<()> {
    let Some(alerts) = &state.alerts else {
        return Ok(());
    };
    let alerts: Vec<String> = alerts
        .iter()
        .map(|alert| {
            let meaning = alert.meaning.unwrap_or("see the drive's manual");
            format!("TapeAlert {}: {meaning}", alert.flag)
        })
        .collect();
    told("it warns:", &alerts)
}

fn section(title: &str, fields: &[(&str, String)]) -> anyhow::Result<()> {
    output::say("")?;
    output::say(&title.to_uppercase())?;
    output::fields(fields)
}

fn told(title: &str, lines: &[String]) -> anyhow::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    output::say("")?;
    output::say(title)?;
    lines
        .iter()
        .try_for_each(|line| output::paragraph(&format!("- {line}")))
}

fn serial(survey: &Survey) -> String {
    match (&survey.serial, &survey.drive) {
        (Some(own), Some(table)) if own != table.as_str() => format!("{own} (as {table})"),
        (own, _) => shown(own.as_ref()),
    }
}

fn shown<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn export(survey: &Survey, path: &Path) -> anyhow::Result<()> {
    let Some(spki) = survey.wrapping_key() else {
        bail!(
            "{} shows no wrapping key (page 0031h), so nothing is written to {}",
            survey.device,
            path.display()
        );
    };
    let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, &spki)
        .map_err(|error| anyhow::anyhow!("cannot write PEM: {error}"))?;
    std::fs::write(path, pem).with_context(|| format!("cannot write {}", path.display()))
}
