//! KEYLABL1, KEYENCD1, KEYLABL2, KEYENCD2: the labels of one level.

use serde::{Serialize, Serializer};

use crate::key::{Encoding, KekRef, KeyLabel};

/// A value and where it stands, counted from 1: its line in the host's file, or its position in
/// a DD statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub at: usize,
}

impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(to)
    }
}

/// The labels that a DD statement, a data class or a volume range names: one, or two.
///
/// One serves both EEDKs of the cartridge, so there is never a second without a first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// KEYLABL1 with KEYENCD1.
    pub kek1: At<KekRef>,
    /// KEYLABL2 with KEYENCD2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kek2: Option<At<KekRef>>,
}

/// What is wrong with the labels of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelFault {
    /// KEYENCD1 without KEYLABL1, or KEYENCD2 without KEYLABL2.
    #[error("KEYENCD{number} without KEYLABL{number}: an encoding says how its label is stored")]
    EncodingAlone {
        /// 1 or 2.
        number: u8,
    },
    /// KEYLABL2 without KEYLABL1.
    #[error("KEYLABL2 without KEYLABL1: a single label is the first, and serves both")]
    SecondAlone,
}

/// The four operands as they were found.
#[derive(Clone, Debug, Default)]
pub(super) struct Operands {
    pub(super) label1: Option<At<KeyLabel>>,
    pub(super) encoding1: Option<At<Encoding>>,
    pub(super) label2: Option<At<KeyLabel>>,
    pub(super) encoding2: Option<At<Encoding>>,
}

impl Operands {
    /// The labels, if any is named; or every fault of them.
    pub(super) fn labels(self) -> Result<Option<Labels>, Vec<At<LabelFault>>> {
        let Self {
            label1,
            encoding1,
            label2,
            encoding2,
        } = self;
        let mut faults = Vec::new();
        for (number, label, encoding) in [(1, &label1, &encoding1), (2, &label2, &encoding2)] {
            if let (None, Some(encoding)) = (label, encoding) {
                faults.push(At {
                    value: LabelFault::EncodingAlone { number },
                    at: encoding.at,
                });
            }
        }
        if let (None, Some(second)) = (&label1, &label2) {
            faults.push(At {
                value: LabelFault::SecondAlone,
                at: second.at,
            });
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let named = |label: At<KeyLabel>, encoding: Option<At<Encoding>>| At {
            at: label.at,
            value: KekRef {
                label: label.value,
                encoding: encoding.map(|encoding| encoding.value).unwrap_or_default(),
            },
        };
        Ok(label1.map(|label1| Labels {
            kek1: named(label1, encoding1),
            kek2: label2.map(|label2| named(label2, encoding2)),
        }))
    }
}
