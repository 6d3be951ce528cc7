//! Sessions, and who logs in on them.

use std::ptr;

use cryptoki_sys as ck;
use secrecy::{ExposeSecret, SecretString};

use super::{CK_SESSION_HANDLE, CK_SLOT_ID, Call, Module, call, ulong};

/// Who logs in to be served. The security officer is not among them
/// ([`Officer`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// `CKU_USER`
    User,
    /// A vendor's own, from 0x80000000 on
    Vendor(u32),
}

/// Leave to log in as security officer (`CKU_SO`), once. It comes from
/// [`Module::init_token`], and [`Office`] has one of its own: a process that
/// serves a token does neither, and so cannot have it.
///
/// ```compile_fail
/// use ekm::bridge::pkcs11::{Module, Officer};
/// # fn serving(module: &Module, pin: &secrecy::SecretString) {
/// module.login_as_officer(1, pin, Officer(()));
/// # }
/// ```
#[derive(Debug)]
pub struct Officer(());

/// A module that is the security officer's alone: it has been given away, so
/// no token can be served with it, and a process loads its module once.
///
/// ```compile_fail,E0382
/// use ekm::bridge::pkcs11::{Module, Office, User};
/// # fn officer(module: Module, pin: &secrecy::SecretString) {
/// let office = Office::of(module);
/// module.login(1, User::User, Some(pin));
/// # }
/// ```
#[derive(Debug)]
pub struct Office(Module);

impl Office {
    /// Gives the module to the officer.
    #[must_use]
    pub const fn of(module: Module) -> Self {
        Self(module)
    }

    /// Everything that needs no other login than his.
    #[must_use]
    pub const fn module(&self) -> &Module {
        &self.0
    }

    /// `C_Login` as `CKU_SO`. The caller guards the PIN counter.
    ///
    /// # Errors
    /// The module's code.
    pub fn login(&self, session: CK_SESSION_HANDLE, pin: &SecretString) -> Call<()> {
        self.0.login_as_officer(session, pin, Officer(()))
    }
}

impl Module {
    /// `C_InitToken`: erases the token in the slot and names it. Whoever has
    /// done that may log in to it as its security officer.
    ///
    /// # Errors
    /// The module's code.
    pub fn init_token(
        &self,
        slot: CK_SLOT_ID,
        so_pin: &SecretString,
        label: &str,
    ) -> Call<Officer> {
        let mut name = [b' '; 32];
        for (to, from) in name.iter_mut().zip(label.bytes()) {
            *to = from;
        }
        let (pin, pin_len) = pin_parts(so_pin);
        call!(self, C_InitToken(slot, pin, pin_len, name.as_mut_ptr())).map(|()| Officer(()))
    }

    /// `C_InitPIN`, in a session of the SO.
    ///
    /// # Errors
    /// The module's code.
    pub fn init_pin(&self, session: CK_SESSION_HANDLE, pin: &SecretString) -> Call<()> {
        let (pin, pin_len) = pin_parts(pin);
        call!(self, C_InitPIN(session, pin, pin_len))
    }

    /// A read-write session.
    ///
    /// # Errors
    /// The module's code.
    pub fn open_session(&self, slot: CK_SLOT_ID) -> Call<CK_SESSION_HANDLE> {
        let mut session = 0;
        call!(
            self,
            C_OpenSession(
                slot,
                ck::CKF_SERIAL_SESSION | ck::CKF_RW_SESSION,
                ptr::null_mut(),
                None,
                &raw mut session,
            )
        )?;
        Ok(session)
    }

    /// `C_CloseSession`.
    ///
    /// # Errors
    /// The module's code.
    pub fn close_session(&self, session: CK_SESSION_HANDLE) -> Call<()> {
        call!(self, C_CloseSession(session))
    }

    /// The state of a session (`CKS_`), which tells whether the user is logged in.
    ///
    /// # Errors
    /// The module's code.
    pub fn session_state(&self, session: CK_SESSION_HANDLE) -> Call<ck::CK_STATE> {
        let mut info = ck::CK_SESSION_INFO::default();
        call!(self, C_GetSessionInfo(session, &raw mut info))?;
        Ok(info.state)
    }

    /// `C_Login` as `CKU_USER`; without a PIN the token asks for it on its own
    /// pad. The caller guards the PIN counter.
    ///
    /// # Errors
    /// The module's code.
    pub fn login(
        &self,
        session: CK_SESSION_HANDLE,
        user: User,
        pin: Option<&SecretString>,
    ) -> Call<()> {
        let user = match user {
            User::User => ck::CKU_USER,
            // With the vendor's bit it is no type of the standard, whatever the profile says.
            User::Vendor(number) => ck::CK_USER_TYPE::from(number | 0x8000_0000),
        };
        let (pin, pin_len) = pin.map_or((ptr::null_mut(), 0), pin_parts);
        call!(self, C_Login(session, user, pin, pin_len))
    }

    /// `C_Login` as `CKU_SO`: on the token that was initialised just now, or
    /// by an [`Office`].
    ///
    /// # Errors
    /// The module's code.
    pub fn login_as_officer(
        &self,
        session: CK_SESSION_HANDLE,
        pin: &SecretString,
        Officer(()): Officer,
    ) -> Call<()> {
        let (pin, pin_len) = pin_parts(pin);
        call!(self, C_Login(session, ck::CKU_SO, pin, pin_len))
    }

    /// `C_Logout`.
    ///
    /// # Errors
    /// The module's code.
    pub fn logout(&self, session: CK_SESSION_HANDLE) -> Call<()> {
        call!(self, C_Logout(session))
    }
}

fn pin_parts(pin: &SecretString) -> (*mut u8, ck::CK_ULONG) {
    let text = pin.expose_secret();
    (text.as_ptr().cast_mut(), ulong(text.len()))
}
