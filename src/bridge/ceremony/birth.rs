//! A KEK that is wrapped once, in the moment of its birth.

use cryptoki_sys as ck;

use super::{Born, Ceremony, WrappedKek, template_refused, transport::Transport};
use crate::bridge::catalog;
use crate::bridge::faults::{Fault, ckr_name};
use crate::bridge::message::{Custody, KekAttributes, KekOnToken, PrivateHalf, Provenance};
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, CallError, Mechanism, PairHandles};
use crate::bridge::profile::{Generate, Send as SendAttr};
use crate::key::KeyLabel;

impl Ceremony {
    /// Makes the pair, wraps it, freezes it and looks at what the token made.
    /// Whatever goes wrong, the pair is destroyed.
    pub(super) fn bear(
        &self,
        label: &KeyLabel,
        bits: u32,
        custody: Custody,
        id: &[u8],
    ) -> Result<Born, Fault> {
        let profile = &self.token.profile;
        if profile.kek.generate == Generate::VendorTool {
            return Err(self.unsupported(format!(
                "KEK {label} cannot be made through PKCS#11 on this product (profile {}); make it and its copy with the vendor's tool",
                profile.name
            )));
        }
        if profile.host_only() && custody == Custody::Token {
            return Err(self.unsupported(format!(
                "KEK {label} would have to open EEDKs inside the token, and this product cannot (profile {}: drive.forms = []); make it with --custody host",
                profile.name
            )));
        }
        let transport = self.transport()?;
        let mut notes = Vec::new();
        let pair = self
            .extractable_pair(label, bits, custody, id, transport, &mut notes)
            // A module may have made it before it failed.
            .map_err(|fault| self.undone(id, fault))?;
        self.copy_and_freeze(label, &pair, transport, notes)
            .map_err(|fault| self.undone(id, fault))
    }

    fn extractable_pair(
        &self,
        label: &KeyLabel,
        bits: u32,
        custody: Custody,
        id: &[u8],
        transport: &Transport,
        notes: &mut Vec<String>,
    ) -> Result<PairHandles, Fault> {
        let profile = &self.token.profile;
        let mut private = catalog::private_template(label, id, custody, false, profile);
        // Frozen or uncopyable keys could not be frozen afterwards.
        private.retain(|attr| {
            !attr.is(ck::CKA_EXTRACTABLE)
                && !attr.is(ck::CKA_MODIFIABLE)
                && !attr.is(ck::CKA_COPYABLE)
        });
        private.push(Attr::flag(ck::CKA_EXTRACTABLE, true));
        let public = catalog::public_template(label, id, bits, profile);
        let make = |private: &[Attr]| {
            self.token.module.generate_pair(
                self.session,
                &Mechanism::Plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN),
                &public,
                private,
            )
        };
        let made = if transport.trusted {
            let mut trusting = private.clone();
            trusting.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
            match make(&trusting) {
                Err(error) if template_refused(error) => {
                    notes.push(format!(
                        "CKA_WRAP_WITH_TRUSTED was not set: C_GenerateKeyPair answered {}",
                        ckr_name(error.rv)
                    ));
                    make(&private)
                }
                other => {
                    notes.push(
                        "CKA_WRAP_WITH_TRUSTED was set. But the token lets the user make a trusted key, so until it was frozen whoever made one, logged in to the token, could have wrapped the KEK out"
                            .to_owned(),
                    );
                    other
                }
            }
        } else {
            notes.push(
                "CKA_WRAP_WITH_TRUSTED was not set: the token lets the user make no trusted key (CKA_TRUSTED), so until it was frozen anybody logged in to the token could have wrapped the KEK out"
                    .to_owned(),
            );
            make(&private)
        };
        made.map_err(|error| {
            self.failed(
                error,
                format!("generating KEK {label}, RSA-{bits}, to be copied"),
            )
        })
    }

    fn copy_and_freeze(
        &self,
        label: &KeyLabel,
        pair: &PairHandles,
        transport: &Transport,
        mut notes: Vec<String>,
    ) -> Result<Born, Fault> {
        let before = self.attributes(pair.private)?;
        if before.sensitive != Some(true) {
            return Err(self.refused(label, "the token made it so that CKA_SENSITIVE is not true"));
        }
        let wrapped = self.wrap_out(label, pair.private, transport)?;
        let freeze = [Attr::flag(ck::CKA_EXTRACTABLE, false)];
        self.token
            .module
            .set_attributes(self.session, pair.private, &freeze)
            .map_err(|error| {
                self.failed(
                    error,
                    format!("freezing KEK {label}: CKA_EXTRACTABLE false"),
                )
            })?;
        let frozen = self.attributes(pair.private)?;
        if frozen.extractable != Some(false) || frozen.sensitive != Some(true) {
            return Err(self.refused(
                label,
                "C_SetAttributeValue said CKR_OK, and CKA_EXTRACTABLE is not false",
            ));
        }
        let refusal = self.stays_in(label, pair.private, transport)?;
        let private = self.unmodifiable(pair.private, &mut notes);
        if private != pair.private {
            self.stays_in(label, private, transport)?;
        }
        let kek = self.shown(label)?;
        let after = match &kek.private {
            PrivateHalf::Serves { attributes, .. } => *attributes,
            PrivateHalf::Refused { reason, .. } => {
                return Err(self.refused(label, format!("it may not serve: {reason}")));
            }
            PrivateHalf::Absent => {
                return Err(self.refused(label, "the token does not show its private half"));
            }
        };
        Ok(Born {
            kek,
            wrapped,
            before,
            after,
            refusal,
            notes,
        })
    }

    fn wrap_out(
        &self,
        label: &KeyLabel,
        private: CK_OBJECT_HANDLE,
        transport: &Transport,
    ) -> Result<WrappedKek, Fault> {
        let no_way = || self.unsupported("no mechanism was found to wrap with");
        let (way, format) = transport.way.ok_or_else(no_way)?;
        let (mechanism, iv) = way.fresh().ok_or_else(no_way)?;
        let bytes = self
            .token
            .module
            .wrap_private(self.session, &mechanism, transport.handle, private)
            .map_err(|error| {
                self.failed(
                    error,
                    format!("wrapping KEK {label} under the transport key, {}", way.name),
                )
            })?;
        Ok(WrappedKek {
            mechanism: way.name.to_owned(),
            format,
            iv: hex::encode(iv),
            bytes: hex::encode(bytes),
        })
    }

    /// A copy on the token of which nothing can be changed any more, in place
    /// of the object given; that one where the token makes no such copy.
    fn unmodifiable(&self, private: CK_OBJECT_HANDLE, notes: &mut Vec<String>) -> CK_OBJECT_HANDLE {
        let profile = &self.token.profile;
        if profile.kek.frozen != SendAttr::Send {
            return private;
        }
        // Before CKA_MODIFIABLE: SoftHSM heeds what came before it.
        let uncopyable = [
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::flag(ck::CKA_COPYABLE, false),
            Attr::flag(ck::CKA_MODIFIABLE, false),
        ];
        let copyable = [
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::flag(ck::CKA_MODIFIABLE, false),
        ];
        let copy = |template: &[Attr]| {
            self.token
                .module
                .copy_object(self.session, private, template)
        };
        let copied = if profile.kek.uncopyable == SendAttr::Send {
            copy(&uncopyable).or_else(|_| {
                let copied = copy(&copyable)?;
                notes.push(
                    "CKA_COPYABLE stays true: C_CopyObject took no template with false".to_owned(),
                );
                Ok(copied)
            })
        } else {
            copy(&copyable)
        };
        let copy = match copied {
            Ok(copy) => copy,
            Err(error) => {
                let error: CallError = error;
                notes.push(format!(
                    "CKA_MODIFIABLE stays true: C_CopyObject answered {}; whoever has the PIN could give the KEK other uses",
                    ckr_name(error.rv)
                ));
                return private;
            }
        };
        let good = self.attributes(copy).is_ok_and(|attributes| {
            attributes.extractable == Some(false)
                && attributes.sensitive == Some(true)
                && attributes.modifiable == Some(false)
                && attributes.local == Some(true)
        });
        let (kept, dropped) = if good {
            (copy, private)
        } else {
            notes.push(
                "CKA_MODIFIABLE stays true: C_CopyObject made a copy with other attributes than it was told; whoever has the PIN could give the KEK other uses"
                    .to_owned(),
            );
            (private, copy)
        };
        // One that stays is seen by whoever looks next: two objects of one key are one KEK.
        if let Err(error) = self.token.module.destroy(self.session, dropped) {
            notes.push(format!(
                "a second object of the KEK stays on the token: C_DestroyObject answered {}",
                ckr_name(error.rv)
            ));
        }
        kept
    }

    /// That the frozen key does not come out again, by whichever mechanism.
    fn stays_in(
        &self,
        label: &KeyLabel,
        private: CK_OBJECT_HANDLE,
        transport: &Transport,
    ) -> Result<String, Fault> {
        let Some((mechanism, _)) = transport.way.and_then(|(way, _)| way.fresh()) else {
            return Err(self.unsupported("no mechanism was found to wrap with"));
        };
        match self
            .token
            .module
            .wrap_private(self.session, &mechanism, transport.handle, private)
        {
            Err(error) if keeps_in(error) => {
                Ok(format!("C_WrapKey answered {}", ckr_name(error.rv)))
            }
            // That tells nothing of the key.
            Err(error) => Err(self.failed(
                error,
                format!("seeing whether KEK {label} could still be wrapped"),
            )),
            Ok(_) => Err(self.refused(
                label,
                "the token wraps it out although CKA_EXTRACTABLE is false, so a KEK that was ever extractable stays so here; make it without a copy, on a token that keeps its word",
            )),
        }
    }

    pub(super) fn attributes(&self, object: CK_OBJECT_HANDLE) -> Result<KekAttributes, Fault> {
        let asked = self.token.profile.kek.unwrap_template;
        catalog::attributes(&self.token.module, self.session, object, asked)
            .map_err(|error| self.failed(error, "reading the KEK's attributes"))
    }

    /// The KEK of that label, as whoever looks at the token sees it.
    pub(super) fn shown(&self, label: &KeyLabel) -> Result<KekOnToken, Fault> {
        let catalog = self.catalog()?;
        catalog
            .keks
            .iter()
            .find(|kek| kek.label.same_as(label))
            .cloned()
            .ok_or_else(|| self.refused(label, "the token does not show the key that it just made"))
    }
}

/// Whether a code says that the key may not be wrapped, and not something else.
const fn keeps_in(error: CallError) -> bool {
    matches!(
        error.rv,
        ck::CKR_KEY_UNEXTRACTABLE
            | ck::CKR_KEY_NOT_WRAPPABLE
            | ck::CKR_KEY_FUNCTION_NOT_PERMITTED
            | ck::CKR_ACTION_PROHIBITED
    )
}

/// Whether it came to the token as a copy would.
#[must_use]
pub(super) const fn imported(kek: &KekOnToken) -> bool {
    matches!(
        kek.private,
        PrivateHalf::Serves {
            provenance: Provenance::Imported | Provenance::Restored,
            ..
        }
    )
}
