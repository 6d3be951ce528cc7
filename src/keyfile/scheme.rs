//! How something in a key file is sealed under a password.
//!
//! | Algorithm | Written by |
//! |---|---|
//! | 1.3.6.1.4.1.42.2.17.1.1, Sun's key protector | keytool, JKS |
//! | 1.3.6.1.4.1.42.2.19.1, `PBEWithMD5AndTripleDES` | keytool, JCEKS |
//! | pbeWithSHAAnd… of PKCS#12 (RFC 7292, appendix C) | RACF, DCM, old keytool and OpenSSL |
//! | PBES2 (RFC 8018, section 6.2), PBKDF2 | keytool and OpenSSL today |

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm, DecryptionContext, PaddedBlockDecryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::{digest, pbkdf2};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt as _, InnerIvInit as _, KeyIvInit as _};
use der::asn1::ObjectIdentifier;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::ber::{Ber, Malformed, OCTETS};
use super::derive::{self, Budget, Costly, Password, Purpose};

/// The longest salt, bytes; nobody writes more than 64.
const MAX_SALT: usize = 1024;

/// How something is sealed, as its AlgorithmIdentifier says.
pub(super) enum Scheme {
    /// Sun's key protector: SHA-1 as a key stream, and as a check.
    Jks,
    /// `PBEWithMD5AndTripleDES`.
    Jceks { salt: [u8; 8], iterations: u64 },
    /// PBES1 with the derivation of PKCS#12.
    Pkcs12 {
        cipher: OldCipher,
        salt: Vec<u8>,
        iterations: u64,
    },
    /// PBES2 with PBKDF2.
    Pbes2 {
        prf: pbkdf2::Algorithm,
        /// What one block of the PRF has, bytes.
        block: usize,
        salt: Vec<u8>,
        iterations: u64,
        cipher: NewCipher,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum OldCipher {
    /// RC2 with a key of so many bytes.
    Rc2(usize),
    /// Triple DES with two or three keys; the length in bytes.
    TripleDes(usize),
}

#[derive(Debug)]
pub(super) enum NewCipher {
    Aes(&'static Algorithm, usize, [u8; 16]),
    TripleDes([u8; 8]),
}

/// Why something does not open.
#[derive(Debug)]
pub(super) enum SealError {
    /// Wrong password, or damaged: the padding or the check is wrong.
    Shut,
    /// That part of it is not as it should be.
    Malformed(&'static str),
    /// An algorithm that is not read.
    Unsupported(String),
    /// More work than is done.
    Costly(Costly),
}

impl From<Malformed> for SealError {
    fn from(Malformed(what): Malformed) -> Self {
        Self::Malformed(what)
    }
}

impl From<Costly> for SealError {
    fn from(costly: Costly) -> Self {
        Self::Costly(costly)
    }
}

impl Scheme {
    /// From what is in an AlgorithmIdentifier.
    pub(super) fn parse(mut algorithm: Ber<'_>) -> Result<Self, SealError> {
        let oid = algorithm.oid("the algorithm")?;
        match oid {
            SUN_JKS => Ok(Self::Jks),
            SUN_JCEKS => {
                let (salt, iterations) = pbe_parameter(algorithm)?;
                let salt = <[u8; 8]>::try_from(salt.as_slice())
                    .map_err(|_| SealError::Malformed("the salt"))?;
                Ok(Self::Jceks { salt, iterations })
            }
            PBES2 => pbes2(algorithm.sequence("the parameters of PBES2")?),
            _ => match OLD.iter().find(|(known, _)| *known == oid) {
                Some((_, cipher)) => {
                    let (salt, iterations) = pbe_parameter(algorithm)?;
                    Ok(Self::Pkcs12 {
                        cipher: *cipher,
                        salt,
                        iterations,
                    })
                }
                None => Err(SealError::Unsupported(name(&oid))),
            },
        }
    }

    /// What is sealed in there.
    ///
    /// # Errors
    /// [`SealError::Shut`] where the password is wrong or the data damaged. A wrong password
    /// may also give rubbish: one in 256 times, the padding looks right.
    pub(super) fn unseal(
        &self,
        password: Password<'_>,
        sealed: &[u8],
        budget: &mut Budget,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        match self {
            Self::Jks => sun_jks(password, sealed),
            Self::Jceks { salt, iterations } => {
                let password = password.ascii().ok_or(SealError::Shut)?;
                let derived = derive::md5_triple_des(password, *salt, *iterations, budget)?;
                let (key, iv) = derived.split_at(24);
                triple_des(key, iv, sealed)
            }
            Self::Pkcs12 {
                cipher,
                salt,
                iterations,
            } => {
                let mut derive = |purpose, length| {
                    let sha1 = &digest::SHA1_FOR_LEGACY_USE_ONLY;
                    derive::pkcs12(sha1, password, salt, purpose, *iterations, length, budget)
                };
                let iv = derive(Purpose::Iv, 8)?;
                match *cipher {
                    OldCipher::Rc2(length) => rc2(&derive(Purpose::Key, length)?, &iv, sealed),
                    OldCipher::TripleDes(length) => {
                        let mut key = derive(Purpose::Key, length)?;
                        if length == 16 {
                            // The third key is the first one.
                            let both = Zeroizing::new(
                                [key.as_slice(), key.get(..8).unwrap_or_default()].concat(),
                            );
                            key = both;
                        }
                        triple_des(&key, &iv, sealed)
                    }
                }
            }
            Self::Pbes2 {
                prf,
                block,
                salt,
                iterations,
                cipher,
            } => {
                let length = match cipher {
                    NewCipher::Aes(_, length, _) => *length,
                    NewCipher::TripleDes(_) => 24,
                };
                let iterations = budget.spend(*iterations, length.div_ceil(*block))?;
                let iterations = std::num::NonZero::new(iterations)
                    .ok_or(SealError::Malformed("the iteration count"))?;
                let mut key = Zeroizing::new(vec![0; length]);
                pbkdf2::derive(*prf, iterations, salt, password.utf8(), &mut key);
                match cipher {
                    NewCipher::Aes(algorithm, _, iv) => aes(algorithm, &key, *iv, sealed),
                    NewCipher::TripleDes(iv) => triple_des(&key, iv, sealed),
                }
            }
        }
    }
}

/// Opens EncryptedPrivateKeyInfo (RFC 5208, section 6): how it is sealed, and what.
pub(super) fn sealed_key(der: &[u8]) -> Result<(Scheme, Zeroizing<Vec<u8>>), SealError> {
    let mut info = Ber::new(der).sequence("a sealed private key")?;
    let scheme = Scheme::parse(info.sequence("how the key is sealed")?)?;
    let sealed = info.octets(OCTETS, "the sealed key")?;
    Ok((scheme, sealed))
}

/// Salt and iterations (RFC 8018, appendix A.3).
fn pbe_parameter(mut algorithm: Ber<'_>) -> Result<(Vec<u8>, u64), Malformed> {
    parameter(algorithm.sequence("the parameters of the key derivation")?)
}

/// What is in a PBEParameter.
pub(super) fn parameter(mut parameter: Ber<'_>) -> Result<(Vec<u8>, u64), Malformed> {
    let salt = salt(&mut parameter)?;
    let iterations = iterations(&mut parameter)?;
    Ok((salt, iterations))
}

fn salt(ber: &mut Ber<'_>) -> Result<Vec<u8>, Malformed> {
    let salt = ber.octets(OCTETS, "the salt")?;
    if salt.is_empty() || salt.len() > MAX_SALT {
        return Err(Malformed("the salt"));
    }
    Ok(salt.to_vec())
}

fn iterations(ber: &mut Ber<'_>) -> Result<u64, Malformed> {
    match ber.number("the iteration count")? {
        0 => Err(Malformed("the iteration count")),
        iterations => Ok(iterations),
    }
}

/// PBES2-params (RFC 8018, appendix A.4).
fn pbes2(mut parameters: Ber<'_>) -> Result<Scheme, SealError> {
    let mut derivation = parameters.sequence("the key derivation")?;
    let mut cipher = parameters.sequence("the cipher")?;
    let oid = derivation.oid("the key derivation")?;
    if oid != PBKDF2 {
        return Err(SealError::Unsupported(name(&oid)));
    }
    let mut pbkdf2 = derivation.sequence("the parameters of PBKDF2")?;
    let salt = salt(&mut pbkdf2)?;
    let iterations = iterations(&mut pbkdf2)?;
    if pbkdf2.is_next(super::ber::INTEGER) {
        // The key's length: the cipher's own anyway.
        pbkdf2.number("the length of the key")?;
    }
    let prf = if pbkdf2.is_empty() {
        HMAC_SHA1
    } else {
        pbkdf2.sequence("the PRF")?.oid("the PRF")?
    };
    let (prf, block) = match prf {
        HMAC_SHA1 => (pbkdf2::PBKDF2_HMAC_SHA1, 20),
        HMAC_SHA256 => (pbkdf2::PBKDF2_HMAC_SHA256, 32),
        HMAC_SHA384 => (pbkdf2::PBKDF2_HMAC_SHA384, 48),
        HMAC_SHA512 => (pbkdf2::PBKDF2_HMAC_SHA512, 64),
        other => return Err(SealError::Unsupported(name(&other))),
    };
    let oid = cipher.oid("the cipher")?;
    let iv = cipher.octets(OCTETS, "the IV")?;
    let wrong_iv = |_| SealError::Malformed("the IV");
    let aes = |algorithm, length| {
        let iv = iv.as_slice().try_into().map_err(wrong_iv)?;
        Ok::<_, SealError>(NewCipher::Aes(algorithm, length, iv))
    };
    let cipher = match oid {
        AES_128_CBC => aes(&AES_128, 16)?,
        AES_192_CBC => aes(&AES_192, 24)?,
        AES_256_CBC => aes(&AES_256, 32)?,
        DES_EDE3_CBC => NewCipher::TripleDes(iv.as_slice().try_into().map_err(wrong_iv)?),
        other => return Err(SealError::Unsupported(name(&other))),
    };
    Ok(Scheme::Pbes2 {
        prf,
        block,
        salt,
        iterations,
        cipher,
    })
}

/// Sun's key protector: salt (20 bytes), the key under a stream of SHA-1, and the SHA-1 of
/// password and key.
///
/// Source: OpenJDK, `sun.security.provider.KeyProtector`.
fn sun_jks(password: Password<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let short = SealError::Malformed("the sealed key");
    let Some((salt, rest)) = sealed.split_at_checked(20) else {
        return Err(short);
    };
    let Some((cipher, check)) = rest
        .len()
        .checked_sub(20)
        .and_then(|at| rest.split_at_checked(at))
    else {
        return Err(short);
    };
    let sha1 = &digest::SHA1_FOR_LEGACY_USE_ONLY;
    let password = password.utf16();
    let mut input = Zeroizing::new([password.as_slice(), salt].concat());
    let mut plain = Zeroizing::new(cipher.to_vec());
    for block in plain.chunks_mut(20) {
        let stream = digest::digest(sha1, &input);
        if let Some(last) = input.get_mut(password.len()..) {
            last.copy_from_slice(stream.as_ref());
        }
        for (byte, stream) in block.iter_mut().zip(stream.as_ref()) {
            *byte ^= stream;
        }
    }
    let mut hash = digest::Context::new(sha1);
    hash.update(&password);
    hash.update(&plain);
    if bool::from(hash.finish().as_ref().ct_eq(check)) {
        Ok(plain)
    } else {
        Err(SealError::Shut)
    }
}

fn triple_des(key: &[u8], iv: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let cipher = cbc::Decryptor::<des::TdesEde3>::new_from_slices(key, iv)
        .map_err(|_| SealError::Malformed("the IV"))?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let length = cipher
        .decrypt_padded::<Pkcs7>(&mut plain)
        .map_err(|_| SealError::Shut)?
        .len();
    plain.truncate(length);
    Ok(plain)
}

fn rc2(key: &[u8], iv: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let inner = rc2::Rc2::new_with_eff_key_len(key, 8 * key.len());
    let cipher = cbc::Decryptor::inner_iv_slice_init(inner, iv)
        .map_err(|_| SealError::Malformed("the IV"))?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let length = cipher
        .decrypt_padded::<Pkcs7>(&mut plain)
        .map_err(|_| SealError::Shut)?
        .len();
    plain.truncate(length);
    Ok(plain)
}

fn aes(
    algorithm: &'static Algorithm,
    key: &[u8],
    iv: [u8; 16],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let key = UnboundCipherKey::new(algorithm, key)
        .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
        .map_err(|_| SealError::Malformed("the key"))?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let length = key
        .decrypt(&mut plain, DecryptionContext::Iv128(iv.into()))
        .map_err(|_| SealError::Shut)?
        .len();
    plain.truncate(length);
    Ok(plain)
}

/// What an algorithm is called, where it is one that key files are known to have.
fn name(oid: &ObjectIdentifier) -> String {
    let text = oid.to_string();
    let known = match text.as_str() {
        "1.2.840.113549.1.5.3" => "pbeWithMD5AndDES-CBC",
        "1.2.840.113549.1.5.10" => "pbeWithSHA1AndDES-CBC",
        "1.2.840.113549.1.5.6" => "pbeWithMD5AndRC2-CBC",
        "1.2.840.113549.1.5.11" => "pbeWithSHA1AndRC2-CBC",
        "1.2.840.113549.1.12.1.1" => "pbeWithSHAAnd128BitRC4",
        "1.2.840.113549.1.12.1.2" => "pbeWithSHAAnd40BitRC4",
        "1.3.6.1.4.1.11591.4.11" => "scrypt",
        "1.2.840.113549.1.5.14" => "PBMAC1",
        "1.3.14.3.2.7" => "DES-CBC",
        "1.2.840.113549.2.8" => "HMAC with SHA-224",
        _ => return format!("the algorithm {text}"),
    };
    known.to_owned()
}

const SUN_JKS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.42.2.17.1.1");
const SUN_JCEKS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.42.2.19.1");
const PBES2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.5.13");
const PBKDF2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.5.12");
const HMAC_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.2.7");
const HMAC_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.2.9");
const HMAC_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.2.10");
const HMAC_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.2.11");
const AES_128_CBC: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.2");
const AES_192_CBC: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.22");
const AES_256_CBC: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.42");
const DES_EDE3_CBC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.3.7");

/// PBES1 of PKCS#12 (RFC 7292, appendix C), but for RC4.
const OLD: [(ObjectIdentifier, OldCipher); 4] = [
    (
        ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.1.3"),
        OldCipher::TripleDes(24),
    ),
    (
        ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.1.4"),
        OldCipher::TripleDes(16),
    ),
    (
        ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.1.5"),
        OldCipher::Rc2(16),
    ),
    (
        ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.1.6"),
        OldCipher::Rc2(5),
    ),
];
