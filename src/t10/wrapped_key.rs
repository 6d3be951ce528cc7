//! KEY FORMAT 02h: a data key wrapped by the public key of the device server.

use std::fmt;

use super::{
    PageError,
    reader::{Reader, length},
};
use crate::drive::Wwn;

/// The KEY field of the set data encryption page with KEY FORMAT 02h.
///
/// ```text
/// byte 0-1      PARAMETER SET, 0000h (RSA-2048)
///      2-3      LABEL LENGTH (n)
///      4..      LABEL: wrapped key descriptors, ascending
///      4+n      WRAPPED KEY LENGTH, 0100h (two bytes)
///      6+n..    WRAPPED KEY, 256 bytes
///      262+n    SIGNATURE LENGTH, 0000h (two bytes)
/// ```
///
/// The wrapped key is RSAES-OAEP (RFC 8017) with SHA-256, MGF1 over SHA-256, and
/// [`WrappedKeyLabel::bytes`] as label; what is wrapped is the 32 bytes of the data key.
///
/// Source: SSC-4, "Key format 02h"; the cipher as one HP LTO-6 drive takes it.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedKey {
    label: WrappedKeyLabel,
    wrapped: Vec<u8>,
}

impl WrappedKey {
    /// The length of the wrapped key, in bytes: the modulus of RSA-2048.
    pub const WRAPPED_LEN: usize = 256;

    /// A KEY field from its label and the ciphertext.
    ///
    /// # Errors
    ///
    /// [`PageError::Length`] where the ciphertext does not have [`Self::WRAPPED_LEN`] bytes.
    pub fn new(label: WrappedKeyLabel, wrapped: &[u8]) -> Result<Self, PageError> {
        if wrapped.len() != Self::WRAPPED_LEN {
            return Err(PageError::Length {
                field: "a wrapped key",
                expected: "256",
                got: wrapped.len(),
            });
        }
        Ok(Self {
            label,
            wrapped: wrapped.to_vec(),
        })
    }

    /// For which drive it is wrapped.
    pub fn label(&self) -> &WrappedKeyLabel {
        &self.label
    }

    /// The ciphertext, 256 bytes.
    pub fn wrapped(&self) -> &[u8] {
        &self.wrapped
    }

    /// The KEY field; 282 bytes for a device id of 8.
    pub fn encode(&self) -> Vec<u8> {
        let label = self.label.bytes();
        let mut field = vec![0; 2];
        field.extend(length(&label).to_be_bytes());
        field.extend(&label);
        field.extend(length(&self.wrapped).to_be_bytes());
        field.extend(&self.wrapped);
        field.extend([0; 2]);
        field
    }

    /// Reads the KEY field.
    ///
    /// # Errors
    ///
    /// [`PageError`] that names the defect. A label with other descriptors than a device id and
    /// a key length is refused, as no drive is known that takes them.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut field = Reader::new("wrapped key", bytes);
        let parameter_set = field.u16()?;
        if parameter_set != 0 {
            return Err(PageError::ParameterSet {
                got: parameter_set.into(),
            });
        }
        let label_len = field.u16()?;
        let label =
            WrappedKeyLabel::decode(field.sub("wrapped key label", usize::from(label_len))?)?;
        let wrapped_len = field.u16()?;
        let key = Self::new(label, field.take(usize::from(wrapped_len))?)?;
        let signature_len = field.u16()?;
        if signature_len != 0 {
            return Err(PageError::Signature {
                got: signature_len.into(),
            });
        }
        field.finish()?;
        Ok(key)
    }
}

impl fmt::Debug for WrappedKey {
    /// Without the ciphertext: it works on its drive for ever, so it belongs in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedKey")
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

/// The LABEL of a wrapped key, which is also the OAEP label: it binds the key to one drive.
///
/// ```text
/// byte 0      descriptor type, 00h: device server identification
///      1      reserved
///      2-3    length (n)
///      4..    device id
///      4+n    descriptor type, 04h: wrapped key length
///      5+n    reserved
///      6+n    length, 0002h (two bytes)
///      8+n    0100h (two bytes)
/// ```
///
/// Source: SSC-4, "Wrapped key descriptors". 0100h may mean 256 bytes of ciphertext or 256 bits
/// of key; for RSA-2048 and AES-256 both are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKeyLabel {
    device: DeviceId,
}

impl WrappedKeyLabel {
    /// The label for this drive.
    pub fn new(device: impl Into<DeviceId>) -> Self {
        Self {
            device: device.into(),
        }
    }

    /// The drive that it names.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The OAEP label.
    pub fn bytes(&self) -> Vec<u8> {
        let mut label = vec![DEVICE_ID, 0];
        label.extend(length(&self.device.0).to_be_bytes());
        label.extend(&self.device.0);
        label.extend([KEY_LENGTH, 0, 0, 2]);
        label.extend(WRAPPED_KEY_LENGTH.to_be_bytes());
        label
    }

    fn decode(mut label: Reader<'_>) -> Result<Self, PageError> {
        let mut device = descriptor(&mut label, DEVICE_ID)?;
        let device = DeviceId::try_from(device.rest())?;
        let mut key_len = descriptor(&mut label, KEY_LENGTH)?;
        let got = key_len.u16()?;
        key_len.finish()?;
        if got != WRAPPED_KEY_LENGTH {
            return Err(PageError::WrappedKeyLength { got });
        }
        label.finish()?;
        Ok(Self { device })
    }
}

/// What names a drive in a label: the designator of its logical unit from VPD page 83h, without
/// the header.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DeviceId(Vec<u8>);

impl DeviceId {
    /// The longest that we take, in bytes.
    pub const MAX_LEN: usize = 64;

    /// The bytes of the designator.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<&[u8]> for DeviceId {
    type Error = PageError;

    fn try_from(designator: &[u8]) -> Result<Self, PageError> {
        if !(1..=Self::MAX_LEN).contains(&designator.len()) {
            return Err(PageError::Length {
                field: "a device id",
                expected: "1 to 64",
                got: designator.len(),
            });
        }
        Ok(Self(designator.to_vec()))
    }
}

impl From<Wwn> for DeviceId {
    fn from(wwn: Wwn) -> Self {
        Self(wwn.as_bytes().to_vec())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode_upper(&self.0))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({self})")
    }
}

/// The data of the next descriptor, which must be of this type.
fn descriptor<'a>(label: &mut Reader<'a>, expected: u8) -> Result<Reader<'a>, PageError> {
    let got = label.u8()?;
    if got != expected {
        return Err(PageError::WrappedKeyDescriptor { got });
    }
    label.zeros(1)?;
    let len = label.u16()?;
    label.sub("wrapped key descriptor", usize::from(len))
}

/// Descriptor type: device server identification.
const DEVICE_ID: u8 = 0x00;
/// Descriptor type: wrapped key length.
const KEY_LENGTH: u8 = 0x04;
const WRAPPED_KEY_LENGTH: u16 = 0x0100;

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../integration/golden/t10/key-field-02h.bin");

    /// Any wrapped key.
    pub(in crate::t10) fn wrapped_key() -> impl Strategy<Value = WrappedKey> {
        (vec(any::<u8>(), 1..=64), vec(any::<u8>(), 256)).prop_map(|(device, wrapped)| {
            let device = DeviceId::try_from(device.as_slice()).unwrap();
            WrappedKey::new(WrappedKeyLabel::new(device), &wrapped).unwrap()
        })
    }

    fn golden() -> WrappedKey {
        let wwn: Wwn = "500104F000ABCDEF".parse().unwrap();
        let wrapped: Vec<u8> = (0..=255).collect();
        WrappedKey::new(WrappedKeyLabel::new(wwn), &wrapped).unwrap()
    }

    #[test]
    fn key_field_for_a_naa_has_282_bytes() {
        assert_eq!(GOLDEN.len(), 282);
        assert_eq!(golden().encode(), GOLDEN);
        assert_eq!(WrappedKey::decode(GOLDEN), Ok(golden()));
    }

    #[test]
    fn oaep_label_is_the_descriptors() {
        assert_eq!(
            golden().label().bytes(),
            b"\0\0\0\x08\x50\x01\x04\xf0\x00\xab\xcd\xef\x04\0\0\x02\x01\x00"
        );
    }

    #[test]
    fn debug_shows_the_drive_and_no_ciphertext() {
        assert_eq!(
            format!("{:?}", golden()),
            "WrappedKey { label: WrappedKeyLabel { device: DeviceId(500104F000ABCDEF) }, .. }"
        );
    }

    fn changed(position: usize, byte: u8) -> PageError {
        let mut field = GOLDEN.to_vec();
        field[position] = byte;
        WrappedKey::decode(&field).unwrap_err()
    }

    #[test]
    fn truncated_key_field_is_refused() {
        for cut in 0..GOLDEN.len() {
            assert!(matches!(
                WrappedKey::decode(&GOLDEN[..cut]),
                Err(PageError::Truncated { .. })
            ));
        }
    }

    #[test]
    fn trailing_byte_is_refused() {
        assert!(matches!(
            WrappedKey::decode(&[GOLDEN, &[0]].concat()),
            Err(PageError::TrailingBytes { got: 1, .. })
        ));
    }

    #[test]
    fn elliptic_curve_parameter_set_is_refused() {
        assert_eq!(changed(1, 0x10), PageError::ParameterSet { got: 0x10 });
    }

    #[test]
    fn signature_is_refused() {
        let signed = [&GOLDEN[..280], &[0, 1, 0xff]].concat();
        assert_eq!(
            WrappedKey::decode(&signed),
            Err(PageError::Signature { got: 1 })
        );
    }

    #[test]
    fn other_descriptor_is_refused() {
        assert_eq!(changed(4, 0x01), PageError::WrappedKeyDescriptor { got: 1 });
        assert_eq!(
            changed(16, 0x03),
            PageError::WrappedKeyDescriptor { got: 3 }
        );
    }

    #[test]
    fn reserved_byte_in_a_descriptor_is_refused() {
        assert!(matches!(changed(5, 1), PageError::Reserved { .. }));
        assert!(matches!(changed(17, 1), PageError::Reserved { .. }));
    }

    #[test]
    fn other_wrapped_key_length_descriptor_is_refused() {
        assert_eq!(
            changed(21, 0x20),
            PageError::WrappedKeyLength { got: 0x0120 }
        );
    }

    #[test]
    fn short_wrapped_key_is_refused() {
        let mut field = GOLDEN[..22].to_vec();
        field.extend([0, 255]);
        field.extend([7; 255]);
        field.extend([0, 0]);
        assert!(matches!(
            WrappedKey::decode(&field),
            Err(PageError::Length { got: 255, .. })
        ));
    }

    #[test]
    fn empty_device_id_is_refused() {
        assert!(matches!(
            DeviceId::try_from(&[][..]),
            Err(PageError::Length { got: 0, .. })
        ));
        assert!(DeviceId::try_from(&[0; 65][..]).is_err());
    }

    proptest! {
        #[test]
        fn round_trips(key in wrapped_key()) {
            prop_assert_eq!(WrappedKey::decode(&key.encode()), Ok(key));
        }

        #[test]
        fn what_decodes_encodes_to_the_same(position in 0..282usize, byte: u8) {
            let mut field = GOLDEN.to_vec();
            field[position] = byte;
            if let Ok(key) = WrappedKey::decode(&field) {
                prop_assert_eq!(key.encode(), field);
            }
        }
    }
}
