//! Cartridges: which can be read, and which cannot.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Site;
use crate::key::KekHash;
use crate::keystore::KnownKek;
use crate::migrate::metadata::KeyUse;
use crate::store::{EedkState, VolumeKey};

/// A cartridge that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LostTape {
    /// Its volume serial.
    pub volser: String,
    /// When it was keyed last, as it was recorded.
    pub since: String,
    /// What it was keyed under.
    pub keks: Vec<String>,
    /// Why.
    pub why: String,
}

/// The cartridges.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tapes {
    /// How many of the history can be read.
    pub readable: usize,
    /// Those that cannot.
    pub unreadable: Vec<LostTape>,
}

pub(super) fn tapes(site: &Site) -> Tapes {
    let mut tapes = Tapes::default();
    let served: BTreeSet<KekHash> = site
        .keks
        .iter()
        .flatten()
        .filter(|kek| kek.custody.is_some())
        .map(|kek| kek.hash)
        .collect();
    // Newest first: the first row of a volume that counts says how it is now.
    let mut seen = BTreeSet::new();
    for key in &site.volumes {
        let counts = match key.state {
            EedkState::Issued | EedkState::Confirmed => true,
            EedkState::Superseded | EedkState::Abandoned => false,
        };
        if !counts || !seen.insert(key.volser.to_string()) {
            continue;
        }
        if site.keks.is_none() || key.eedks.iter().any(|eedk| served.contains(&eedk.kek_hash)) {
            tapes.readable += 1;
            continue;
        }
        let keks: Vec<String> = key
            .eedks
            .iter()
            .map(|eedk| eedk.kek_label.to_string())
            .collect();
        tapes.unreadable.push(LostTape {
            volser: key.volser.to_string(),
            since: key.created.date().to_string(),
            keks,
            why: match out_of_reach(site, key) {
                Some(place) => format!("not before a token is up that has its KEK: {place}"),
                None => "none of its KEKs is on a token".to_owned(),
            },
        });
    }
    tapes
        .unreadable
        .extend(keyed_by_ekm(&site.ekm21, |volser| seen.contains(volser)));
    tapes
}

/// Where one of its KEKs is, if on a token that has not been up.
fn out_of_reach(site: &Site, key: &VolumeKey) -> Option<String> {
    site.keks
        .iter()
        .flatten()
        .filter(|kek| kek.is_away())
        .find(|kek| key.eedks.iter().any(|eedk| eedk.kek_hash == kek.hash))
        .map(KnownKek::place)
}

/// The cartridges that EKM keyed, by volume serial, without those that have been written here since.
pub(super) fn keyed_by_ekm<'a>(
    records: impl IntoIterator<Item = &'a KeyUse>,
    rewritten: impl Fn(&str) -> bool,
) -> Vec<LostTape> {
    let mut last: BTreeMap<&str, &KeyUse> = BTreeMap::new();
    for used in records {
        // Dates are texts; in the form that the manual shows their order is that of time.
        last.insert(&used.volser, used);
    }
    last.into_iter()
        .filter(|(volser, _)| !rewritten(&volser.to_ascii_uppercase()))
        .map(|(volser, used)| LostTape {
            volser: volser.to_owned(),
            since: used.date_time.clone(),
            keks: used.aliases().map(str::to_owned).collect(),
            why: "keyed by EKM 2.1: its EEDK is of IBM's layout".to_owned(),
        })
        .collect()
}
