//! The data encryption management capabilities page.

use super::{
    PageError,
    reader::{Reader, bit, is_set, page},
};

/// What a drive can do with keys beside using them.
///
/// ```text
/// byte 0-1   page code, 0012h
///      2-3   page length, 000Ch
///      4     LOCK_C (0)
///      5     CKOD_C (2), CKORP_C (1), CKORL_C (0)
///      6     reserved
///      7     AITN_C (2), LOCAL_C (1), PUBLIC_C (0)
///      8-15  reserved
/// ```
///
/// Source: SSC-4, "Data Encryption Management Capabilities page".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManagementCapabilities {
    /// LOCK_C: pins an initiator to its parameters.
    pub lock: bool,
    /// CKOD_C: forgets the key when the cartridge is demounted.
    pub clears_on_demount: bool,
    /// CKORP_C: forgets the key when a reservation is preempted.
    pub clears_on_reservation_preempted: bool,
    /// CKORL_C: forgets the key when a reservation is lost.
    pub clears_on_reservation_lost: bool,
    /// AITN_C: takes the scope ALL I_T NEXUS.
    pub all_nexus: bool,
    /// LOCAL_C: takes the scope LOCAL.
    pub local: bool,
    /// PUBLIC_C: takes the scope PUBLIC.
    pub public: bool,
}

impl ManagementCapabilities {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let Self {
            lock,
            clears_on_demount,
            clears_on_reservation_preempted,
            clears_on_reservation_lost,
            all_nexus,
            local,
            public,
        } = *self;
        let mut body = [0; 12];
        let [locks, clearing, _, scopes, ..] = &mut body;
        *locks = bit(lock, 0);
        *clearing = bit(clears_on_demount, 2)
            | bit(clears_on_reservation_preempted, 1)
            | bit(clears_on_reservation_lost, 0);
        *scopes = bit(all_nexus, 2) | bit(local, 1) | bit(public, 0);
        page(PAGE_CODE, &body)
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("management capabilities page", PAGE_CODE, bytes)?;
        let [locks, clearing, _, scopes] = page.array()?;
        // A later standard may have made it longer.
        page.rest();
        Ok(Self {
            lock: is_set(locks, 0),
            clears_on_demount: is_set(clearing, 2),
            clears_on_reservation_preempted: is_set(clearing, 1),
            clears_on_reservation_lost: is_set(clearing, 0),
            all_nexus: is_set(scopes, 2),
            local: is_set(scopes, 1),
            public: is_set(scopes, 0),
        })
    }
}

const PAGE_CODE: u16 = 0x0012;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_page_of_an_lto_drive() {
        let page = b"\0\x12\0\x0c\x01\x07\0\x07\0\0\0\0\0\0\0\0";
        let read = ManagementCapabilities::decode(page).unwrap();
        assert!(read.lock && read.clears_on_demount && read.all_nexus);
        assert_eq!(read.encode(), page);
        assert!(ManagementCapabilities::decode(&page[..7]).is_err());
    }

    proptest! {
        #[test]
        fn what_decodes_round_trips(head in any::<[u8; 4]>()) {
            let read =
                ManagementCapabilities::decode(&page(PAGE_CODE, &[&head[..], &[0; 8]].concat()))
                    .unwrap();
            prop_assert_eq!(ManagementCapabilities::decode(&read.encode()), Ok(read));
        }
    }
}
