//! KEKs of business partners: confirmed, sealed, listed, removed.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Reply, conflict, event, record, stored};
use crate::audit::Outcome;
use crate::certificates::{Certificate, CertificateError, Validity, Vouched, spelled, vouched};
use crate::key::{KekHash, KekRef, KeyLabel};
use crate::keystore::SealSeen;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::Partner;

/// What an operator has of a partner's KEK.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offered {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// Certificates between it and the CA.
    pub between: Vec<Vec<u8>>,
    /// The CAs that the operator trusts in this; none for a certificate that signed itself.
    pub cas: Option<Vec<Vec<u8>>>,
}

/// A partner's KEK as an operator sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartnerSeen {
    /// What we call it.
    pub label: KeyLabel,
    /// SHA-256 over its public key, by which both sides name it.
    pub hash: KekHash,
    /// Modulus length, bits.
    pub bits: u32,
    /// Whom the certificate names.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// Who vouches for it, besides the operator.
    pub vouched: Vouched,
    /// SHA-256 of the certificate, `AB:CD:…`.
    pub fingerprint: String,
    /// When the certificate is good.
    pub validity: Option<Validity>,
    /// Who compared the fingerprint.
    pub operator: String,
    /// When, RFC 3339.
    #[serde(with = "time::serde::rfc3339")]
    pub confirmed: OffsetDateTime,
    /// `good`; else what is wrong with its seal.
    pub seal: String,
}

/// What became of a removal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// Seal keys that could not be destroyed: whoever kept the row could put it back.
    pub seals_left: Vec<String>,
    /// What still names the label: `defaults`, `drive SERIAL`.
    pub named_by: Vec<String>,
}

/// What a certificate says, and who vouches for it, as `ekm kek partner add` shows it.
///
/// # Errors
/// It is not fit for a partner's KEK.
pub fn look(
    offered: &Offered,
    now: OffsetDateTime,
) -> Result<(Certificate, Vouched), CertificateError> {
    let certificate = Certificate::read(&offered.certificate)?;
    if now > certificate.validity.not_after {
        return Err(CertificateError::Ended(certificate.validity.last_day()));
    }
    let by = vouched(&certificate, &offered.between, offered.cas.as_deref(), now)?;
    Ok((certificate, by))
}

pub(super) async fn add(
    service: &Service,
    operator: &str,
    label: KeyLabel,
    offered: &Offered,
    fingerprint: &str,
) -> Result<Reply, Problem> {
    let refuse =
        |reason: String| conflict(EkmCode::EE31, format!("partner's KEK {label}: {reason}"));
    let now = OffsetDateTime::now_utc();
    let (certificate, by) = look(offered, now).map_err(|error| refuse(error.to_string()))?;
    let shown = certificate.fingerprint();
    if crate::certificates::typed(fingerprint) != Some(shown) {
        return Err(refuse(format!(
            "the fingerprint given is not that of the certificate, which is {}; ask the partner, by a way other than the one on which the certificate came, which is right",
            spelled(&shown)
        )));
    }
    is_free(service, &label, &certificate).await?;
    let mut partner = Partner {
        label: label.clone(),
        hash: certificate.hash(),
        spki: certificate.spki.clone(),
        certificate: certificate.der.clone(),
        vouched: by,
        operator: operator.to_owned(),
        confirmed: now.truncate_to_second(),
        seals: Vec::new(),
    };
    let mut event = event("partner-add", operator);
    event.outcome = Outcome::Intent;
    event.keks = vec![label.to_string()];
    event.detail = Some(format!(
        "{}, certificate {}, public-key hash {}, vouched for by {}, good until {}",
        certificate.subject,
        spelled(&shown),
        partner.hash,
        partner.vouched,
        certificate.validity.last_day()
    ));
    record(service, event.clone()).await?;
    match service.tokens().seal(partner.digest()).await {
        Ok(seals) => partner.seals = seals,
        Err(reason) => {
            event.outcome = Outcome::Failure;
            event.detail = Some(format!("no token seals the row: {reason}"));
            record(service, event).await?;
            return Err(refuse(format!(
                "no token here can seal it ({reason}); bring a token with CKM_GENERIC_SECRET_KEY_GEN and CKM_SHA256_HMAC, or put the partner's public key on a token by the vendor's means and set policy.unproved_keks = \"allow\""
            )));
        }
    }
    event.token = Some(
        partner
            .seals
            .iter()
            .map(|seal| seal.token.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    );
    if let Err(problem) = stored(service.store().add_partner(&partner).await) {
        service.tokens().unseal(&partner.seals).await;
        event.outcome = Outcome::Failure;
        event.detail = Some(problem.detail.clone());
        record(service, event).await?;
        return Err(problem);
    }
    event.outcome = Outcome::Success;
    record(service, event).await?;
    service.forget_seals();
    let seen = service.see_seal(&partner).await;
    Ok(Reply::Partners(vec![told(&partner, seen)]))
}

/// A label names one key, and a key of ours is not a partner's.
async fn is_free(
    service: &Service,
    label: &KeyLabel,
    certificate: &Certificate,
) -> Result<(), Problem> {
    let refuse = |reason: String| {
        Err(conflict(
            EkmCode::EE31,
            format!("partner's KEK {label}: {reason}"),
        ))
    };
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    let hash = certificate.hash();
    for kek in directory.keks() {
        if kek.hash == hash && kek.partner.is_some() {
            return refuse(format!(
                "its key is the partner's KEK {} already; to take a new certificate for it: ekm kek partner remove {}, then add",
                kek.label, kek.label
            ));
        }
        if kek.hash == hash && !(kek.tokens.is_empty() && kek.refused.is_empty()) {
            return refuse(format!(
                "its key is KEK {}, whose private half is here; a partner's is not",
                kek.label
            ));
        }
        if kek.label.same_as(label) && kek.hash != hash {
            return refuse(format!(
                "the label is taken by the key {}; choose another label",
                kek.hash
            ));
        }
    }
    let registry = stored(service.store().keks().await)?;
    if let Some(row) = registry.iter().find(|row| row.label.same_as(label)) {
        return refuse(format!(
            "the label is registered for the key {}; choose another label",
            row.hash
        ));
    }
    Ok(())
}

pub(super) async fn list(service: &Service) -> Result<Reply, Problem> {
    let certificates = stored(service.store().certificates().await)?;
    let mut all = Vec::with_capacity(certificates.partners.len());
    for partner in &certificates.partners {
        let seen = service.see_seal(partner).await;
        all.push(told(partner, seen));
    }
    Ok(Reply::Partners(all))
}

pub(super) async fn remove(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
) -> Result<Reply, Problem> {
    let certificates = stored(service.store().certificates().await)?;
    let Some(partner) = certificates
        .partners
        .iter()
        .find(|partner| partner.label.same_as(label))
    else {
        return Err(Problem::new(
            EkmCode::EE31,
            404,
            format!("there is no partner's KEK {label} (ekm kek partner list)"),
        ));
    };
    let mut event = event("partner-remove", operator);
    event.keks = vec![partner.label.to_string()];
    event.detail = Some(format!("public-key hash {}", partner.hash));
    record(service, event).await?;
    stored(service.store().delete_partner(label).await)?;
    service.forget_seals();
    let seals_left = service.tokens().unseal(&partner.seals).await;
    Ok(Reply::Removed(Removed {
        seals_left,
        named_by: named_by(service, label).await?,
    }))
}

/// What names the label, so that nobody wonders at three in the morning.
async fn named_by(service: &Service, label: &KeyLabel) -> Result<Vec<String>, Problem> {
    let names = |keks: [Option<&KekRef>; 2]| {
        keks.into_iter()
            .flatten()
            .any(|kek| kek.label.same_as(label))
    };
    let defaults = stored(service.store().defaults().await)?;
    let mut found = Vec::new();
    if names([defaults.kek1.as_ref(), defaults.kek2.as_ref()]) {
        found.push("the defaults".to_owned());
    }
    for drive in stored(service.store().drives().await)? {
        if names([drive.kek1.as_ref(), drive.kek2.as_ref()]) {
            found.push(format!("drive {}", drive.serial));
        }
    }
    Ok(found)
}

fn told(partner: &Partner, seal: SealSeen) -> PartnerSeen {
    use sha2::{Digest, Sha256};
    let (subject, issuer) = Certificate::read(&partner.certificate)
        .map_or_else(|_| Default::default(), |read| (read.subject, read.issuer));
    PartnerSeen {
        label: partner.label.clone(),
        hash: partner.hash,
        bits: crate::bridge::rsa_bits(&partner.spki).unwrap_or_default(),
        subject,
        issuer,
        vouched: partner.vouched.clone(),
        fingerprint: spelled(&Sha256::digest(&partner.certificate)),
        validity: Validity::of(&partner.certificate),
        operator: partner.operator.clone(),
        confirmed: partner.confirmed,
        seal: match seal {
            SealSeen::Good => "good".to_owned(),
            SealSeen::Broken(reason) => format!("DOES NOT VERIFY: {reason}"),
            SealSeen::Unknown(reason) => format!("cannot be verified now: {reason}"),
        },
    }
}
