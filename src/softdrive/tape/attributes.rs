//! READ ATTRIBUTE and WRITE ATTRIBUTE: the cartridge memory (MAM) as a host sees it.

use std::collections::BTreeMap;

use super::{
    Quirk, TapeDrive,
    command::{Check, Command},
    image::{Attribute, Image, Memory},
    security::WRITE_ERROR,
};
use crate::t10::{Sense, SenseKey};

impl TapeDrive {
    /// READ ATTRIBUTE: values (00h), their list (01h), volumes (02h), partitions (03h), and what
    /// can be there (05h).
    ///
    /// ```text
    /// byte 1      SERVICE ACTION
    ///      5      LOGICAL VOLUME NUMBER
    ///      7      PARTITION NUMBER
    ///      8-9    FIRST ATTRIBUTE IDENTIFIER
    ///      10-13  ALLOCATION LENGTH
    /// ```
    ///
    /// Source: SPC-4, "READ ATTRIBUTE command".
    pub(super) fn read_attribute(&mut self, command: Command<'_>) -> Result<Vec<u8>, Check> {
        if self.has(Quirk::NoAttributes) {
            return Err(Sense::INVALID_COMMAND.into());
        }
        let image = self.image()?;
        if command.u8(5) != 0 || command.u8(7) != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let first = command.u16(8);
        let there = attributes(image);
        let body: Vec<u8> = match command.service_action() {
            0x00 | 0x01 if !there.contains_key(&first) => {
                return Err(Sense::INVALID_FIELD_IN_CDB.into());
            }
            0x00 => there
                .range(first..)
                .flat_map(|(id, (access, attribute))| described(*id, *access, attribute))
                .collect(),
            0x01 => there
                .range(first..)
                .flat_map(|(id, _)| id.to_be_bytes())
                .collect(),
            // One volume, one partition, from number 0.
            0x02 | 0x03 => return Ok(vec![0, 2, 0, 1]),
            0x05 => there
                .keys()
                .copied()
                .filter(|id| !HOST.contains(id) && !VENDOR.contains(id))
                .chain(HOST_ATTRIBUTES.iter().map(|(id, ..)| *id))
                .chain(VENDOR)
                .collect::<std::collections::BTreeSet<u16>>()
                .range(first..)
                .flat_map(|id| id.to_be_bytes())
                .collect(),
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        };
        let mut answer = u32::try_from(body.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes()
            .to_vec();
        answer.extend(body);
        Ok(answer)
    }

    /// WRITE ATTRIBUTE: host attributes (0800h to 0BFFh) and those of the host's vendor (1400h to
    /// 17FFh); one of length 0 is deleted. Nothing changes where anything is refused.
    pub(super) fn write_attribute(
        &mut self,
        command: Command<'_>,
        data: &[u8],
    ) -> Result<usize, Check> {
        let short: Check = Sense::PARAMETER_LIST_LENGTH.into();
        let refused: Check = Sense::INVALID_FIELD_IN_PARAMETER_LIST.into();
        if self.has(Quirk::NoAttributes) {
            return Err(Sense::INVALID_COMMAND.into());
        }
        if self.has(Quirk::MemoryFull) {
            return Err(OUT_OF_SPACE.into());
        }
        let image = self.image()?;
        if command.u8(5) != 0 || command.u8(7) != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let length = usize::try_from(command.u32(10)).unwrap_or(usize::MAX);
        if length == 0 {
            return Ok(0);
        }
        let list = data.get(..length).ok_or(short)?;
        let (header, mut rest) = list.split_first_chunk().ok_or(short)?;
        if usize::try_from(u32::from_be_bytes(*header)) != Ok(rest.len()) {
            return Err(short);
        }
        let mut memory = image.memory().clone();
        while let [i0, i1, format, l0, l1, after @ ..] = rest {
            let id = u16::from_be_bytes([*i0, *i1]);
            let length = usize::from(u16::from_be_bytes([*l0, *l1]));
            let (value, after) = after.split_at_checked(length).ok_or(short)?;
            if !writable(id, *format, length) {
                return Err(refused);
            }
            if value.is_empty() {
                memory.attributes.remove(&id);
            } else {
                memory.attributes.insert(
                    id,
                    Attribute {
                        format: *format & 3,
                        value: value.to_vec(),
                    },
                );
            }
            rest = after;
        }
        if !rest.is_empty() {
            return Err(short);
        }
        if space(&memory).is_none() {
            return Err(OUT_OF_SPACE.into());
        }
        image
            .remember(memory)
            .map_err(|_| Check::from(WRITE_ERROR))?;
        Ok(length)
    }
}

/// Whether an attribute can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadOnly,
    Writable,
}

/// All attributes that are there.
fn attributes(image: &Image) -> BTreeMap<u16, (Access, Attribute)> {
    let label = image.label();
    let memory = image.memory();
    let number = |value: u64| Attribute {
        format: BINARY,
        value: value.to_be_bytes().to_vec(),
    };
    let text = |text: String| Attribute {
        format: ASCII,
        value: text.into_bytes(),
    };
    let mebibytes = |bytes: u64| bytes >> 20;
    // All ones where there is no such block.
    let (encrypted, clear_after) = image.first_encrypted();
    let mut all: BTreeMap<u16, (Access, Attribute)> = [
        (
            0x0000,
            number(mebibytes(label.capacity.saturating_sub(image.recorded()))),
        ),
        (0x0001, number(mebibytes(label.capacity))),
        (0x0002, number(0)),
        (0x0003, number(memory.loads)),
        (0x0004, number(space(memory).unwrap_or_default())),
        (0x0224, number(encrypted.unwrap_or(u64::MAX))),
        (0x0225, number(clear_after.unwrap_or(u64::MAX))),
        (0x0400, text(format!("{:<8}", "EKM"))),
        (0x0401, text(format!("{:<32}", label.serial))),
        (0x0407, number(CAPACITY)),
    ]
    .into_iter()
    .map(|(id, attribute)| (id, (Access::ReadOnly, attribute)))
    .collect();
    all.extend(
        memory
            .attributes
            .iter()
            .map(|(id, attribute)| (*id, (Access::Writable, attribute.clone()))),
    );
    all
}

/// An attribute as it is in a list.
fn described(id: u16, access: Access, attribute: &Attribute) -> Vec<u8> {
    let Attribute { format, value } = attribute;
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.push(u8::from(access == Access::ReadOnly) << 7 | format);
    bytes.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend(value);
    bytes
}

/// Whether a host may write this; of length 0 it is deleted.
fn writable(id: u16, format: u8, length: usize) -> bool {
    if VENDOR.contains(&id) {
        return format & 3 != 3;
    }
    HOST_ATTRIBUTES
        .iter()
        .find(|(known, ..)| *known == id)
        .is_some_and(|(_, expected, lengths)| {
            length == 0 || format & 3 == *expected && lengths.contains(&length)
        })
}

/// Bytes that are free for host attributes; none where there are too many.
fn space(memory: &Memory) -> Option<u64> {
    // The bar code is the library's, and has a place of its own.
    let used: usize = memory
        .attributes
        .iter()
        .filter(|(id, _)| **id != super::image::BARCODE)
        .map(|(_, attribute)| 5 + attribute.value.len())
        .sum();
    FREE.checked_sub(u64::try_from(used).ok()?)
}

/// Host attributes: identifier, FORMAT, and the lengths that they may have (SPC-4, "Host type
/// attributes").
const HOST_ATTRIBUTES: [(u16, u8, std::ops::RangeInclusive<usize>); 13] = [
    (0x0800, ASCII, 8..=8),
    (0x0801, ASCII, 32..=32),
    (0x0802, ASCII, 8..=8),
    (0x0803, TEXT, 160..=160),
    (0x0804, ASCII, 12..=12),
    (0x0805, BINARY, 1..=1),
    (0x0806, ASCII, 32..=32),
    (0x0807, TEXT, 80..=80),
    (0x0808, TEXT, 160..=160),
    (0x0809, ASCII, 16..=16),
    (0x080a, BINARY, 1..=1),
    (0x080b, ASCII, 16..=16),
    (0x080c, BINARY, 23..=70),
];

const HOST: std::ops::RangeInclusive<u16> = 0x0800..=0x0bff;
const VENDOR: std::ops::RangeInclusive<u16> = 0x1400..=0x17ff;

const BINARY: u8 = 0;
const ASCII: u8 = 1;
const TEXT: u8 = 2;

/// MAM CAPACITY, and what of it a host can use: as on an LTO-4 cartridge.
const CAPACITY: u64 = 4096;
const FREE: u64 = 1014;

/// AUXILIARY MEMORY OUT OF SPACE.
const OUT_OF_SPACE: Sense = Sense::new(SenseKey::IllegalRequest, 0x55, 0x06);
