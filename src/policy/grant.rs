//! Permission as a value. Only the policy can make one; the exchange takes
//! nothing else.
//!
//! ```compile_fail,E0451
//! use ekm::policy::CreateGrant;
//! let forged = CreateGrant { drive: todo!(), custody: todo!(), keks: vec![] };
//! ```

use crate::bridge::faults::Fault;
use crate::bridge::message::{Custody, Recipient};
use crate::key::{Eedk, KekHash};
use crate::keystore::WrapKek;

/// A KEK that may be written under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedKek {
    /// The KEK.
    pub kek: WrapKek,
    /// Whether a token here can open what is wrapped under it.
    pub provable: bool,
    /// Whether it is a partner's, and a token verified the seal of its row.
    pub sealed: bool,
    /// Whether the registry has it.
    pub registered: bool,
}

/// An EEDK that some token here should open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readable {
    /// Its place in the request, from 0.
    pub index: usize,
    /// The EEDK.
    pub eedk: Eedk,
    /// Its KEK.
    pub kek: KekHash,
    /// Whether a software keystore may open it.
    pub software: bool,
    /// Whether nobody may learn whether it opens: it is wrapped by PKCS#1 v1.5 and was never issued
    /// here. It stands last, and there is one at most.
    pub guarded: bool,
}

/// Permission to make a data key.
#[derive(Debug)]
pub struct CreateGrant {
    pub(super) drive: Recipient,
    pub(super) custody: Custody,
    pub(super) keks: Vec<GrantedKek>,
}

impl CreateGrant {
    /// Who gets it.
    #[must_use]
    pub const fn drive(&self) -> &Recipient {
        &self.drive
    }

    /// How far from the token it may go.
    #[must_use]
    pub const fn custody(&self) -> Custody {
        self.custody
    }

    /// One or two KEKs.
    #[must_use]
    pub fn keks(&self) -> &[GrantedKek] {
        &self.keks
    }
}

/// Permission to open a data key for a drive.
#[derive(Debug)]
pub struct ResolveGrant {
    pub(super) drive: Recipient,
    pub(super) custody: Custody,
    pub(super) readable: Vec<Readable>,
    pub(super) unreadable: Vec<Fault>,
}

impl ResolveGrant {
    /// Who gets it.
    #[must_use]
    pub const fn drive(&self) -> &Recipient {
        &self.drive
    }

    /// How far from the token it may go.
    #[must_use]
    pub const fn custody(&self) -> Custody {
        self.custody
    }

    /// The EEDKs to try, in order.
    #[must_use]
    pub fn readable(&self) -> &[Readable] {
        &self.readable
    }

    /// The KEK of the EEDK of which nobody may learn whether it opens.
    #[must_use]
    pub fn guarded(&self) -> Option<KekHash> {
        let guarded = self.readable.iter().find(|readable| readable.guarded);
        guarded.map(|readable| readable.kek)
    }

    /// The same without that EEDK, and why; nothing where no other can be tried.
    #[must_use]
    pub fn unguarded(mut self, reason: &str) -> Option<Self> {
        for readable in self.readable.extract_if(.., |readable| readable.guarded) {
            self.unreadable.push(Fault::NotTried {
                number: readable.index + 1,
                reason: reason.to_owned(),
            });
        }
        (!self.readable.is_empty()).then_some(self)
    }

    /// What is wrong with the others.
    #[must_use]
    pub fn unreadable(&self) -> &[Fault] {
        &self.unreadable
    }
}

/// Permission to put a data key under other KEKs.
#[derive(Debug)]
pub struct RekeyGrant {
    pub(super) custody: Custody,
    pub(super) keks: Vec<GrantedKek>,
    pub(super) readable: Vec<Readable>,
    pub(super) unreadable: Vec<Fault>,
}

impl RekeyGrant {
    /// How far from the token it may go.
    #[must_use]
    pub const fn custody(&self) -> Custody {
        self.custody
    }

    /// One or two KEKs.
    #[must_use]
    pub fn keks(&self) -> &[GrantedKek] {
        &self.keks
    }

    /// The EEDKs to try, in order.
    #[must_use]
    pub fn readable(&self) -> &[Readable] {
        &self.readable
    }

    /// What is wrong with the others.
    #[must_use]
    pub fn unreadable(&self) -> &[Fault] {
        &self.unreadable
    }
}
