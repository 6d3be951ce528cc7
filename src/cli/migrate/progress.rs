//! What of a migration's steps is done already.

use std::path::Path;

use super::super::site;
use crate::admin::{Command, Reply};
use crate::bridge::profile::HsmProfile;
use crate::config::{Config, TokenConfig};
use crate::keystore::KnownKek;
use crate::migrate::plan::Plan;
use crate::migrate::steps::Progress;
use crate::store::{Defaults, DriveState};

/// Looks at the site of that ekm.toml. What cannot be looked at counts as not done.
pub(super) fn of(path: &Path, plan: &Plan) -> Progress {
    let Ok(config) = Config::draft(path) else {
        return Progress::default();
    };
    let server = &config.server;
    let mut done = Progress {
        certificates: [&server.certificate, &server.key, &server.client_ca]
            .iter()
            .all(|file| file.is_file()),
        token: !config.tokens.is_empty() && config.tokens.iter().all(is_there),
        ..Progress::default()
    };
    // Opening a state makes it.
    if !config.state.join("state.db").exists() {
        return done;
    }
    let ask = |command| site::execute_with_pin(&config, command, None);
    if let Ok(Reply::Drives(drives)) = ask(Command::DriveList) {
        let active = drives
            .into_iter()
            .filter(|drive| drive.state == DriveState::Active);
        done.drives = active.map(|drive| drive.serial).collect();
    }
    let mut keks: Vec<KnownKek> = Vec::new();
    // Where there is no token nobody need log in to it.
    if done.token
        && let Ok(Reply::Keks(all)) = ask(Command::KekList)
    {
        keks = all;
        keks.retain(|kek| !kek.tokens.is_empty());
    }
    done.keks = keks.iter().map(|kek| kek.hash).collect();
    if let Ok(Reply::Defaults(set)) = ask(Command::KekDefault {
        set: None,
        anyway: false,
    }) {
        let Defaults { kek1, kek2 } = &plan.defaults;
        let mut labels = [kek1, kek2].into_iter().flatten();
        done.defaults = set == plan.defaults
            && kek1.is_some()
            && labels.all(|wanted| keks.iter().any(|kek| kek.label.same_as(&wanted.label)));
    }
    done
}

/// Only of a token with a directory of its own that can be told without asking it.
fn is_there(token: &TokenConfig) -> bool {
    let Ok(mut profile) = HsmProfile::load(&token.profile) else {
        return false;
    };
    let Some(directory) = &token.directory else {
        return false;
    };
    profile.settle(directory);
    profile.module.keeps.is_some() && profile.there().is_ok()
}
