//! The token process: one child per token, driving it over PKCS#11.
//!
//! ```text
//! server                                   child: ekm bridge
//! supervisor --- message over socketpair --> process -> worker 1..N -> pkcs11 -> module
//!  restart, deadlines, canary                 token: login, epoch, KEKs
//! ```
//!
//! Vendor libraries crash, hang in a call for minutes, refuse to be loaded
//! twice and are configured by environment variables, so each token has a
//! process of its own. The PIN lives only there.

pub mod adopt;
mod attend;
mod carry;
mod catalog;
pub mod ceremony;
pub mod certify;
pub mod doctor;
pub mod evidence;
pub mod faults;
pub mod guard;
mod host;
pub mod import;
mod in_host;
mod inbox;
pub mod message;
mod outbox;
pub mod pin;
pub mod pkcs11;
mod probe;
pub mod process;
pub mod profile;
pub mod rates;
mod share;
mod software;
pub mod stats;
pub mod supervisor;
mod token;
pub mod trust;
pub mod uri;
mod which;
mod worker;

/// The modulus length of an RSA `SubjectPublicKeyInfo`, bits; none where it
/// is no RSA key that can wrap.
#[must_use]
pub fn rsa_bits(spki: &[u8]) -> Option<u32> {
    rsa_key(spki).map(|(_, bits)| bits)
}

/// An RSA `SubjectPublicKeyInfo` as KEKs are hashed, and its modulus length in bits; none where it
/// is no RSA key that can wrap.
pub(crate) fn rsa_key(spki: &[u8]) -> Option<(Vec<u8>, u32)> {
    let numbers = host::numbers(spki).ok()?;
    host::spki(&numbers.modulus, &numbers.exponent).ok()
}
