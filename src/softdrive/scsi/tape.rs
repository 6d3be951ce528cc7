//! What differs where blocks go to a tape: each may have another key, or none.

use super::{AKAD_LEN, INDEX, MAX_EEDK_LEN, Parameters, Target};
use crate::{
    softdrive::identity::{DriveKind, SoftDrive},
    t10::{
        AlgorithmIndex, EncryptionStatus, KadFormat, KadType, Kads, NextBlock, ParametersControl,
        Sense,
    },
};

impl Target {
    /// The same for blocks on a tape: they may go without a name of their key, or have a U-KAD.
    pub(in crate::softdrive) fn on_tape(drive: SoftDrive) -> Self {
        Self {
            on_tape: true,
            ..Self::new(drive)
        }
    }

    /// Leaves the keys to whom this says, who is not the host.
    pub(in crate::softdrive) fn leave_to(&mut self, control: ParametersControl) {
        self.control = control;
    }

    /// Says where the tape stands, for the pages that tell of it.
    pub(in crate::softdrive) fn stand(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// What the drive has been told.
    pub(in crate::softdrive) fn parameters(&self) -> Option<&Parameters> {
        self.parameters.as_ref()
    }

    /// Whether a host may set keys.
    pub(super) fn by_host(&self) -> bool {
        match self.control {
            ParametersControl::NotReported
            | ParametersControl::NotExclusive
            | ParametersControl::Host => true,
            ParametersControl::Library | ParametersControl::Management => false,
        }
    }

    /// The longest U-KAD that it takes, in bytes.
    pub(super) fn max_ukad(&self) -> u16 {
        match self.drive.kind() {
            DriveKind::Lto | DriveKind::LtoPlain if self.on_tape => UKAD_LEN,
            DriveKind::Enterprise | DriveKind::Lto | DriveKind::LtoPlain => 0,
        }
    }

    /// Whether the descriptors fit the blocks of a tape; what they say is the host's affair.
    pub(super) fn fit(&self, kads: &Kads) -> Result<(), Sense> {
        let fits = kads.as_slice().iter().all(|kad| {
            let length = kad.data().len();
            match kad.kind() {
                KadType::Unauthenticated => length <= usize::from(self.max_ukad()),
                KadType::Authenticated => length == usize::from(AKAD_LEN),
                KadType::WrappedKey => length <= usize::from(MAX_EEDK_LEN),
                KadType::Nonce | KadType::Metadata => false,
            }
        });
        let ukads = kads.of(KadType::Unauthenticated).count();
        let eedks = kads.of(KadType::WrappedKey).count();
        if fits
            && (ukads == 0 || self.max_ukad() > 0)
            && eedks <= usize::from(self.drive.kind().max_eedks())
        {
            Ok(())
        } else {
            Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST)
        }
    }
}

/// Where a tape stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::softdrive) struct Place {
    /// The number of the next object.
    pub(in crate::softdrive) object: u64,
    /// What it is.
    pub(in crate::softdrive) next: Next,
    /// Whether there is an encrypted block anywhere on the tape.
    pub(in crate::softdrive) encrypted: bool,
}

impl Place {
    /// The page 0021h.
    pub(super) fn next_block(&self) -> NextBlock {
        let (encryption, algorithm, kads) = match &self.next {
            Next::NoBlock => (EncryptionStatus::NotABlock, 0, Kads::default()),
            Next::Clear => (EncryptionStatus::NotEncrypted, 0, Kads::default()),
            Next::Encrypted { kads, ours: true } => {
                (EncryptionStatus::Decryptable, INDEX.0, kads.clone())
            }
            Next::Encrypted { kads, ours: false } => {
                (EncryptionStatus::KeyMissing, INDEX.0, kads.clone())
            }
        };
        NextBlock {
            position: self.object,
            encryption,
            algorithm: AlgorithmIndex(algorithm),
            external: false,
            raw_disabled: matches!(self.next, Next::Encrypted { .. }),
            kad_format: KadFormat::Unspecified,
            kads,
        }
    }
}

/// What comes next on a tape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::softdrive) enum Next {
    /// A filemark, or nothing.
    NoBlock,
    /// A block in clear.
    Clear,
    /// An encrypted block.
    Encrypted {
        /// What it says of its key.
        kads: Kads,
        /// Whether the key that is set opens it.
        ours: bool,
    },
}

/// As on LTO drives.
const UKAD_LEN: u16 = 32;
