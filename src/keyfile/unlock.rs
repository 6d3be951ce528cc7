//! Opening what is sealed in a key file, with the passwords that there are.

use zeroize::Zeroizing;

use super::derive::{Budget, Costly, Password};
use super::private_key::{KeyFault, PrivateKey, Unused};
use super::scheme::{Scheme, SealError, sealed_key};
use super::{Content, Format, KeyFileError, MAX_ITEMS, MAX_ITERATIONS, MAX_KEYS, Passwords};

/// Opens what is sealed in one file, within the work that is done for a file.
#[derive(Debug)]
pub(super) struct Unlocker<'a> {
    pub(super) format: Format,
    passwords: &'a Passwords,
    pub(super) budget: Budget,
    items: usize,
    keys: usize,
}

/// Why a private key is not to be had.
#[derive(Debug)]
pub(super) enum Locked {
    /// No password opens it, or it is damaged.
    Shut { key_password: bool },
    /// It opened, or will never.
    Fault(Unused),
}

impl Locked {
    pub(super) fn reason(&self) -> Unused {
        match self {
            Self::Shut { key_password: true } => {
                Unused::from("neither the key password nor the store's opens it")
            }
            Self::Shut {
                key_password: false,
            } => Unused::from(
                "the store's password does not open it; give the key's own (--key-password-file)",
            ),
            Self::Fault(unused) => unused.clone(),
        }
    }
}

impl<'a> Unlocker<'a> {
    pub(super) const fn new(format: Format, passwords: &'a Passwords) -> Self {
        Self {
            format,
            passwords,
            budget: Budget::new(),
            items: 0,
            keys: 0,
        }
    }

    /// The store's password.
    pub(super) const fn store(&self) -> Password<'a> {
        Password::new(&self.passwords.store)
    }

    /// The keys' password if there is one, then the store's.
    fn candidates(&self) -> impl Iterator<Item = Password<'a>> + use<'a> {
        let keys = self.passwords.key.as_ref().map(Password::new);
        keys.into_iter().chain([self.store()])
    }

    /// Counts an entry or certificate.
    pub(super) fn count(&mut self) -> Result<(), KeyFileError> {
        self.items += 1;
        if self.items > MAX_ITEMS {
            return Err(KeyFileError::TooMany {
                format: self.format,
            });
        }
        Ok(())
    }

    /// Counts a private key, whose check takes a while.
    pub(super) fn count_key(&mut self) -> Result<(), KeyFileError> {
        self.keys += 1;
        if self.keys > MAX_KEYS {
            return Err(KeyFileError::TooMany {
                format: self.format,
            });
        }
        self.count()
    }

    /// What is sealed under one of the passwords, as far as `parse` finds sense in it.
    pub(super) fn open<T>(
        &mut self,
        scheme: &Scheme,
        sealed: &[u8],
        parse: impl Fn(Zeroizing<Vec<u8>>) -> Option<T>,
    ) -> Result<T, SealError> {
        for password in self.candidates() {
            match scheme.unseal(password, sealed, &mut self.budget) {
                Ok(plain) => {
                    if let Some(parsed) = parse(plain) {
                        return Ok(parsed);
                    }
                }
                Err(SealError::Shut) => {}
                Err(other) => return Err(other),
            }
        }
        Err(SealError::Shut)
    }

    /// A private key in EncryptedPrivateKeyInfo.
    pub(super) fn key(&mut self, sealed: &[u8]) -> Result<PrivateKey, Locked> {
        let opened = sealed_key(sealed).and_then(|(scheme, sealed)| {
            self.open(&scheme, &sealed, |plain| {
                match PrivateKey::from_pkcs8(&plain) {
                    // Rubbish: a wrong password whose padding looked right.
                    Err(KeyFault::NotPkcs8) => None,
                    other => Some(other),
                }
            })
        });
        match opened {
            Ok(Ok(key)) => Ok(key),
            Ok(Err(fault)) => Err(Locked::Fault(fault.into())),
            Err(error) => Err(self.locked(error)),
        }
    }

    pub(super) fn locked(&self, error: SealError) -> Locked {
        let reason = match error {
            SealError::Shut => {
                return Locked::Shut {
                    key_password: self.passwords.key.is_some(),
                };
            }
            SealError::Malformed(what) => format!("damaged: {what} is not as it should be"),
            SealError::Unsupported(what) => {
                format!("it is sealed with {what}, which is not read; {CONVERT}")
            }
            SealError::Costly(Costly { iterations }) => costly(iterations),
        };
        Locked::Fault(reason.into())
    }
}

/// How to seal anew what is sealed in a way that is not read.
pub(super) const CONVERT: &str = "write it anew with the program that made it, or with keytool -importkeystore -deststoretype PKCS12";

fn costly(iterations: u64) -> String {
    if iterations > u64::from(MAX_ITERATIONS) {
        format!(
            "its key derivation wants {iterations} iterations, and at most {MAX_ITERATIONS} are made; write it anew with fewer"
        )
    } else {
        format!(
            "its key derivation of {iterations} iterations is more than is still done for this file; put the KEKs into a store of their own"
        )
    }
}

/// An entry that cannot be used.
pub(super) fn unused(why: impl Into<Unused>) -> Content {
    match why.into() {
        Unused {
            what: Some(what),
            reason,
        } => Content::Unfit { what, reason },
        Unused { what: None, reason } => Content::Unreadable { reason },
    }
}
