//! Keys: generated, wrapped and unwrapped, and put to use.

use cryptoki_sys as ck;
use secrecy::SecretSlice;
use zeroize::Zeroizing;

use super::template::RawTemplate;
use super::{
    Attr, BUFFER, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Mechanism, Module, call, length, ulong,
};

/// A public RSA key pair's two new handles, public first.
#[derive(Clone, Copy, Debug)]
pub struct PairHandles {
    /// The public half.
    pub public: CK_OBJECT_HANDLE,
    /// The private half.
    pub private: CK_OBJECT_HANDLE,
}

impl Module {
    /// `C_GenerateKey`.
    ///
    /// # Errors
    /// The module's code.
    pub fn generate_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut object = 0;
        mechanism.with(|mechanism| {
            call!(
                self,
                C_GenerateKey(session, mechanism, pointer, count, &raw mut object)
            )
        })?;
        Ok(object)
    }

    /// `C_GenerateKeyPair`.
    ///
    /// # Errors
    /// The module's code.
    pub fn generate_pair(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        public: &[Attr],
        private: &[Attr],
    ) -> Call<PairHandles> {
        let mut raw_public = RawTemplate::new(public);
        let (public_pointer, public_count) = raw_public.parts();
        let mut raw_private = RawTemplate::new(private);
        let (private_pointer, private_count) = raw_private.parts();
        let mut handles = PairHandles {
            public: 0,
            private: 0,
        };
        mechanism.with(|mechanism| {
            call!(
                self,
                C_GenerateKeyPair(
                    session,
                    mechanism,
                    public_pointer,
                    public_count,
                    private_pointer,
                    private_count,
                    &raw mut handles.public,
                    &raw mut handles.private,
                )
            )
        })?;
        Ok(handles)
    }

    /// `C_WrapKey` in one call, without the size query that makes most
    /// modules wrap twice.
    ///
    /// # Errors
    /// The module's code; `CKR_BUFFER_TOO_SMALL` past 1,024 bytes.
    pub fn wrap(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Call<Vec<u8>> {
        let mut wrapped = vec![0_u8; BUFFER];
        let mut size = ulong(BUFFER);
        mechanism.with(|mechanism| {
            call!(
                self,
                C_WrapKey(
                    session,
                    mechanism,
                    wrapping,
                    key,
                    wrapped.as_mut_ptr(),
                    &raw mut size,
                )
            )
        })?;
        wrapped.truncate(length(size));
        Ok(wrapped)
    }

    /// `C_UnwrapKey`.
    ///
    /// # Errors
    /// The module's code.
    pub fn unwrap(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        unwrapping: CK_OBJECT_HANDLE,
        wrapped: &[u8],
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut object = 0;
        mechanism.with(|mechanism| {
            call!(
                self,
                C_UnwrapKey(
                    session,
                    mechanism,
                    unwrapping,
                    wrapped.as_ptr().cast_mut(),
                    ulong(wrapped.len()),
                    pointer,
                    count,
                    &raw mut object,
                )
            )
        })?;
        Ok(object)
    }

    /// `C_EncryptInit` and `C_Encrypt` of one AES block.
    ///
    /// # Errors
    /// The module's code, under the name of the call that failed.
    pub fn encrypt_block(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        key: CK_OBJECT_HANDLE,
        block: &[u8; 16],
    ) -> Call<[u8; 16]> {
        mechanism.with(|mechanism| call!(self, C_EncryptInit(session, mechanism, key)))?;
        let mut input = *block;
        let mut out = [0_u8; 32];
        let mut size = ulong(out.len());
        call!(
            self,
            C_Encrypt(
                session,
                input.as_mut_ptr(),
                ulong(input.len()),
                out.as_mut_ptr(),
                &raw mut size,
            )
        )?;
        match (size, out.first_chunk::<16>()) {
            (16, Some(encrypted)) => Ok(*encrypted),
            _ => Err(self.failed("C_Encrypt", ck::CKR_DATA_LEN_RANGE)),
        }
    }

    /// `C_DecryptInit` and `C_Decrypt`; only custody `host` calls this.
    ///
    /// # Errors
    /// The module's code, under the name of the call that failed.
    pub fn decrypt(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        key: CK_OBJECT_HANDLE,
        data: &[u8],
    ) -> Call<SecretSlice<u8>> {
        mechanism.with(|mechanism| call!(self, C_DecryptInit(session, mechanism, key)))?;
        let mut out = Zeroizing::new([0_u8; BUFFER]);
        let mut size = ulong(BUFFER);
        call!(
            self,
            C_Decrypt(
                session,
                data.as_ptr().cast_mut(),
                ulong(data.len()),
                out.as_mut_ptr(),
                &raw mut size,
            )
        )?;
        let plain = out.get(..length(size)).unwrap_or_default();
        Ok(SecretSlice::from(plain.to_vec()))
    }

    /// `C_SignInit` and `C_Sign`: a signature by a private key, or a MAC by a secret one.
    ///
    /// # Errors
    /// The module's code, under the name of the call that failed.
    pub fn sign(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        key: CK_OBJECT_HANDLE,
        data: &[u8],
    ) -> Call<Vec<u8>> {
        mechanism.with(|mechanism| call!(self, C_SignInit(session, mechanism, key)))?;
        let mut out = vec![0_u8; BUFFER];
        let mut size = ulong(BUFFER);
        call!(
            self,
            C_Sign(
                session,
                data.as_ptr().cast_mut(),
                ulong(data.len()),
                out.as_mut_ptr(),
                &raw mut size,
            )
        )?;
        out.truncate(length(size));
        Ok(out)
    }

    /// `C_GenerateRandom` into a secret buffer; only custody `host` calls this.
    ///
    /// # Errors
    /// The module's code.
    pub fn random(&self, session: CK_SESSION_HANDLE, bytes: usize) -> Call<SecretSlice<u8>> {
        let mut out = Zeroizing::new(vec![0_u8; bytes]);
        call!(
            self,
            C_GenerateRandom(session, out.as_mut_ptr(), ulong(bytes))
        )?;
        Ok(SecretSlice::from(std::mem::take(&mut *out)))
    }
}

/// Private keys, which are longer than what [`Module::wrap`] has room for.
impl Module {
    /// Room for a wrapped RSA-8192 private key.
    const PRIVATE: usize = 8 * BUFFER;

    /// `C_WrapKey` of an RSA private key, in one call.
    ///
    /// # Errors
    /// The module's code; `CKR_BUFFER_TOO_SMALL` past 8,192 bytes.
    pub fn wrap_private(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Call<Vec<u8>> {
        let mut wrapped = vec![0_u8; Self::PRIVATE];
        let mut size = ulong(Self::PRIVATE);
        mechanism.with(|mechanism| {
            call!(
                self,
                C_WrapKey(
                    session,
                    mechanism,
                    wrapping,
                    key,
                    wrapped.as_mut_ptr(),
                    &raw mut size,
                )
            )
        })?;
        wrapped.truncate(length(size));
        Ok(wrapped)
    }
}
