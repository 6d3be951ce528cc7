//! `ekm audit verify`, `seal`, `key`, `anchors`, `emergency`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{Context, Found, Switch, output, site};
use crate::admin::{Command, Reply};
use crate::audit::{Anchor, AuditError, Expected, HeadMark, SealKey, Verified, verify_against};

/// Largest file of public keys, bytes.
const MAX_KEYS: u64 = 1 << 20;

pub(super) fn verify(
    context: &Context,
    directory: &Path,
    keys: &[PathBuf],
    seal: Option<Anchor>,
    head: Option<HeadMark>,
    sealed: bool,
) -> anyhow::Result<()> {
    let mut expected = Expected {
        keys: Vec::new(),
        seal,
        head,
        sealed,
    };
    for path in keys {
        let file = crate::files::read_limited(path, MAX_KEYS)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let read = SealKey::read_all(&file);
        expected
            .keys
            .extend(read.with_context(|| path.display().to_string())?);
    }
    match verify_against(directory, &expected) {
        Ok(verified) if context.json => output::json(&verified),
        Ok(verified) => {
            output::say(&format!(
                "{}: good; {} records in {} file(s), {} to {}\nhead {}",
                directory.display(),
                verified.records,
                verified.files,
                verified.first,
                verified.last,
                verified.head_hash
            ))?;
            output::say(&seals(&verified))
        }
        Err(error @ AuditError::File { .. }) => Err(error.into()),
        Err(error) if context.json => {
            output::json(&serde_json::json!({ "fault": error.to_string() }))?;
            Err(Found.into())
        }
        Err(error) => {
            output::say(&format!("{}: {error}", directory.display()))?;
            Err(Found.into())
        }
    }
}

fn seals(verified: &Verified) -> String {
    let sealed = &verified.sealed;
    let Some(newest) = &sealed.newest else {
        return "no seals (ekm audit key --generate): keep the head elsewhere".to_owned();
    };
    let signatures = if sealed.verified {
        "signatures good"
    } else {
        "signatures not verified: no --key"
    };
    format!(
        "{} seal(s), {signatures}; {} record(s) after what the last one covers\nseal {}:{}",
        sealed.seals, sealed.unsealed, newest.number, newest.hash
    )
}

pub(super) fn seal(context: &Context, accept: bool) -> anyhow::Result<()> {
    let reply = site::execute(context, Command::AuditSeal { accept })?;
    let Reply::Sealed(made) = reply else {
        return site::out_of_turn(&reply);
    };
    if context.json {
        return output::json(&made);
    }
    let seal = &made.seal;
    output::say(&format!(
        "sealed by token {}, up to record {}\nseal {}:{}",
        made.token, seal.covers, seal.number, seal.hash
    ))?;
    made.not_anchored
        .iter()
        .try_for_each(|reason| output::say(&format!("not anchored: {reason}")))
}

pub(super) fn key(
    context: &Context,
    generate: Option<u32>,
    token: Option<String>,
    all: bool,
) -> anyhow::Result<()> {
    let reply = site::execute(context, Command::AuditKey { generate, token })?;
    let Reply::SealKeys(mut keys) = reply else {
        return site::out_of_turn(&reply);
    };
    if keys.is_empty() {
        bail!("there is no key that seals; make one on a token: ekm audit key --generate");
    }
    if !all {
        keys.truncate(1);
    }
    if context.json {
        return output::json(&keys);
    }
    keys.iter().try_for_each(|key| {
        output::say(&format!(
            "# seals the audit log; fingerprint {}, token {}",
            key.fingerprint, key.token
        ))?;
        output::say(key.pem.trim_end())
    })
}

pub(super) fn anchors(context: &Context) -> anyhow::Result<()> {
    let reply = site::execute(context, Command::AuditAnchors)?;
    let Reply::Anchors(anchors) = reply else {
        return site::out_of_turn(&reply);
    };
    if context.json {
        return output::json(&anchors);
    }
    for anchor in &anchors {
        let known = [("seal", &anchor.seal), ("head", &anchor.head)];
        for (what, text) in known {
            if let Some(text) = text {
                output::say(&format!("{} {} {what} {text}", anchor.place, anchor.node))?;
            }
        }
    }
    Ok(())
}

pub(super) fn emergency(context: &Context, switch: Switch) -> anyhow::Result<()> {
    let switch = match switch {
        Switch::On => Some(true),
        Switch::Off => Some(false),
        Switch::Status => None,
    };
    let reply = site::execute(context, Command::AuditEmergency { switch })?;
    let Reply::Emergency(seen) = reply else {
        return site::out_of_turn(&reply);
    };
    if context.json {
        return output::json(&seen);
    }
    let yes = |is: bool, yes: &str, no: &str| if is { yes } else { no }.to_owned();
    output::fields(&[
        (
            "emergency",
            yes(seen.on, "on: nothing but resolves is served", "off"),
        ),
        (
            "disk",
            yes(seen.disk_failed, "takes no records", "takes records"),
        ),
        (
            "in memory",
            format!("{} record(s), {} lost", seen.kept, seen.lost),
        ),
        ("reserve", format!("{} bytes", seen.reserve)),
    ])?;
    seen.notes
        .iter()
        .try_for_each(|note| output::paragraph(note))
}
