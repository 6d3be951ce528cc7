//! Tape data encryption as T10 defines it, as pure encoding and decoding.
//!
//! ```text
//! INQUIRY               (12h)           who the unit is                Inquiry
//!                                       80h 83h      its names         UnitSerial, Designators
//! READ, WRITE ATTRIBUTE (8Ch, 8Dh)      cartridge memory               Attributes, AttributeList
//! MODE SENSE, SELECT    (5Ah, 55h)      how the drive is set           ModeData
//! LOG SENSE             (4Dh)           TapeAlert                      TapeAlerts
//! READ POSITION         (34h)           where the tape stands          Position
//! SECURITY PROTOCOL IN  (A2h, "SPIN")   0000h 0001h  page lists                     PageList
//!                                       0010h        capabilities                   Capabilities
//!                                       0011h        supported key formats          KeyFormats
//!                                       0012h        management capabilities        ManagementCapabilities
//!                                       0020h        status                         Status
//!                                       0021h        next block's status            NextBlock
//!                                       0030h        random number                  RandomNumber
//!                                       0031h        key wrapping public key        DevicePublicKey
//! SECURITY PROTOCOL OUT (B5h, "SPOUT")  0010h        set data encryption            SetDataEncryption
//! ```
//!
//! Source: SSC-4, security protocol 20h (Tape Data Encryption), and SPC-4 for the CDBs, protocol
//! 00h, sense data and what is not of tape drives alone. Multi-byte fields are big-endian.
//!
//! Pages that a drive sends are read with care for what is in the field: reserved bits are
//! ignored, since a later standard may have given them a meaning. Pages that a drive is sent are
//! read as a drive reads them: a reserved bit that is set is refused.

mod algorithm;
mod attribute;
mod capabilities;
mod cdb;
mod code;
mod inquiry;
mod kad;
mod key_formats;
mod log;
mod management;
mod mode;
mod page_list;
mod position;
mod public_key;
mod random;
mod reader;
mod sense;
mod set_encryption;
mod status;
mod wrapped_key;

pub use algorithm::{
    Algorithm, AlgorithmIndex, CryptoSupport, ExternalModeSupport, KadSupport, NonceSupport,
    PositionSupport, RawModeSupport, SecurityAlgorithm,
};
pub use attribute::{Attribute, AttributeFormat, AttributeId, AttributeList, Attributes};
pub use capabilities::{Capabilities, ConfigurationAllowed, ExternalControl};
pub use cdb::{Cdb, Direction, InPage, OutPage, SecurityProtocol};
pub use code::PageError;
pub use inquiry::{Association, Designator, Designators, Inquiry, UnitSerial};
pub use kad::{Authenticated, Kad, KadFormat, KadType, Kads};
pub use key_formats::{KeyFormat, KeyFormats};
pub use log::{LogPageList, TapeAlerts};
pub use management::ManagementCapabilities;
pub use mode::{DeviceConfiguration, EncryptionMethod, ModeData, ModePage};
pub use page_list::{PageList, ProtocolList};
pub use position::Position;
pub use public_key::{DevicePublicKey, PublicKeyError};
pub use random::RandomNumber;
pub use sense::{Sense, SenseKey};
pub use set_encryption::{
    CheckMode, Clearing, DecryptionMode, EncryptionMode, KeyField, RawDecryption, Scope,
    SetDataEncryption,
};
pub use status::{EncryptionStatus, NextBlock, ParametersControl, Status};
pub use wrapped_key::{DeviceId, WrappedKey, WrappedKeyLabel};
