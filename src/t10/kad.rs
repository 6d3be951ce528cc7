//! Key-associated data: what a block says about its key, in clear.

use super::{
    PageError,
    code::codes,
    reader::{Reader, length},
};

/// One key-associated data descriptor.
///
/// ```text
/// byte 0    KEY DESCRIPTOR TYPE
///      1    AUTHENTICATED (bits 2-0)
///      2-3  length of what follows
///      4..  KEY DESCRIPTOR
/// ```
///
/// Source: SSC-4, "Key-associated data (KAD) descriptors".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kad {
    kind: KadType,
    authenticated: Authenticated,
    data: Vec<u8>,
}

impl Kad {
    /// The longest descriptor that we take, in bytes: more than any EEDK or drive has.
    pub const MAX_LEN: usize = 1024;

    /// A descriptor for a drive.
    ///
    /// # Errors
    ///
    /// [`PageError::Length`] where it is longer than [`Self::MAX_LEN`].
    pub fn new(kind: KadType, data: Vec<u8>) -> Result<Self, PageError> {
        Self::reported(kind, Authenticated::NotReported, data)
    }

    /// A descriptor as a drive reports it.
    ///
    /// # Errors
    ///
    /// [`PageError::Length`] where it is longer than [`Self::MAX_LEN`].
    pub fn reported(
        kind: KadType,
        authenticated: Authenticated,
        data: Vec<u8>,
    ) -> Result<Self, PageError> {
        if data.len() > Self::MAX_LEN {
            return Err(PageError::Length {
                field: "a key descriptor",
                expected: "at most 1024",
                got: data.len(),
            });
        }
        Ok(Self {
            kind,
            authenticated,
            data,
        })
    }

    /// What it is.
    pub fn kind(&self) -> KadType {
        self.kind
    }

    /// Whether the drive has checked it.
    pub fn authenticated(&self) -> Authenticated {
        self.authenticated
    }

    /// What it says.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    fn encode_into(&self, page: &mut Vec<u8>) {
        page.push(self.kind.code());
        page.push(self.authenticated.code());
        page.extend(length(&self.data).to_be_bytes());
        page.extend(&self.data);
    }
}

/// The descriptors of a page, in ascending order of their types.
///
/// Each type is there once at most, but for [`KadType::WrappedKey`], of which a cartridge holds
/// as many as it has EEDKs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kads(Vec<Kad>);

impl Kads {
    /// The most descriptors that we take.
    pub const MAX_COUNT: usize = 8;

    /// Descriptors in the order of the page.
    ///
    /// # Errors
    ///
    /// [`PageError::Order`] and [`PageError::TooMany`].
    pub fn new(kads: Vec<Kad>) -> Result<Self, PageError> {
        if kads.len() > Self::MAX_COUNT {
            return Err(PageError::TooMany {
                structure: STRUCTURE,
                limit: Self::MAX_COUNT,
            });
        }
        for (previous, next) in kads.iter().zip(kads.iter().skip(1)) {
            let repeated = previous.kind == next.kind && next.kind == KadType::WrappedKey;
            if next.kind <= previous.kind && !repeated {
                return Err(PageError::Order {
                    structure: STRUCTURE,
                    previous: previous.kind.code(),
                    got: next.kind.code(),
                });
            }
        }
        Ok(Self(kads))
    }

    /// The descriptors.
    pub fn as_slice(&self) -> &[Kad] {
        &self.0
    }

    /// What the descriptors of one type say.
    pub fn of(&self, kind: KadType) -> impl Iterator<Item = &[u8]> {
        self.0
            .iter()
            .filter(move |kad| kad.kind == kind)
            .map(Kad::data)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for kad in &self.0 {
            kad.encode_into(&mut bytes);
        }
        bytes
    }

    /// Reads descriptors up to the end of a page that a drive sends.
    pub(super) fn decode(page: Reader<'_>) -> Result<Self, PageError> {
        Self::read(page, |byte| Ok(byte & 0x07))
    }

    /// Reads descriptors up to the end of a page for a drive.
    pub(super) fn decode_for_drive(page: Reader<'_>) -> Result<Self, PageError> {
        // The bits before it are reserved, and stenc leaves in them what its memory held before.
        Self::read(page, |got| match got & AUTHENTICATED {
            0 => Ok(0),
            got => Err(PageError::Authenticated { got }),
        })
    }

    fn read(
        mut page: Reader<'_>,
        authenticated: impl Fn(u8) -> Result<u8, PageError>,
    ) -> Result<Self, PageError> {
        let mut kads = Vec::new();
        while !page.is_empty() {
            let kind = KadType::from_code(page.u8()?)?;
            let authenticated = Authenticated::from_code(authenticated(page.u8()?)?)?;
            let len = page.u16()?;
            let data = page.take(usize::from(len))?.to_vec();
            kads.push(Kad::reported(kind, authenticated, data)?);
        }
        Self::new(kads)
    }
}

/// The bits of the field in its byte.
const AUTHENTICATED: u8 = 0x07;

codes! {
    /// What a descriptor is.
    KadType, "KEY DESCRIPTOR TYPE" {
        /// U-KAD: not covered by the authentication of the block.
        Unauthenticated = 0x00,
        /// A-KAD: authenticated with the block. IBM calls its 12 bytes the DKi.
        Authenticated = 0x01,
        /// Nonce value.
        Nonce = 0x02,
        /// M-KAD: what a raw copy of a block needs.
        Metadata = 0x03,
        /// WK-KAD: a wrapped key (SSC-4), an EEDK to be kept on the medium.
        WrappedKey = 0x04,
    }
}

codes! {
    /// Whether a drive has checked a descriptor.
    Authenticated, "AUTHENTICATED" {
        /// Nothing is said; the only value in data for a drive.
        NotReported = 0x00,
        /// It is not covered by any authentication.
        NotCovered = 0x01,
        /// It has not been checked.
        NotAttempted = 0x02,
        /// It has been checked and is right.
        Succeeded = 0x03,
        /// It has been checked and is wrong.
        Failed = 0x04,
    }
}

codes! {
    /// How the descriptors are to be read.
    KadFormat, "KAD FORMAT" {
        /// Nothing is said.
        Unspecified = 0x00,
        /// The name of a key, in binary.
        BinaryName = 0x01,
        /// The name of a key, in ASCII.
        AsciiName = 0x02,
    }
}

const STRUCTURE: &str = "KAD descriptors";

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    /// Any descriptors that a drive may be sent.
    pub(in crate::t10) fn kads_for_drive() -> impl Strategy<Value = Kads> {
        vec((select(KadType::ALL), vec(any::<u8>(), 0..40)), 0..6).prop_map(|mut kads| {
            kads.sort_by_key(|(kind, _)| *kind);
            kads.dedup_by_key(|(kind, _)| *kind);
            let kads = kads.into_iter().map(|(kind, data)| Kad::new(kind, data));
            Kads::new(kads.collect::<Result<_, _>>().unwrap()).unwrap()
        })
    }

    /// Any descriptors that a drive may report.
    pub(in crate::t10) fn kads_reported() -> impl Strategy<Value = Kads> {
        (kads_for_drive(), select(Authenticated::ALL)).prop_map(|(kads, authenticated)| {
            let mut kads = kads.0;
            for kad in &mut kads {
                kad.authenticated = authenticated;
            }
            Kads(kads)
        })
    }

    fn decode(bytes: &[u8]) -> Result<Kads, PageError> {
        Kads::decode_for_drive(Reader::new("page", bytes))
    }

    #[test]
    fn two_wrapped_keys_may_follow_each_other() {
        let bytes = b"\x01\0\0\x02ab\x04\0\0\x01x\x04\0\0\x01y";
        let kads = decode(bytes).unwrap();
        assert_eq!(kads.encode(), bytes);
        assert!(kads.of(KadType::WrappedKey).eq([b"x", b"y"]));
    }

    #[test]
    fn descending_descriptors_are_refused() {
        assert_eq!(
            decode(b"\x01\0\0\0\x00\0\0\0"),
            Err(PageError::Order {
                structure: STRUCTURE,
                previous: 1,
                got: 0
            })
        );
    }

    #[test]
    fn repeated_descriptor_is_refused() {
        assert!(matches!(
            decode(b"\x01\0\0\0\x01\0\0\0"),
            Err(PageError::Order { .. })
        ));
    }

    #[test]
    fn authenticated_descriptor_for_a_drive_is_refused() {
        assert_eq!(
            decode(b"\x01\x03\0\0"),
            Err(PageError::Authenticated { got: 3 })
        );
    }

    #[test]
    fn what_stenc_leaves_before_authenticated_is_ignored() {
        for left in [0x20, 0x60, 0xc0, 0xf8] {
            let kads = decode(&[1, left, 0, 1, b'a']).unwrap();
            assert_eq!(kads.encode(), [1, 0, 0, 1, b'a']);
        }
    }

    #[test]
    fn truncated_descriptor_is_refused() {
        assert!(matches!(
            decode(b"\x01\0\0\x02a"),
            Err(PageError::Truncated { missing: 1, .. })
        ));
    }

    #[test]
    fn unknown_descriptor_is_refused() {
        assert!(matches!(
            decode(b"\x05\0\0\0"),
            Err(PageError::Code { got: 5, .. })
        ));
    }

    #[test]
    fn long_descriptor_is_refused() {
        assert!(Kad::new(KadType::WrappedKey, vec![0; 1024]).is_ok());
        assert!(matches!(
            Kad::new(KadType::WrappedKey, vec![0; 1025]),
            Err(PageError::Length { got: 1025, .. })
        ));
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let kad = Kad::new(KadType::WrappedKey, Vec::new()).unwrap();
        assert!(matches!(
            Kads::new(vec![kad; 9]),
            Err(PageError::TooMany { limit: 8, .. })
        ));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same(bytes in vec(0u8..6, 0..64), kads in kads_for_drive()) {
            if let Ok(read) = decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
            prop_assert_eq!(decode(&kads.encode()), Ok(kads));
        }
    }
}
