//! Certificates of our own KEKs: requests, proof of possession, import.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Reply, conflict, event, record, stored};
use crate::audit::Outcome;
use crate::certificates::{Certificate, Subject, spelled, vouched};
use crate::key::KeyLabel;
use crate::keystore::KnownKek;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;

/// What became of a certificate that was imported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Imported {
    /// The KEK as it is now.
    pub kek: KnownKek,
    /// The tokens that keep the certificate.
    pub tokens: Vec<String>,
    /// Those that do not, and why; the registry keeps it for them.
    pub not_taken: Vec<(String, String)>,
}

/// The one KEK of ours with that label, read from the tokens anew.
async fn own(service: &Service, label: &KeyLabel) -> Result<KnownKek, Problem> {
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    let kek = directory
        .by_label(label)
        .map_err(|error| conflict(EkmCode::EE31, error.to_string()))?;
    if kek.partner.is_some() {
        return Err(conflict(
            EkmCode::EE31,
            format!(
                "{label} is a partner's KEK, whose certificate the partner gets; to take a new one: ekm kek partner remove {label}, then add"
            ),
        ));
    }
    if kek.tokens.is_empty() {
        let why = kek.refused.first().map_or_else(
            || {
                if kek.away.is_empty() {
                    "its private half is on no token here".to_owned()
                } else {
                    format!(
                        "token {}, which has it, has not been up since the start (ekm token status)",
                        kek.away.join(", ")
                    )
                }
            },
            |(token, reason)| format!("token {token} holds it, but {reason}"),
        );
        return Err(conflict(EkmCode::EE31, format!("KEK {label}: {why}")));
    }
    Ok(kek.clone())
}

pub(super) async fn request(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
    subject: Option<Subject>,
) -> Result<Reply, Problem> {
    let kek = own(service, label).await?;
    let signing: Vec<String> = kek
        .attributes
        .iter()
        .filter(|(token, attributes)| attributes.sign == Some(true) && kek.tokens.contains(token))
        .map(|(token, _)| token.clone())
        .collect();
    if signing.is_empty() {
        return Err(conflict(EkmCode::EE31, cannot_sign(&kek)));
    }
    let subject = match subject {
        Some(subject) => subject,
        None => Subject::common_name(label.as_str())
            .map_err(|error| conflict(EkmCode::EE31, error.to_string()))?,
    };
    // A signature by a KEK is on record before it is made.
    let mut event = event("kek-csr", operator);
    event.outcome = Outcome::Intent;
    event.keks = vec![label.to_string()];
    record(service, event.clone()).await?;
    let made = service.tokens().request(&signing, kek.hash, &subject).await;
    event.outcome = match &made {
        Ok(_) => Outcome::Success,
        Err(fault) => {
            event.detail = Some(fault.to_string());
            Outcome::Failure
        }
    };
    record(service, event).await?;
    made.map(Reply::Request)
        .map_err(|fault| Problem::from(&fault))
}

fn cannot_sign(kek: &KnownKek) -> String {
    let label = &kek.label;
    format!(
        "KEK {label} opens data keys and signs nothing (CKA_SIGN is not true), so it cannot sign a request. Its public key can be certified without one: ekm kek cert issue {label} certifies it by a CA of ekm's, after the token has shown that it holds the private half; or give the public key (ekm kek export {label} --public) to your CA (with OpenSSL: openssl x509 -new -force_pubkey). A new KEK that can sign its request: ekm kek generate --sign"
    )
}

/// Has a token show that it holds the private half: it opens what was wrapped under the public one.
pub(super) async fn possess(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
) -> Result<Reply, Problem> {
    let kek = own(service, label).await?;
    let token = service
        .tokens()
        .possess(&kek.tokens, kek.hash)
        .await
        .map_err(|fault| Problem::from(&fault))?;
    let mut event = event("kek-possession", operator);
    event.keks = vec![label.to_string()];
    event.token = Some(token);
    record(service, event).await?;
    Ok(Reply::Keks(vec![kek]))
}

/// Stores a certificate beside its KEK. `chain` has the leaf first.
pub(super) async fn import(
    service: &Service,
    operator: &str,
    label: &KeyLabel,
    chain: &[Vec<u8>],
    token: Option<String>,
) -> Result<Reply, Problem> {
    let refuse = |reason: String| {
        conflict(
            EkmCode::EE31,
            format!("the certificate for KEK {label}: {reason}"),
        )
    };
    let Some((leaf, between)) = chain.split_first() else {
        return Err(refuse("there is none".to_owned()));
    };
    let certificate = Certificate::read(leaf).map_err(|error| refuse(error.to_string()))?;
    let kek = own(service, label).await?;
    if certificate.spki != kek.spki {
        return Err(refuse(format!(
            "it is of another key: of sha256:{}, and the KEK is sha256:{}; nothing was stored",
            certificate.hash(),
            kek.hash
        )));
    }
    let now = OffsetDateTime::now_utc();
    if certificate.validity.not_after < now
        && let Some(known) = kek.validity
        && known.not_after > now
    {
        return Err(refuse(format!(
            "it has ended on {}, and the KEK has one that is good until {}; nothing was stored",
            certificate.validity.last_day(),
            known.last_day()
        )));
    }
    if !between.is_empty() {
        // What comes after it must lead somewhere. Whom to trust is not decided here.
        let now = now.min(certificate.validity.not_after);
        vouched(&certificate, between, Some(between), now)
            .map_err(|_| refuse("what follows it in the file is not the chain of its issuers; give the KEK's certificate first".to_owned()))?;
    }
    let tokens = match token {
        Some(token) if kek.tokens.contains(&token) => vec![token],
        Some(token) => {
            return Err(refuse(format!(
                "token {token} does not serve the KEK; {} does",
                kek.tokens.join(", ")
            )));
        }
        None => kek.tokens.clone(),
    };
    let mut event = event("kek-certificate", operator);
    event.outcome = Outcome::Intent;
    event.keks = vec![label.to_string()];
    event.detail = Some(format!(
        "certificate {} of {} by {}, good until {}",
        spelled(&certificate.fingerprint()),
        certificate.subject,
        certificate.issuer,
        certificate.validity.last_day()
    ));
    record(service, event.clone()).await?;
    let outcomes = service
        .tokens()
        .store_certificate(&tokens, kek.hash, leaf)
        .await;
    let (mut taken, mut not_taken) = (Vec::new(), Vec::new());
    for (token, outcome) in outcomes {
        match outcome {
            Ok(()) => taken.push(token),
            Err(reason) => not_taken.push((token, reason)),
        }
    }
    let kept = (taken.is_empty() || !not_taken.is_empty()).then_some(leaf.as_slice());
    stored(service.store().set_certificate(&kek.hash, kept).await)?;
    event.outcome = Outcome::Success;
    event.token = Some(if taken.is_empty() {
        "(registry)".to_owned()
    } else {
        taken.join(", ")
    });
    record(service, event).await?;
    service.tokens().look_again().await;
    let directory = service.directory().await?;
    let kek = directory
        .by_label(label)
        .map_err(|error| conflict(EkmCode::EE31, error.to_string()))?
        .clone();
    Ok(Reply::Imported(Box::new(Imported {
        kek,
        tokens: taken,
        not_taken,
    })))
}
