//! Keys that stay on the token: KEKs are made and destroyed, trust is taken away.

use cryptoki_sys as ck;

use super::Token;
use crate::bridge::faults::Fault;
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf};
use crate::bridge::pkcs11::{Attr, CK_SESSION_HANDLE, Mechanism};
use crate::bridge::profile::Generate;
use crate::bridge::{catalog, trust};
use crate::key::{KekHash, KeyLabel};

impl Token {
    /// Destroys the blessed object of a key, and looks again. Taking trust away
    /// needs no officer; giving it does.
    pub(in crate::bridge) fn distrust(
        &self,
        session: CK_SESSION_HANDLE,
        key: &KekHash,
    ) -> Result<(), Fault> {
        let seen = self.epoch().number;
        self.renew(seen, Some(session))?;
        if let Some(object) = self.epoch().catalog.trusted(key) {
            self.module.destroy(session, object).map_err(|error| {
                Fault::call(
                    &self.name,
                    error,
                    "taking the trust from a drive's former key",
                )
            })?;
            self.renew(self.epoch().number, Some(session))?;
        }
        Ok(())
    }

    /// Destroys a KEK for good, and looks again: how many objects there were. Where the token does
    /// not let its private half go, nothing is destroyed.
    pub(in crate::bridge) fn destroy_kek(
        &self,
        session: CK_SESSION_HANDLE,
        kek: &KekHash,
    ) -> Result<usize, Fault> {
        let fail = |error| Fault::call(&self.name, error, format!("destroying the KEK {kek}"));
        self.renew(self.epoch().number, Some(session))?;
        let objects = catalog::objects_of(&self.module, session, kek).map_err(fail)?;
        for object in &objects {
            self.module.destroy(session, *object).map_err(fail)?;
        }
        self.renew(self.epoch().number, Some(session))?;
        Ok(objects.len())
    }

    /// Makes a KEK, and looks at what the token made.
    pub(in crate::bridge) fn generate(
        &self,
        session: CK_SESSION_HANDLE,
        label: &KeyLabel,
        bits: u32,
        custody: Custody,
        sign: bool,
    ) -> Result<KekOnToken, Fault> {
        let refused = |reason: String| Fault::Refused {
            token: self.name.clone(),
            label: label.to_string(),
            reason,
        };
        if self.profile.kek.generate == Generate::VendorTool {
            return Err(self.unsupported(format!(
                "KEK {label} cannot be made through PKCS#11 on this product; make it with the vendor's tool (profile {}), and ekm finds it by its label",
                self.profile.name
            )));
        }
        if self.profile.host_only() && custody == Custody::Token {
            return Err(self.unsupported(format!(
                "KEK {label} would have to open EEDKs inside the token, and this product cannot unwrap and wrap (profile {}: drive.forms = []); make it with --custody host",
                self.profile.name
            )));
        }
        if sign && self.profile.wrap_algorithm().is_v15() {
            return Err(self.unsupported(format!(
                "KEK {label} would sign and open EEDKs by PKCS#1 v1.5, and whoever probes v1.5 paddings under a key can also make signatures by it; make it without --sign"
            )));
        }
        if trust::reserved(label.as_str()) {
            return Err(refused(
                "labels that begin so are for keys that the security officer blesses (ekm drive trust); choose another label"
                    .to_owned(),
            ));
        }
        let seen = self.epoch();
        // Read again first: another program may have made the label since.
        self.renew(seen.number, Some(session))?;
        if let Some(kek) = self
            .epoch()
            .catalog
            .keks
            .iter()
            .find(|kek| kek.label.same_as(label))
        {
            return Err(refused(format!(
                "the token already has the label {} (hash {}); choose another label",
                kek.label, kek.hash
            )));
        }
        let mut id = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_| refused("the operating system gives no random numbers".to_owned()))?;
        let public = catalog::public_template(label, &id, bits, &self.profile);
        let private = catalog::private_template(label, &id, custody, sign, &self.profile);
        let make = |private: &[Attr]| {
            let mechanism = Mechanism::Plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
            self.module
                .generate_pair(session, &mechanism, &public, private)
        };
        let pair = make(&private)
            .or_else(|error| {
                // Refused for its template there is no pair, so this makes no second one.
                let refused = catalog::REFUSES_TEMPLATE.contains(&error.rv);
                let less = catalog::undemanding(&private, &self.profile).filter(|_| refused);
                less.map_or(Err(error), |less| make(&less))
            })
            .map_err(|error| {
                Fault::call(
                    &self.name,
                    error,
                    format!("generating KEK {label}, RSA-{bits}"),
                )
            })?;
        self.renew(self.epoch().number, Some(session))?;
        let epoch = self.epoch();
        let kek = epoch
            .catalog
            .keks
            .iter()
            .find(|kek| kek.label.same_as(label))
            .ok_or_else(|| {
                refused("the token does not show the key that it just made".to_owned())
            })?;
        if let PrivateHalf::Refused { reason, .. } = &kek.private {
            // A key that may never serve must not stay under the label.
            for object in [pair.private, pair.public] {
                let _ = self.module.destroy(session, object);
            }
            return Err(refused(format!(
                "the token made it so that {reason}; it was deleted again"
            )));
        }
        Ok(kek.clone())
    }
}
