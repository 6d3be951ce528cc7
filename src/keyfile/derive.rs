//! Keys from passwords, in the ways that key files do it.

use aws_lc_rs::digest;
use md5::{Digest as _, Md5};
use secrecy::{ExposeSecret, SecretString};
use zeroize::{Zeroize as _, Zeroizing};

use super::{MAX_ITERATIONS, MAX_WORK};

/// A password in the encodings that the formats want.
#[derive(Clone, Copy)]
pub(super) struct Password<'a>(&'a SecretString);

impl<'a> Password<'a> {
    pub(super) const fn new(password: &'a SecretString) -> Self {
        Self(password)
    }

    /// As PBES2 takes it.
    pub(super) fn utf8(self) -> &'a [u8] {
        self.0.expose_secret().as_bytes()
    }

    /// As JKS takes it: UTF-16, big-endian.
    pub(super) fn utf16(self) -> Zeroizing<Vec<u8>> {
        let text = self.0.expose_secret();
        // No character has more bytes in UTF-16 than twice those it has in UTF-8.
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * text.len() + 2));
        for mut unit in text.encode_utf16() {
            bytes.extend_from_slice(&unit.to_be_bytes());
            unit.zeroize();
        }
        bytes
    }

    /// As PKCS#12 takes it (RFC 7292, appendix B.1): the same with a NUL at its end.
    pub(super) fn bmp(self) -> Zeroizing<Vec<u8>> {
        let mut bytes = self.utf16();
        bytes.extend_from_slice(&[0, 0]);
        bytes
    }

    /// As Java's PBE ciphers take it: printable ASCII, nothing else.
    pub(super) fn ascii(self) -> Option<&'a [u8]> {
        let bytes = self.utf8();
        bytes
            .iter()
            .all(|byte| (0x20..0x7f).contains(byte))
            .then_some(bytes)
    }
}

/// More work than is done for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Costly {
    pub(super) iterations: u64,
}

/// The work that a file may still ask for.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Self { left: MAX_WORK }
    }

    /// Takes the work of a derivation out of it, before it is done.
    pub(super) fn spend(&mut self, iterations: u64, blocks: usize) -> Result<u32, Costly> {
        let costly = Costly { iterations };
        let checked = u32::try_from(iterations).map_err(|_| costly)?;
        if checked > MAX_ITERATIONS {
            return Err(costly);
        }
        let cost = u64::try_from(blocks)
            .ok()
            .and_then(|blocks| blocks.checked_mul(iterations))
            .ok_or(costly)?;
        self.left = self.left.checked_sub(cost).ok_or(costly)?;
        Ok(checked)
    }
}

/// What a key of [`pkcs12`] is for: the diversifier of RFC 7292, appendix B.3.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Key,
    Iv,
    Mac,
}

/// The derivation of PKCS#12 (RFC 7292, appendix B.2), with the names from there.
pub(super) fn pkcs12(
    hash: &'static digest::Algorithm,
    password: Password<'_>,
    salt: &[u8],
    purpose: Purpose,
    iterations: u64,
    length: usize,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, Costly> {
    let blocks = length.div_ceil(hash.output_len);
    let iterations = budget.spend(iterations, blocks)?;
    let v = hash.block_len();
    let id = match purpose {
        Purpose::Key => 1,
        Purpose::Iv => 2,
        Purpose::Mac => 3,
    };
    let password = password.bmp();
    let stretched = |bytes: &[u8]| bytes.len().div_ceil(v) * v;
    let s = stretched(salt);
    let p = stretched(&password);
    // D, then I = S || P.
    let mut input = Zeroizing::new(Vec::with_capacity(v + s + p));
    input.resize(v, id);
    input.extend(salt.iter().cycle().take(s));
    input.extend(password.iter().cycle().take(p));
    let mut key = Zeroizing::new(Vec::with_capacity(blocks * hash.output_len));
    for _ in 0..blocks {
        let mut a = [0; 64];
        let a = a.get_mut(..hash.output_len).unwrap_or_default();
        a.copy_from_slice(digest::digest(hash, &input).as_ref());
        for _ in 1..iterations {
            a.copy_from_slice(digest::digest(hash, a).as_ref());
        }
        key.extend_from_slice(a);
        let b: Zeroizing<Vec<u8>> = Zeroizing::new(a.iter().copied().cycle().take(v).collect());
        a.zeroize();
        // Each block of I plus B plus 1, modulo 2^(8v).
        for block in input.get_mut(v..).unwrap_or_default().chunks_mut(v) {
            let mut carry = 1;
            for (byte, b) in block.iter_mut().zip(b.iter()).rev() {
                let [high, low] = (u16::from(*byte) + u16::from(*b) + carry).to_be_bytes();
                carry = u16::from(high);
                *byte = low;
            }
        }
    }
    key.truncate(length);
    Ok(key)
}

/// Key (24 bytes) and IV (8) of `PBEWithMD5AndTripleDES` of Java's SunJCE provider, which no
/// standard describes. Each half of the salt is hashed with the password again and again.
///
/// Source: OpenJDK, `com.sun.crypto.provider.PBES1Core.deriveCipherKey`.
pub(super) fn md5_triple_des(
    password: &[u8],
    mut salt: [u8; 8],
    iterations: u64,
    budget: &mut Budget,
) -> Result<Zeroizing<[u8; 32]>, Costly> {
    let iterations = budget.spend(iterations, 2)?;
    let [a, b, c, d, rest @ ..] = salt;
    if [a, b, c, d] == rest {
        // Meant to turn the first half round, and kept as it came out: [d, a, b, d].
        let [_, _, _, _, e, f, g, h] = salt;
        salt = [d, a, b, d, e, f, g, h];
    }
    let mut derived = Zeroizing::new([0; 32]);
    for (half, out) in salt.chunks(4).zip(derived.chunks_mut(16)) {
        let mut hashed = Zeroizing::new(<[u8; 16]>::from(
            Md5::new()
                .chain_update(half)
                .chain_update(password)
                .finalize(),
        ));
        for _ in 1..iterations {
            *hashed = Md5::new()
                .chain_update(*hashed)
                .chain_update(password)
                .finalize()
                .into();
        }
        out.copy_from_slice(&*hashed);
    }
    Ok(derived)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(password: &str, salt: &str, purpose: Purpose, iterations: u64, n: usize) -> String {
        let password = SecretString::from(password);
        let key = pkcs12(
            &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Password::new(&password),
            &hex::decode(salt).unwrap(),
            purpose,
            iterations,
            n,
            &mut Budget::new(),
        );
        hex::encode(key.unwrap())
    }

    /// Vectors of the PKCS#12 test suites of OpenSSL and BouncyCastle.
    #[test]
    fn the_derivation_of_pkcs12_gives_the_known_keys() {
        for (password, salt, purpose, iterations, n, key) in [
            (
                "smeg",
                "0A58CF64530D823F",
                Purpose::Key,
                1,
                24,
                "8aaae6297b6cb04642ab5b077851284eb7128f1a2a7fbca3",
            ),
            (
                "smeg",
                "0A58CF64530D823F",
                Purpose::Iv,
                1,
                8,
                "79993dfe048d3b76",
            ),
            (
                "smeg",
                "3D83C0E4546AC140",
                Purpose::Mac,
                1,
                20,
                "8d967d88f6caa9d714800ab3d48051d63f73a312",
            ),
            (
                "queeg",
                "05DEC959ACFF72F7",
                Purpose::Key,
                1000,
                24,
                "ed2034e36328830ff09df1e1a07dd357185dac0d4f9eb3d4",
            ),
            (
                "queeg",
                "05DEC959ACFF72F7",
                Purpose::Iv,
                1000,
                8,
                "11dedad7758d4860",
            ),
            (
                "queeg",
                "263216FCC2FAB31C",
                Purpose::Mac,
                1000,
                20,
                "5ec4c7a80df652294c3925b6489a7ab857c83476",
            ),
        ] {
            assert_eq!(derived(password, salt, purpose, iterations, n), key);
        }
    }

    #[test]
    fn the_work_of_a_file_is_bounded_before_it_is_done() {
        let mut budget = Budget::new();
        assert_eq!(
            budget.spend(u64::from(MAX_ITERATIONS), 1),
            Ok(MAX_ITERATIONS)
        );
        for iterations in [u64::from(MAX_ITERATIONS) + 1, 1 << 31, u64::MAX] {
            assert_eq!(budget.spend(iterations, 1), Err(Costly { iterations }));
        }
        assert!(budget.spend(1, usize::MAX).is_err());
        for _ in 1..MAX_WORK / u64::from(MAX_ITERATIONS) {
            assert!(budget.spend(u64::from(MAX_ITERATIONS), 1).is_ok());
        }
        assert!(budget.spend(1, 1).is_err());
    }

    #[test]
    fn a_password_that_java_does_not_take_is_none() {
        let ascii = |text: &str| Password::new(&text.into()).ascii().is_some();
        assert!(ascii("changeit 1~"));
        assert!(!ascii("pässwort"));
        assert!(!ascii("tab\t"));
    }
}
