//! The data encryption capabilities page.

use super::{
    Algorithm, PageError, SecurityAlgorithm,
    code::codes,
    reader::{Reader, page},
};

/// What encryption a drive can do, and whether a host may configure it.
///
/// ```text
/// byte 0-1   page code, 0010h
///      2-3   page length
///      4     EXTDECC (3-2), CFG_P (1-0)
///      5-19  reserved
///      20..  algorithm descriptors, 24 bytes each
/// ```
///
/// Source: SSC-4, "Data Encryption Capabilities page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// EXTDECC: whether the drive can be controlled from outside the host.
    pub external_control: ExternalControl,
    /// CFG_P: whether a host may configure it now.
    pub configuration: ConfigurationAllowed,
    /// What it can do.
    pub algorithms: Vec<Algorithm>,
}

impl Capabilities {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![self.external_control.code() << 2 | self.configuration.code()];
        body.extend([0; 15]);
        for algorithm in &self.algorithms {
            algorithm.encode_into(&mut body);
        }
        page(PAGE_CODE, &body)
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page, or a field has a code without meaning.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("capabilities page", PAGE_CODE, bytes)?;
        let control = page.u8()?;
        page.skip(15)?;
        let mut algorithms = Vec::new();
        while !page.is_empty() {
            if algorithms.len() == MAX_ALGORITHMS {
                return Err(PageError::TooMany {
                    structure: "algorithm descriptors",
                    limit: MAX_ALGORITHMS,
                });
            }
            algorithms.push(Algorithm::decode(&mut page)?);
        }
        Ok(Self {
            external_control: ExternalControl::from_code(control >> 2 & 3)?,
            configuration: ConfigurationAllowed::from_code(control & 3)?,
            algorithms,
        })
    }

    /// The algorithm that we use: AES-256-GCM.
    pub fn aes_256_gcm(&self) -> Option<&Algorithm> {
        self.algorithms.iter().find(|algorithm| {
            algorithm.algorithm == SecurityAlgorithm::AES_GCM_128 && algorithm.key_len == 32
        })
    }
}

codes! {
    /// Whether a drive can be controlled from outside the host (EXTDECC).
    ExternalControl, "EXTDECC" {
        /// Nothing is said.
        NotReported = 0,
        /// It cannot.
        NotCapable = 1,
        /// It can.
        Capable = 2,
    }
}

codes! {
    /// Whether a host may configure encryption (CFG_P).
    ConfigurationAllowed, "CFG_P" {
        /// Nothing is said.
        NotReported = 0,
        /// It may.
        Allowed = 1,
        /// It may not: the drive is under a library's or a manager's control.
        Prevented = 2,
    }
}

const PAGE_CODE: u16 = 0x0010;

/// A page of 64 KiB has no room for that many indexes anyway.
const MAX_ALGORITHMS: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::t10::{AlgorithmIndex, CryptoSupport, RawModeSupport};

    const GOLDEN: &[u8] = include_bytes!("../../integration/golden/t10/spin-0010-lto.bin");

    #[test]
    fn reads_the_page_of_an_lto_drive() {
        let read = Capabilities::decode(GOLDEN).unwrap();
        assert_eq!(read.configuration, ConfigurationAllowed::Allowed);
        assert_eq!(read.external_control, ExternalControl::NotCapable);
        let gcm = read.aes_256_gcm().unwrap();
        assert_eq!(gcm.index, AlgorithmIndex(1));
        assert_eq!(gcm.encrypts, CryptoSupport::Hardware);
        assert_eq!((gcm.max_ukad_len, gcm.max_akad_len), (32, 12));
        assert_eq!(gcm.raw_mode, RawModeSupport::DisabledByDefault);
        assert_eq!((gcm.max_eedks, gcm.max_eedk_len), (0, 0));
        assert_eq!(read.encode(), GOLDEN);
    }

    #[test]
    fn truncated_page_is_refused() {
        for cut in 0..GOLDEN.len() {
            assert!(matches!(
                Capabilities::decode(&GOLDEN[..cut]),
                Err(PageError::Truncated { .. })
            ));
        }
    }

    #[test]
    fn trailing_byte_is_refused() {
        let long = [GOLDEN, &[0]].concat();
        assert!(matches!(
            Capabilities::decode(&long),
            Err(PageError::TrailingBytes { got: 1, .. })
        ));
    }

    #[test]
    fn other_page_is_refused() {
        let mut other = GOLDEN.to_vec();
        other[1] = 0x20;
        assert_eq!(
            Capabilities::decode(&other),
            Err(PageError::PageCode {
                expected: 0x10,
                got: 0x20
            })
        );
    }

    #[test]
    fn descriptor_of_another_length_is_refused() {
        let mut other = GOLDEN.to_vec();
        other[23] = 0x10;
        assert!(matches!(
            Capabilities::decode(&other),
            Err(PageError::Length { got: 16, .. })
        ));
    }

    #[test]
    fn reserved_bytes_of_a_drive_are_ignored() {
        let mut newer = GOLDEN.to_vec();
        newer[5] = 0xff;
        assert_eq!(Capabilities::decode(&newer), Capabilities::decode(GOLDEN));
    }

    proptest! {
        #[test]
        fn what_decodes_round_trips(head in 0u8..16, bodies in vec(any::<[u8; 20]>(), 0..3)) {
            let mut body = vec![head];
            body.extend([0; 15]);
            for descriptor in &bodies {
                body.extend([1, 0, 0, 20]);
                body.extend(descriptor);
            }
            if let Ok(read) = Capabilities::decode(&page(PAGE_CODE, &body)) {
                prop_assert_eq!(Capabilities::decode(&read.encode()), Ok(read));
            }
        }
    }
}
