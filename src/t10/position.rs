//! Where the tape stands.

use super::{
    PageError,
    reader::{Reader, is_set},
};

/// The position that READ POSITION reports.
///
/// ```text
/// long form (06h), 32 bytes           short form (00h), 20 bytes
/// byte 0      BOP (7), EOP (6),       byte 0     BOP (7), EOP (6), LOLU (2),
///             MPU (3), LONU (2)                  PERR (1)
///      4-7    PARTITION NUMBER             1     PARTITION NUMBER
///      8-15   LOGICAL OBJECT NUMBER        4-7   FIRST LOGICAL OBJECT LOCATION
///      16-23  LOGICAL FILE IDENTIFIER
/// ```
///
/// Source: SSC-4, "READ POSITION command".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// BOP: at the beginning of the partition.
    pub at_beginning: bool,
    /// EOP: between early warning and the end of the partition.
    pub near_end: bool,
    /// The partition.
    pub partition: u32,
    /// The number of the block or filemark that comes next, where the drive knows it.
    pub object: Option<u64>,
    /// How many filemarks lie before it, where the drive knows it. The short form does not say.
    pub file: Option<u64>,
}

impl Position {
    /// Bytes of the long form.
    pub const LONG_LEN: usize = 32;
    /// Bytes of the short form.
    pub const SHORT_LEN: usize = 20;

    /// Reads the long form.
    ///
    /// # Errors
    ///
    /// [`PageError::Truncated`].
    pub fn decode_long(bytes: &[u8]) -> Result<Self, PageError> {
        let mut data = Reader::new("READ POSITION data, long form", bytes);
        let flags = data.u8()?;
        data.skip(3)?;
        let partition = data.u32()?;
        let [object, file] = [data.u64()?, data.u64()?];
        data.skip(8)?;
        Ok(Self {
            at_beginning: is_set(flags, 7),
            near_end: is_set(flags, 6),
            partition,
            object: (!is_set(flags, 2)).then_some(object),
            file: (!is_set(flags, 3)).then_some(file),
        })
    }

    /// Reads the short form.
    ///
    /// # Errors
    ///
    /// [`PageError::Truncated`].
    pub fn decode_short(bytes: &[u8]) -> Result<Self, PageError> {
        let mut data = Reader::new("READ POSITION data, short form", bytes);
        let flags = data.u8()?;
        let partition = data.u8()?;
        data.skip(2)?;
        let object = data.u32()?;
        data.skip(12)?;
        let unknown = is_set(flags, 2) || is_set(flags, 1);
        Ok(Self {
            at_beginning: is_set(flags, 7),
            near_end: is_set(flags, 6),
            partition: partition.into(),
            object: (!unknown).then_some(object.into()),
            file: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_form_counts_filemarks() {
        let mut bytes = [0; 32];
        (bytes[15], bytes[23]) = (7, 2);
        let position = Position::decode_long(&bytes).unwrap();
        assert_eq!((position.object, position.file), (Some(7), Some(2)));
        assert!(!position.at_beginning);
        bytes[0] = 0x0c;
        let unknown = Position::decode_long(&bytes).unwrap();
        assert_eq!((unknown.object, unknown.file), (None, None));
        assert!(Position::decode_long(&bytes[..31]).is_err());
    }

    #[test]
    fn short_form_knows_the_load_point() {
        let mut bytes = [0; 20];
        bytes[0] = 0x80;
        let position = Position::decode_short(&bytes).unwrap();
        assert!(position.at_beginning);
        assert_eq!((position.object, position.file), (Some(0), None));
        bytes[0] = 0x04;
        assert_eq!(Position::decode_short(&bytes).unwrap().object, None);
        assert!(Position::decode_short(&bytes[..19]).is_err());
    }
}
