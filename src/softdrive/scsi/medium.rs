//! What a drive tells of a cartridge without a key.

use crate::{
    key::{DataKeyId, Eedk},
    softdrive::cartridge::Header,
    t10::{Authenticated, Kad, KadType, Kads, Sense},
};

/// What is on a cartridge, as far as a drive tells without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Nothing.
    Blank,
    /// Blocks in clear.
    Plain,
    /// Encrypted blocks, which name their key.
    Encrypted(MediumKey),
}

impl From<&Header> for Medium {
    fn from(header: &Header) -> Self {
        Self::Encrypted(MediumKey {
            dki: header.dki(),
            eedks: header.eedks().to_vec(),
        })
    }
}

/// How a cartridge names its data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediumKey {
    /// The A-KAD of its blocks.
    pub dki: DataKeyId,
    /// Its EEDKs, where the drive keeps them.
    pub eedks: Vec<Eedk>,
}

impl MediumKey {
    pub(super) fn kads(&self, authenticated: Authenticated) -> Result<Kads, Sense> {
        let Self { dki, eedks } = self;
        let dki = Kad::reported(
            KadType::Authenticated,
            authenticated,
            dki.as_bytes().to_vec(),
        );
        let eedks = eedks
            .iter()
            .map(|eedk| Kad::reported(KadType::WrappedKey, authenticated, eedk.encode()));
        std::iter::once(dki)
            .chain(eedks)
            .collect::<Result<_, _>>()
            .and_then(Kads::new)
            .map_err(|_| Sense::INTERNAL_FAILURE)
    }
}
