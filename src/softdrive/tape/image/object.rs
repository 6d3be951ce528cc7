//! What lies on a tape: blocks and filemarks, as the image file has them.

use sha2::{Digest, Sha256};

/// A block or a filemark.
///
/// ```text
/// byte 0-3      "OBJ1"
///      4        00h filemark, 01h block in clear, 02h encrypted block
///      5        length of the U-KAD (u), 0 to 32
///      6        length of the A-KAD (a), 0 to 64
///      7        00h
///      8-15     logical object number
///      16-23    filemarks before it
///      24-27    length of the data as the host gave it (n)
///      28-31    00h
///      32-47    salt of the block key        (encrypted blocks; zeros in others)
///      48-63    key check                    "
///      64-71    counter in the nonce         "
///      72-103   SHA-256 of bytes 0-71, U-KAD and A-KAD
///      104..    U-KAD, A-KAD
///      ..       data; of an encrypted block encrypted, and 16 bytes of authentication code
///      ..       length of all that and of this field, 4 bytes
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::softdrive::tape) struct Object {
    pub(in crate::softdrive::tape) number: u64,
    pub(in crate::softdrive::tape) filemarks: u64,
    pub(in crate::softdrive::tape) kind: Kind,
    /// Length of its data, in bytes.
    pub(in crate::softdrive::tape) length: u32,
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::softdrive::tape) enum Kind {
    Filemark,
    Clear,
    Encrypted(Seal),
}

/// What an encrypted block says of its key and its encryption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::softdrive::tape) struct Seal {
    pub(in crate::softdrive::tape) ukad: Option<Vec<u8>>,
    pub(in crate::softdrive::tape) akad: Option<Vec<u8>>,
    pub(in crate::softdrive::tape) salt: [u8; 16],
    pub(in crate::softdrive::tape) check: [u8; 16],
    pub(in crate::softdrive::tape) counter: u64,
}

impl Object {
    /// The part of fixed length.
    pub(super) const FIXED: usize = 104;

    /// The longest that [`Self::encode`] gives.
    pub(super) const MAX_HEADER: usize = Self::FIXED + 2 * MAX_KAD;

    /// Everything before the data.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut header = self.authenticated();
        let kads = self.kads();
        let digest = Sha256::new()
            .chain_update(&header)
            .chain_update(&kads)
            .finalize();
        header.extend(digest);
        header.extend(kads);
        header
    }

    /// What an encrypted block is bound to, beside the tape.
    pub(super) fn bound(&self) -> Vec<u8> {
        [self.authenticated(), self.kads()].concat()
    }

    fn authenticated(&self) -> Vec<u8> {
        let Self {
            number,
            filemarks,
            kind,
            length,
        } = self;
        let empty = Seal::default();
        let (code, seal) = match kind {
            Kind::Filemark => (0, &empty),
            Kind::Clear => (1, &empty),
            Kind::Encrypted(seal) => (2, seal),
        };
        let mut header = MAGIC.to_vec();
        header.extend([
            code,
            kad_length(seal.ukad.as_deref()),
            kad_length(seal.akad.as_deref()),
            0,
        ]);
        header.extend(number.to_be_bytes());
        header.extend(filemarks.to_be_bytes());
        header.extend(length.to_be_bytes());
        header.extend([0; 4]);
        header.extend(seal.salt);
        header.extend(seal.check);
        header.extend(seal.counter.to_be_bytes());
        header
    }

    fn kads(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Filemark | Kind::Clear => Vec::new(),
            Kind::Encrypted(seal) => {
                let mut kads = seal.ukad.clone().unwrap_or_default();
                kads.extend(seal.akad.iter().flatten());
                kads
            }
        }
    }

    /// Reads what [`Self::encode`] gives, with whatever follows it.
    pub(super) fn decode(bytes: &[u8]) -> Decoded {
        let Some(fixed) = bytes.first_chunk::<{ Self::FIXED }>() else {
            return Decoded::Short;
        };
        let (authenticated, digest) = fixed.split_at(Self::FIXED - 32);
        let mut fields = Fields(authenticated);
        let magic: [u8; 4] = fields.take();
        let [code, ukad, akad, _]: [u8; 4] = fields.take();
        if magic != *MAGIC || usize::from(ukad) > MAX_KAD || usize::from(akad) > MAX_KAD {
            return Decoded::Damaged;
        }
        let rest = bytes.get(Self::FIXED..).unwrap_or_default();
        let Some((ukad_bytes, after)) = rest.split_at_checked(usize::from(ukad)) else {
            return Decoded::Short;
        };
        let Some(akad_bytes) = after.get(..usize::from(akad)) else {
            return Decoded::Short;
        };
        let number = u64::from_be_bytes(fields.take());
        let filemarks = u64::from_be_bytes(fields.take());
        let length = u32::from_be_bytes(fields.take());
        let _: [u8; 4] = fields.take();
        let seal = Seal {
            ukad: (ukad > 0).then(|| ukad_bytes.to_vec()),
            akad: (akad > 0).then(|| akad_bytes.to_vec()),
            salt: fields.take(),
            check: fields.take(),
            counter: u64::from_be_bytes(fields.take()),
        };
        let kind = match code {
            0 => Kind::Filemark,
            1 => Kind::Clear,
            2 => Kind::Encrypted(seal),
            _ => return Decoded::Damaged,
        };
        let object = Self {
            number,
            filemarks,
            kind,
            length,
        };
        let expected = Sha256::new()
            .chain_update(authenticated)
            .chain_update(ukad_bytes)
            .chain_update(akad_bytes)
            .finalize();
        if expected.as_slice() == digest {
            Decoded::Whole(object)
        } else {
            Decoded::Damaged
        }
    }

    pub(super) fn header_len(&self) -> usize {
        Self::FIXED + self.kads().len()
    }

    /// Length of the data as they are in the image.
    pub(super) fn stored_len(&self) -> u64 {
        let code = match self.kind {
            Kind::Filemark | Kind::Clear => 0,
            Kind::Encrypted(_) => 16,
        };
        u64::from(self.length) + code
    }

    /// Length of all of it.
    pub(super) fn total_len(&self) -> u64 {
        u64::try_from(self.header_len()).unwrap_or(u64::MAX) + self.stored_len() + TRAILER
    }
}

/// What is at a place of the image.
pub(super) enum Decoded {
    Whole(Object),
    /// The file ends in it.
    Short,
    Damaged,
}

/// Fields of a structure whose length has been checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}

fn kad_length(kad: Option<&[u8]>) -> u8 {
    kad.map_or(0, |kad| u8::try_from(kad.len()).unwrap_or(u8::MAX))
}

const MAGIC: &[u8; 4] = b"OBJ1";

/// More than any drive takes.
const MAX_KAD: usize = 64;

/// The length of the field by which one goes back.
pub(super) const TRAILER: u64 = 4;
