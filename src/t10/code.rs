//! Code fields as enums, and the error of all pages.

/// Declares an enum for a code field: the codes, their names, and nothing else.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        $name:ident, $field:literal { $($(#[$doc:meta])* $variant:ident = $code:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every code that has a meaning, in ascending order.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code in the page.
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            pub(in crate::t10) const fn from_code(
                code: u8,
            ) -> Result<Self, $crate::t10::PageError> {
                match code {
                    $($code => Ok(Self::$variant),)+
                    got => Err($crate::t10::PageError::Code { field: $field, got }),
                }
            }
        }
    };
}

pub(super) use codes;

/// Why bytes are not the page that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The bytes end before the structure does.
    #[error("{structure} is cut short, {missing} bytes are missing")]
    Truncated {
        /// The page or part of it.
        structure: &'static str,
        /// How many bytes are missing at least.
        missing: usize,
    },
    /// Bytes follow the structure.
    #[error("{structure} is followed by {got} bytes that do not belong to it")]
    TrailingBytes {
        /// The page or part of it.
        structure: &'static str,
        /// How many.
        got: usize,
    },
    /// Another page than the one asked for.
    #[error("expected page {expected:04X}h, got {got:04X}h")]
    PageCode {
        /// The code of the page asked for.
        expected: u16,
        /// The code that was read.
        got: u16,
    },
    /// Another operation code than the one expected.
    #[error("expected operation code A2h or B5h, got {got:02X}h")]
    OperationCode {
        /// The code that was read.
        got: u8,
    },
    /// A code without a meaning to us.
    #[error("{field} has the unknown code {got:02X}h")]
    Code {
        /// The field.
        field: &'static str,
        /// The code that was read.
        got: u8,
    },
    /// A length that the field cannot have.
    #[error("expected {field} of {expected} bytes, got {got}")]
    Length {
        /// The field.
        field: &'static str,
        /// The lengths that it can have.
        expected: &'static str,
        /// Its length, in bytes.
        got: usize,
    },
    /// A reserved bit is set in a page for a drive.
    #[error("reserved bits are set in {structure}")]
    Reserved {
        /// The page or part of it.
        structure: &'static str,
    },
    /// Descriptors out of order, or one twice that may be there once.
    #[error("{structure} must be in ascending order, got type {got:02X}h after {previous:02X}h")]
    Order {
        /// What they describe.
        structure: &'static str,
        /// The type of the earlier descriptor.
        previous: u8,
        /// The type of the later one.
        got: u8,
    },
    /// More descriptors than we take.
    #[error("expected at most {limit} of {structure}, got more")]
    TooMany {
        /// What they describe.
        structure: &'static str,
        /// The limit.
        limit: usize,
    },
    /// AUTHENTICATED is not zero in a page for a drive.
    #[error("AUTHENTICATED must be 0 in data for a drive, got {got}")]
    Authenticated {
        /// The code.
        got: u8,
    },
    /// A parameter set other than RSA-2048.
    #[error("expected parameter set or public key type 0000h (RSA-2048), got {got:04X}h")]
    ParameterSet {
        /// The code.
        got: u32,
    },
    /// A signed wrapped key; nobody has published what signs it.
    #[error("expected a wrapped key without a signature, got one of {got} bytes")]
    Signature {
        /// The length of the signature, in bytes.
        got: usize,
    },
    /// The wrapped key descriptors are not a device id and a key length.
    #[error("expected wrapped key descriptors 00h and 04h, got {got:02X}h")]
    WrappedKeyDescriptor {
        /// The type that was read.
        got: u8,
    },
    /// The wrapped key length descriptor says another length.
    #[error("expected a wrapped key length of 0100h, got {got:04X}h")]
    WrappedKeyLength {
        /// The length that was read.
        got: u16,
    },
    /// The key that a device offers for wrapping is no RSA-2048 key.
    #[error("the device server key wrapping public key is unusable")]
    PublicKey(#[from] super::PublicKeyError),
}
