//! Keys on a tape: security protocols 00h and 20h, and the block keys that follow from them.

use secrecy::SecretBox;

use super::{
    Quirk, TapeDrive,
    cipher::BlockKey,
    command::{Check, Command},
    image::{Found, Image, Kind, Seal},
};
use crate::{
    softdrive::{
        Target,
        scsi::{Next, Place},
    },
    t10::{
        Authenticated, CheckMode, DecryptionMode, DevicePublicKey, EncryptionMode, InPage, Kad,
        KadType, Kads, SecurityProtocol, Sense, SenseKey, Status,
    },
};

/// The keys of blocks, made from the data key that is set.
#[derive(Debug, Default)]
pub(super) struct BlockKeys {
    /// The key instance that they are of.
    instance: u32,
    writing: Option<BlockKey>,
    reading: Option<BlockKey>,
    /// The key instance that the drive is locked to (LOCK).
    locked: Option<u32>,
}

impl BlockKeys {
    /// Forgets all keys, as another tape begins.
    pub(super) fn clear(&mut self) {
        self.writing = None;
        self.reading = None;
    }

    /// Ends a lock, as a reset does.
    pub(super) fn unlock(&mut self) {
        self.locked = None;
    }

    fn follow(&mut self, target: &Target) {
        if self.instance != target.key_instance() {
            self.clear();
            self.instance = target.key_instance();
        }
    }

    /// Whether the key is still the one that was locked.
    pub(super) fn check_lock(&self, target: &Target) -> Result<(), Sense> {
        match self.locked {
            Some(instance) if instance != target.key_instance() => Err(INSTANCE_CHANGED),
            Some(_) | None => Ok(()),
        }
    }

    /// How the next block is to be written.
    pub(super) fn for_writing(
        &mut self,
        target: &Target,
    ) -> Result<(Kind, Option<&BlockKey>), Sense> {
        self.follow(target);
        let (Some(parameters), Some(data_key)) = (target.parameters(), target.data_key()) else {
            return Ok((Kind::Clear, None));
        };
        if parameters.encryption != EncryptionMode::Encrypt {
            return Ok((Kind::Clear, None));
        }
        let key = match &mut self.writing {
            Some(key) => key,
            none => none.insert(BlockKey::fresh(data_key).map_err(|_| Sense::INTERNAL_FAILURE)?),
        };
        let mut seal = key.next().map_err(|_| Sense::INTERNAL_FAILURE)?;
        seal.ukad = one(&parameters.kads, KadType::Unauthenticated);
        // A drive that is given no A-KAD records zeros.
        seal.akad = Some(
            one(&parameters.kads, KadType::Authenticated).unwrap_or_else(|| vec![0; AKAD_LEN]),
        );
        Ok((Kind::Encrypted(seal), Some(key)))
    }

    /// The key of an encrypted block.
    pub(super) fn for_reading(&mut self, target: &Target, seal: &Seal) -> Result<&BlockKey, Sense> {
        self.follow(target);
        let (Some(parameters), Some(data_key)) = (target.parameters(), target.data_key()) else {
            return Err(Sense::UNABLE_TO_DECRYPT);
        };
        match parameters.decryption {
            DecryptionMode::Disable | DecryptionMode::Raw => return Err(Sense::UNABLE_TO_DECRYPT),
            DecryptionMode::Decrypt | DecryptionMode::Mixed => {}
        }
        if parameters.check_mode == CheckMode::NotEncrypt {
            return Err(MODE_MISMATCH);
        }
        self.open(data_key, seal)?.ok_or(Sense::INCORRECT_KEY)
    }

    fn open(
        &mut self,
        data_key: &SecretBox<[u8; 32]>,
        seal: &Seal,
    ) -> Result<Option<&BlockKey>, Sense> {
        if !self.reading.as_ref().is_some_and(|key| key.opens(seal)) {
            self.reading = BlockKey::of(data_key, seal).map_err(|_| Sense::INTERNAL_FAILURE)?;
        }
        Ok(self.reading.as_ref())
    }
}

/// Whether a block in clear may be read.
pub(super) fn clear_allowed(target: &Target) -> Result<(), Sense> {
    match target.parameters().map(|parameters| parameters.decryption) {
        Some(DecryptionMode::Decrypt) => Err(NOT_ENCRYPTED),
        Some(DecryptionMode::Disable | DecryptionMode::Raw | DecryptionMode::Mixed) | None => {
            Ok(())
        }
    }
}

impl TapeDrive {
    pub(super) fn security_in(&mut self, command: Command<'_>) -> Result<Vec<u8>, Check> {
        let data_encryption = SecurityProtocol::TapeDataEncryption.code();
        let page = (command.u8(1) == data_encryption)
            .then(|| InPage::try_from(command.u16(2)).ok())
            .flatten();
        if self.image.is_some() {
            let place = self.place()?;
            self.target.stand(place);
        }
        let mut bytes = self.target.spin(command.bytes())?;
        if page == Some(InPage::Status) {
            bytes = self.status(command, bytes)?;
        }
        if page == Some(InPage::PublicKey) && self.has(Quirk::ChangingPublicKey) {
            bytes = other_public_key()?;
        }
        let stretch = if self.has(Quirk::LongPages) {
            16
        } else if self.has(Quirk::ShortPages) {
            u16::MAX
        } else {
            0
        };
        if page.is_some()
            && let Some([_, _, high, low]) = bytes.first_chunk_mut()
        {
            let length = u16::from_be_bytes([*high, *low]).wrapping_add(stretch);
            [*high, *low] = length.to_be_bytes();
        }
        bytes.truncate(usize::try_from(command.u32(6)).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// The page 0020h, as a drive with these quirks has it.
    fn status(&self, command: Command<'_>, honest: Vec<u8>) -> Result<Vec<u8>, Sense> {
        if !self.has(Quirk::OtherDki) && !self.has(Quirk::CounterRestarts) {
            return Ok(honest);
        }
        let mut whole = command.bytes().to_vec();
        for (at, byte) in (6..).zip(u32::from(u16::MAX).to_be_bytes()) {
            if let Some(to) = whole.get_mut(at) {
                *to = byte;
            }
        }
        let page = self.target.spin(&whole)?;
        let mut status = Status::decode(&page).map_err(|_| Sense::INTERNAL_FAILURE)?;
        if self.has(Quirk::CounterRestarts) && status.encryption != EncryptionMode::Disable {
            status.key_instance = 1;
        }
        if self.has(Quirk::OtherDki) {
            status.kads = Kads::new(vec![kad(
                KadType::Authenticated,
                Authenticated::NotReported,
                b"ODD\x01\x02\x03\x04\x05\x06\x07\x08\x09",
            )?])
            .map_err(|_| Sense::INTERNAL_FAILURE)?;
        }
        Ok(status.encode())
    }

    pub(super) fn security_out(
        &mut self,
        command: Command<'_>,
        data: &[u8],
    ) -> Result<usize, Check> {
        if self.has(Quirk::IgnoresKey) {
            return Ok(data.len());
        }
        self.target.spout(command.bytes(), data)?;
        let instance = self.target.key_instance();
        let locked = self
            .target
            .parameters()
            .is_some_and(|parameters| parameters.lock);
        self.keys.locked = locked.then_some(instance);
        self.renew_eedks()?;
        Ok(data.len())
    }

    /// New EEDKs of a data key that the tape knows replace the old ones; of another data key they
    /// are kept when its first block is written.
    fn renew_eedks(&mut self) -> Result<(), Sense> {
        let (Some(image), Some(parameters)) = (&mut self.image, self.target.parameters()) else {
            return Ok(());
        };
        let Some((akad, eedks)) = wrapped(&parameters.kads) else {
            return Ok(());
        };
        if image.memory().eedks(&akad).is_empty() {
            return Ok(());
        }
        keep(image, &akad, eedks)
    }

    /// Keeps the EEDKs of the key that a block is about to be written with.
    pub(super) fn keep_eedks(&mut self) -> Result<(), Sense> {
        let Some(image) = &mut self.image else {
            return Err(Sense::MEDIUM_NOT_PRESENT);
        };
        if image.at().object == 0 && !image.memory().wrapped.is_empty() {
            let mut memory = image.memory().clone();
            memory.wrapped.clear();
            image.remember(memory).map_err(|_| WRITE_ERROR)?;
        }
        let eedks = self
            .target
            .parameters()
            .filter(|parameters| parameters.encryption == EncryptionMode::Encrypt)
            .and_then(|parameters| wrapped(&parameters.kads));
        match eedks {
            Some((akad, eedks)) if image.memory().eedks(&akad) != eedks => {
                keep(image, &akad, eedks)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Where the tape stands, for the pages that tell of it.
    fn place(&mut self) -> Result<Place, Sense> {
        let Some(image) = &self.image else {
            return Err(Sense::MEDIUM_NOT_PRESENT);
        };
        let found = image.next().map_err(|_| Sense::INTERNAL_FAILURE)?;
        let next = match found {
            Found::EndOfData | Found::Damage => Next::NoBlock,
            Found::Object(object) => match &object.kind {
                Kind::Filemark => Next::NoBlock,
                Kind::Clear => Next::Clear,
                Kind::Encrypted(seal) => {
                    self.keys.follow(&self.target);
                    let ours = match self.target.data_key() {
                        Some(key) => self.keys.open(key, seal)?.is_some(),
                        None => false,
                    };
                    Next::Encrypted {
                        kads: names(image, seal)?,
                        ours,
                    }
                }
            },
        };
        let (encrypted, _) = image.first_encrypted();
        Ok(Place {
            object: image.at().object,
            next,
            encrypted: encrypted.is_some(),
        })
    }
}

fn keep(image: &mut Image, akad: &[u8], eedks: Vec<Vec<u8>>) -> Result<(), Sense> {
    let mut memory = image.memory().clone();
    if memory.keep(akad, eedks) {
        image.remember(memory).map_err(|_| WRITE_ERROR)?;
    }
    Ok(())
}

/// The descriptors that page 0021h shows of a block.
fn names(image: &Image, seal: &Seal) -> Result<Kads, Sense> {
    let mut kads = Vec::new();
    if let Some(ukad) = &seal.ukad {
        kads.push(kad(
            KadType::Unauthenticated,
            Authenticated::NotCovered,
            ukad,
        )?);
    }
    if let Some(akad) = &seal.akad {
        kads.push(kad(
            KadType::Authenticated,
            Authenticated::NotAttempted,
            akad,
        )?);
        for eedk in image.memory().eedks(akad) {
            kads.push(kad(KadType::WrappedKey, Authenticated::NotAttempted, eedk)?);
        }
    }
    Kads::new(kads).map_err(|_| Sense::INTERNAL_FAILURE)
}

fn kad(kind: KadType, authenticated: Authenticated, data: &[u8]) -> Result<Kad, Sense> {
    Kad::reported(kind, authenticated, data.to_vec()).map_err(|_| Sense::INTERNAL_FAILURE)
}

fn one(kads: &Kads, kind: KadType) -> Option<Vec<u8>> {
    kads.of(kind).next().map(<[u8]>::to_vec)
}

/// A-KAD and wrapped keys, where there are both.
fn wrapped(kads: &Kads) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let akad = one(kads, KadType::Authenticated)?;
    let eedks: Vec<_> = kads.of(KadType::WrappedKey).map(<[u8]>::to_vec).collect();
    (!eedks.is_empty()).then_some((akad, eedks))
}

/// A page 0031h that nobody has the private key of.
fn other_public_key() -> Result<Vec<u8>, Sense> {
    let mut modulus = [0; 256];
    aws_lc_rs::rand::fill(&mut modulus).map_err(|_| Sense::INTERNAL_FAILURE)?;
    let [high, .., low] = &mut modulus;
    *high |= 0x80;
    *low |= 1;
    DevicePublicKey::new(modulus, 65_537_u64.to_be_bytes())
        .map(|key| key.encode())
        .map_err(|_| Sense::INTERNAL_FAILURE)
}

const AKAD_LEN: usize = 12;

const NOT_ENCRYPTED: Sense = Sense::new(SenseKey::DataProtect, 0x74, 0x02);
const MODE_MISMATCH: Sense = Sense::new(SenseKey::DataProtect, 0x74, 0x09);
const INSTANCE_CHANGED: Sense = Sense::new(SenseKey::DataProtect, 0x2a, 0x13);

/// The medium cannot be written.
pub(super) const WRITE_ERROR: Sense = Sense::new(SenseKey::MediumError, 0x0c, 0x00);
