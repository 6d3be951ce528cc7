//! Answers and record marks, from what an exchange gave.

use secrecy::{ExposeSecret, SecretBox};
use uuid::Uuid;

use crate::api::{
    Base64, CreateAnswer, EedkInAnswer, NewerEedks, RekeyAnswer, ResolveAnswer, SecretBytes,
};
use crate::audit::EedkMark;
use crate::exchange::Resolved;
use crate::key::{DataKeyId, Eedk, KekId, KeyLabel, Sedk, SedkForm};
use crate::keystore::Directory;
use crate::policy::Presented;
use crate::problem::Problem;
use crate::store::{Origin, StoredEedk, Unstored};
use crate::t10::{AlgorithmIndex, Kad, KadType, Kads, KeyField, SetDataEncryption, WrappedKey};

/// Algorithm index 01h, the one that drives with one algorithm give it; a
/// proxy that read another from page 0010h puts it in byte 8.
const AES_256_GCM: AlgorithmIndex = AlgorithmIndex(1);

pub(super) fn create_answer(
    request_id: Uuid,
    dki: DataKeyId,
    stored: &[StoredEedk],
    sedk: Sedk,
    drive_stores: bool,
) -> Result<CreateAnswer, Problem> {
    let ders: Vec<&[u8]> = stored
        .iter()
        .filter(|_| drive_stores)
        .map(|stored| stored.eedk.as_der())
        .collect();
    Ok(CreateAnswer {
        request_id,
        dki,
        eedks: stored.iter().map(of_stored).collect(),
        spout: spout(&sedk, dki, &ders)?,
        sedk,
    })
}

pub(super) fn rekey_answer(request_id: Uuid, dki: DataKeyId, stored: &[StoredEedk]) -> RekeyAnswer {
    RekeyAnswer {
        request_id,
        dki,
        eedks: stored.iter().map(of_stored).collect(),
    }
}

/// What a resolve's answer says of EEDKs, whichever of them opens: made while the token works.
pub(super) struct Shown {
    eedks: Vec<EedkInAnswer>,
    catalog: Vec<EedkInAnswer>,
    newer: Option<NewerEedks>,
}

pub(super) fn shown(
    presented: &[Presented],
    catalog: &[StoredEedk],
    newer: Option<Unstored>,
    directory: &Directory,
) -> Shown {
    Shown {
        eedks: presented
            .iter()
            .filter_map(|one| one.eedk.as_ref().ok())
            .map(|eedk| EedkInAnswer {
                label: label_of(eedk, directory),
                encoding: eedk.kek().encoding(),
                eedk: Base64(eedk.encode()),
            })
            .collect(),
        catalog: catalog.iter().map(of_stored).collect(),
        newer: newer.map(|newer| NewerEedks {
            request_id: newer.request,
            eedks: newer.eedks.iter().map(of_stored).collect(),
        }),
    }
}

pub(super) fn resolve_answer(
    request_id: Uuid,
    presented: &[Presented],
    shown: Shown,
    resolved: Resolved,
) -> Result<ResolveAnswer, Problem> {
    let opened = presented
        .get(resolved.opened)
        .and_then(|one| one.eedk.as_ref().ok().map(|eedk| (eedk, one.origin)));
    let Some((opened, origin)) = opened else {
        return Err(Problem::internal("a resolve without an EEDK"));
    };
    let dki = opened.dki();
    let Shown {
        eedks,
        catalog,
        newer,
    } = shown;
    Ok(ResolveAnswer {
        request_id,
        dki,
        eedks,
        catalog,
        newer,
        opened: resolved.opened,
        issued_here: origin.is_some(),
        spout: spout(&resolved.sedk, dki, &[])?,
        sedk: resolved.sedk,
    })
}

fn of_stored(stored: &StoredEedk) -> EedkInAnswer {
    EedkInAnswer {
        label: Some(stored.kek_label.clone()),
        encoding: stored.eedk.kek().encoding(),
        eedk: Base64(stored.eedk.encode()),
    }
}

/// A hash is always resolved back to a label where that is possible, so that
/// tape management can record labels.
fn label_of(eedk: &Eedk, directory: &Directory) -> Option<KeyLabel> {
    match eedk.kek() {
        KekId::Label(label) => Some(label.clone()),
        KekId::Hash(hash) => directory.by_hash(hash).map(|kek| kek.label.clone()),
    }
}

/// The SPOUT 0010h parameter list that sets this key and, on a create, has
/// the drive store the EEDKs.
fn spout(sedk: &Sedk, dki: DataKeyId, eedks: &[&[u8]]) -> Result<Option<SecretBytes>, Problem> {
    let unfit = |error: crate::t10::PageError| {
        Problem::internal(format!("the SPOUT page cannot be made: {error}"))
    };
    let field = match sedk.form() {
        SedkForm::RsaOaepSha1 => return Ok(None),
        SedkForm::T10Plain => {
            let bytes = sedk.bytes().expose_secret();
            let wrong =
                || Problem::internal("the token made a data key of another length than 32 bytes");
            let key: &[u8; 32] = bytes.try_into().map_err(|_| wrong())?;
            KeyField::Plain(SecretBox::init_with(|| *key))
        }
        SedkForm::T10Wrapped => {
            KeyField::Wrapped(WrappedKey::decode(sedk.bytes().expose_secret()).map_err(unfit)?)
        }
    };
    let mut kads = vec![Kad::new(KadType::Authenticated, dki.as_bytes().to_vec()).map_err(unfit)?];
    for eedk in eedks {
        kads.push(Kad::new(KadType::WrappedKey, eedk.to_vec()).map_err(unfit)?);
    }
    let page = SetDataEncryption::encrypt(AES_256_GCM, field, Kads::new(kads).map_err(unfit)?);
    Ok(Some(SecretBytes(page.encode())))
}

pub(super) fn marks(stored: &[StoredEedk]) -> Vec<EedkMark> {
    stored
        .iter()
        .map(|stored| EedkMark {
            sha256: hex::encode(stored.eedk.digest()),
            kek: stored.kek_label.to_string(),
            encoding: stored.eedk.kek().encoding().to_string(),
            foreign: false,
            opened: false,
        })
        .collect()
}

/// Marks what a cartridge presents; one that was not issued here is foreign.
pub(super) fn presented_marks(presented: &[Presented]) -> Vec<EedkMark> {
    presented
        .iter()
        .filter_map(|one| one.eedk.as_ref().ok().map(|eedk| (eedk, one.origin)))
        .map(|(eedk, origin)| EedkMark {
            sha256: hex::encode(eedk.digest()),
            kek: eedk.kek().to_string(),
            encoding: eedk.kek().encoding().to_string(),
            foreign: origin != Some(Origin::Ours),
            opened: false,
        })
        .collect()
}

/// Marks the one of them that gave the data key.
pub(super) fn mark_opened(marks: &mut [EedkMark], presented: &[Presented], opened: usize) {
    let before = presented.iter().take(opened);
    // Only those that can be read have a mark.
    let place = before.filter(|one| one.eedk.is_ok()).count();
    for (at, mark) in marks.iter_mut().enumerate() {
        mark.opened = at == place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::WrapAlgorithm;

    #[test]
    fn an_eedk_that_cannot_be_read_has_no_mark_and_moves_that_of_no_other() {
        let dki = DataKeyId::from_random([1; 9]);
        let kek = KekId::Label("KEK".parse().unwrap());
        let eedk = |byte| Eedk::new(dki, kek.clone(), WrapAlgorithm::Pkcs1V15, vec![byte; 256]);
        let presented = [Ok(1), Err("cut off".to_owned()), Ok(2), Ok(3)].map(|one| Presented {
            eedk: one.map(|byte| eedk(byte).unwrap()),
            origin: None,
        });
        for (opened, marked) in [(0, 0), (2, 1), (3, 2)] {
            let mut marks = presented_marks(&presented);
            mark_opened(&mut marks, &presented, opened);
            let opened: Vec<bool> = marks.iter().map(|mark| mark.opened).collect();
            assert_eq!(opened, [0, 1, 2].map(|place| place == marked));
        }
    }
}
