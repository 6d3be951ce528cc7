//! KEKs that a ceremony is about to make.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::key::KeyLabel;

/// A birth that has begun and has not ended: until it has, the key with its `CKA_ID`, which is
/// the ceremony's number, may be on the token and extractable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Birth {
    /// The ceremony.
    pub ceremony: uuid::Uuid,
    /// The KEK's label.
    pub label: KeyLabel,
    /// The token, by configured name.
    pub token: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub began: OffsetDateTime,
}

impl Birth {
    /// The `CKA_ID` of its key.
    #[must_use]
    pub fn id(&self) -> Vec<u8> {
        self.ceremony.as_bytes().to_vec()
    }

    /// What there is to say of the key, if it is there and not whole.
    #[must_use]
    pub fn words(&self) -> String {
        format!(
            "a ceremony of {} was interrupted and left it (CKA_ID {}), extractable and without a copy: hold the ceremony again under this label, which removes it first, or destroy it with the token's own tool",
            self.began.date(),
            hex::encode(self.ceremony.as_bytes())
        )
    }
}
