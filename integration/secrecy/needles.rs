//! The forms in which a data key could lie in memory, and the search for all of them at once.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// A form of a key, or of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// 16 of its 32 bytes.
    Half,
    /// A half in hexadecimal, either case.
    Hex,
    /// A half in base64, wherever in the text it begins.
    Base64,
    /// A round key of the AES key schedule, in byte order.
    RoundKey,
    /// A round key, or a half, as 32-bit words of a little-endian machine.
    SwappedRoundKey,
    /// A round key of the equivalent inverse cipher, in byte order.
    InverseRoundKey,
    /// The same as 32-bit words of a little-endian machine.
    SwappedInverseRoundKey,
}

/// What was found: how often each key, by its number, and in which forms.
pub(super) type Found = BTreeMap<(usize, Form), usize>;

/// Everything to be searched for.
pub(super) struct Needles {
    needles: Vec<Needle>,
    /// The eight words of 8 bytes that each needle begins with, to needle and offset in it.
    words: HashMap<u64, Vec<(usize, usize)>>,
    /// One bit for each value of a word's first 24 bits, since nearly every word is none of these.
    first: Vec<u64>,
}

struct Needle {
    key: usize,
    form: Form,
    bytes: Vec<u8>,
}

/// A needle covers a whole aligned word wherever it lies, if it is no shorter than this.
const SHORTEST: usize = 15;

const WORD: usize = size_of::<u64>();

impl Needles {
    /// All forms of these keys.
    pub(super) fn new(keys: &[[u8; 32]]) -> Self {
        let mut all = Self {
            needles: Vec::new(),
            words: HashMap::new(),
            first: vec![0; 1 << (24 - 6)],
        };
        for (number, key) in keys.iter().enumerate() {
            for (form, bytes) in forms(key) {
                all.add(number, form, bytes);
            }
        }
        all
    }

    fn add(&mut self, key: usize, form: Form, bytes: Vec<u8>) {
        assert!(bytes.len() >= SHORTEST);
        let index = self.needles.len();
        for offset in 0..WORD {
            let word = word(&bytes[offset..]);
            self.words.entry(word).or_default().push((index, offset));
            let (at, bit) = bit(word);
            self.first[at] |= bit;
        }
        self.needles.push(Needle { key, form, bytes });
    }

    pub(super) fn len(&self) -> usize {
        self.needles.len()
    }

    /// Adds what lies in `memory` to `found`.
    pub(super) fn find(&self, memory: &[u8], found: &mut Found) {
        for (index, chunk) in memory.chunks_exact(WORD).enumerate() {
            let word = word(chunk);
            let (at, bit) = bit(word);
            if self.first[at] & bit == 0 {
                continue;
            }
            for &(needle, offset) in self.words.get(&word).into_iter().flatten() {
                let Needle { key, form, bytes } = &self.needles[needle];
                let lies_here = (index * WORD)
                    .checked_sub(offset)
                    .is_some_and(|begin| memory[begin..].starts_with(bytes));
                if lies_here {
                    *found.entry((*key, *form)).or_default() += 1;
                }
            }
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(*bytes.first_chunk().unwrap())
}

fn bit(word: u64) -> (usize, u64) {
    let first = usize::try_from(word & 0xff_ffff).unwrap();
    (first >> 6, 1 << (first & 63))
}

fn forms(key: &[u8; 32]) -> Vec<(Form, Vec<u8>)> {
    let mut forms = Vec::new();
    for half in key.chunks_exact(16) {
        forms.push((Form::Half, half.to_vec()));
        forms.push((Form::Hex, hex::encode(half).into_bytes()));
        forms.push((Form::Hex, hex::encode_upper(half).into_bytes()));
        for before in 0..3 {
            forms.push((Form::Base64, base64_inside(half, before)));
        }
    }
    let schedule = key_schedule(key);
    for (round, key) in schedule.iter().enumerate() {
        // The first two are the halves themselves.
        if round >= 2 {
            forms.push((Form::RoundKey, key.to_vec()));
        }
        forms.push((Form::SwappedRoundKey, swapped(key)));
        // Its first and last round keys are those of the cipher.
        if (1..14).contains(&round) {
            let inverse = inverse_mix_columns(key);
            forms.push((Form::InverseRoundKey, inverse.to_vec()));
            forms.push((Form::SwappedInverseRoundKey, swapped(&inverse)));
        }
    }
    forms
}

/// The digits that depend on nothing but `bytes` where that many bytes, modulo 3, go before them.
fn base64_inside(bytes: &[u8], before: usize) -> Vec<u8> {
    let mut whole = vec![0; before];
    whole.extend(bytes);
    let digits = STANDARD.encode(&whole).into_bytes();
    let begin = (before * 8).div_ceil(6);
    let end = whole.len() * 8 / 6;
    digits[begin..end].to_vec()
}

fn swapped(round_key: &[u8; 16]) -> Vec<u8> {
    round_key
        .chunks_exact(4)
        .flat_map(|word| word.iter().rev())
        .copied()
        .collect()
}

/// The 15 round keys of AES-256.
///
/// Source: FIPS 197, section 5.2.
fn key_schedule(key: &[u8; 32]) -> [[u8; 16]; 15] {
    let mut words: Vec<[u8; 4]> = key
        .chunks_exact(4)
        .map(|word| word.try_into().unwrap())
        .collect();
    let mut constant = 1;
    for index in 8..60 {
        let mut word = words[index - 1];
        if index % 8 == 0 {
            word.rotate_left(1);
        }
        if index % 4 == 0 {
            word = word.map(substitute);
        }
        if index % 8 == 0 {
            word[0] ^= constant;
            constant = times(constant, 2);
        }
        for (byte, earlier) in word.iter_mut().zip(words[index - 8]) {
            *byte ^= earlier;
        }
        words.push(word);
    }
    let bytes = words.concat();
    std::array::from_fn(|round| bytes[round * 16..][..16].try_into().unwrap())
}

/// Source: FIPS 197, section 5.3.3.
fn inverse_mix_columns(round_key: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|at| {
        let column = &round_key[at / 4 * 4..][..4];
        [14, 11, 13, 9]
            .into_iter()
            .enumerate()
            .fold(0, |sum, (row, factor)| {
                sum ^ times(column[(at + row) % 4], factor)
            })
    })
}

/// The S-box, computed: the inverse, then the affine transformation.
///
/// Source: FIPS 197, section 5.1.1.
fn substitute(byte: u8) -> u8 {
    // The 254th power is the inverse, and zero for zero.
    let inverse = (0..254).fold(1, |power, _| times(power, byte));
    (0..5).fold(0x63, |sum, turns| sum ^ inverse.rotate_left(turns))
}

/// Multiplication in GF(2^8).
///
/// Source: FIPS 197, section 4.2.
fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b };
        b >>= 1;
    }
    product
}

#[test]
fn the_key_schedule_is_that_of_fips_197() {
    // FIPS 197, appendix A.3.
    let key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
    let schedule = key_schedule(&hex::decode(key).unwrap().try_into().unwrap());
    assert_eq!(hex::encode(&schedule.as_flattened()[..32]), key);
    assert_eq!(hex::encode(schedule[2]), "9ba354118e6925afa51a8b5f2067fcde");
    assert_eq!(
        hex::encode(schedule[14]),
        "fe4890d1e6188d0b046df344706c631e"
    );
    let column = inverse_mix_columns(b"\x8e\x4d\xa1\xbc\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(column[..4], [0xdb, 0x13, 0x53, 0x45]);
}

#[test]
fn every_form_is_found_at_every_alignment() {
    let keys: Vec<[u8; 32]> = (1_u8..=5)
        .map(|number| Sha256::digest([number]).into())
        .collect();
    let needles = Needles::new(&keys);
    for (number, key) in keys.iter().enumerate() {
        for before in 0..17 {
            let mut text = vec![b'.'; before];
            text.extend(key);
            let encoded = STANDARD.encode(&text).into_bytes();
            let lower = [vec![b'.'; before], hex::encode(key).into_bytes()].concat();
            let upper = [vec![b'.'; before], hex::encode_upper(key).into_bytes()].concat();
            let schedule = [&vec![b'.'; before], key_schedule(key).as_flattened()].concat();
            for (memory, form, times) in [
                (&text, Form::Half, 2),
                (&encoded, Form::Base64, 2),
                (&lower, Form::Hex, 2),
                (&upper, Form::Hex, 2),
                (&schedule, Form::RoundKey, 13),
            ] {
                let mut found = Found::new();
                needles.find(memory, &mut found);
                assert_eq!(
                    found.get(&(number, form)),
                    Some(&times),
                    "key {number} as {form:?} after {before} bytes: {found:?}"
                );
            }
        }
    }
}
