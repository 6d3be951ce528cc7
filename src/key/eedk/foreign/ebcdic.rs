//! EBCDIC, as far as key labels go: the printable characters of ASCII in code pages 037 and 1047.

/// Code page 037, from blank (20h) to tilde (7Eh).
#[rustfmt::skip]
const CP037: [u8; 95] = [
    0x40, 0x5A, 0x7F, 0x7B, 0x5B, 0x6C, 0x50, 0x7D, 0x4D, 0x5D, 0x5C, 0x4E, 0x6B, 0x60, 0x4B, 0x61,
    0xF0, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0x7A, 0x5E, 0x4C, 0x7E, 0x6E, 0x6F,
    0x7C, 0xC1, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD1, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6,
    0xD7, 0xD8, 0xD9, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xBA, 0xE0, 0xBB, 0xB0, 0x6D,
    0x79, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96,
    0x97, 0x98, 0x99, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xC0, 0x4F, 0xD0, 0xA1,
];

/// What code page 1047, of z/OS UNIX, has in another place.
const CP1047: [(u8, u8); 3] = [(b'[', 0xAD), (b']', 0xBD), (b'^', 0x5F)];

/// A text in code pages 037 and 1047; none where it has other characters than ASCII's printable ones.
pub(super) fn encode(text: &str) -> Option<[Vec<u8>; 2]> {
    let cp037: Option<Vec<u8>> = text
        .bytes()
        .map(|byte| CP037.get(usize::from(byte.checked_sub(b' ')?)).copied())
        .collect();
    let cp037 = cp037?;
    let cp1047 = text
        .bytes()
        .zip(&cp037)
        .map(|(byte, other)| {
            let moved = CP1047.iter().find(|(ascii, _)| *ascii == byte);
            moved.map_or(*other, |(_, ebcdic)| *ebcdic)
        })
        .collect();
    Some([cp037, cp1047])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_digits_and_brackets_are_where_ibm_has_them() {
        let [cp037, cp1047] = encode("Tape [2026]^").unwrap();
        assert_eq!(hex::encode_upper(cp037), "E381978540BAF2F0F2F6BBB0");
        assert_eq!(hex::encode_upper(cp1047), "E381978540ADF2F0F2F6BD5F");
        assert_eq!(encode("Ä"), None);
        assert_eq!(encode("a\n"), None);
    }

    #[test]
    fn no_two_characters_share_a_place() {
        let mut places = CP037.to_vec();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), CP037.len());
    }
}
