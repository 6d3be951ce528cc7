//! What may happen, and how likely it is.

use cryptoki_sys as ck;
use proptest::prelude::*;
use proptest::sample::{Index, select};

pub(super) const DRIVES: usize = 3;

/// What a drive asks for. A cartridge or a KEK is chosen among those that are
/// there by then.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Create {
        drive: usize,
    },
    Resolve {
        drive: usize,
        tape: usize,
        append: bool,
    },
    Rekey {
        drive: usize,
        tape: usize,
        kek: usize,
    },
    /// A cartridge whose EEDKs have one bit flipped.
    Forged {
        drive: usize,
        tape: usize,
        bit: usize,
    },
    /// A rekey to a KEK that is nowhere.
    Nowhere {
        drive: usize,
        tape: usize,
    },
    /// A key for a drive that the asker may not speak for.
    Astray {
        drive: usize,
        asker: usize,
    },
}

/// What an operator does.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Remove {
        drive: usize,
    },
    Enrol {
        drive: usize,
    },
    /// The defaults move to the next KEKs.
    Rotate,
    /// A KEK is made on a token that is well, and the defaults move to it.
    Generate {
        token: usize,
    },
}

/// What goes wrong with a token.
#[derive(Clone, Debug)]
pub(super) enum Ill {
    BridgeKilled,
    SessionsLost,
    LoginLost,
    SlotsShifted,
    /// It is started anew where it has so many sessions to give, those of the dead bridge included.
    Crowded {
        most: u64,
    },
    /// One call of a function answers this code.
    Answers {
        function: &'static str,
        skip: u64,
        code: u64,
    },
    /// One call does what it should, and answers this code.
    AnswerLost {
        function: &'static str,
        skip: u64,
        code: u64,
    },
    /// It dies in one of the next calls of a function.
    Crashes {
        function: &'static str,
        skip: u64,
    },
    /// One call takes its time.
    Slow {
        function: &'static str,
    },
    /// One call has done what it should long before it says so.
    Late {
        function: &'static str,
        millis: u64,
    },
    /// So many calls do not return.
    Hangs {
        function: &'static str,
        calls: u64,
    },
}

/// One step. Clients, the operator and the fault go side by side; what one of
/// them does is done one after another.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) clients: Vec<Vec<Ask>>,
    pub(super) changes: Vec<Change>,
    pub(super) ill: Option<(usize, Ill)>,
}

/// Functions that a request calls.
const ASKED: &[&str] = &[
    "C_UnwrapKey",
    "C_WrapKey",
    "C_GenerateKey",
    "C_DestroyObject",
    "C_EncryptInit",
    "C_Encrypt",
    "C_CreateObject",
    "C_GetSessionInfo",
    "C_OpenSession",
];

/// Functions that a token is opened with, looked at and mended by.
const OPENING: &[&str] = &[
    "C_CloseSession",
    "C_FindObjects",
    "C_FindObjectsInit",
    "C_GetAttributeValue",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_Login",
];

fn function() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => select(ASKED), 1 => select(OPENING)]
}

fn code() -> impl Strategy<Value = u64> {
    select(vec![
        ck::CKR_GENERAL_ERROR,
        ck::CKR_DEVICE_ERROR,
        ck::CKR_FUNCTION_FAILED,
        ck::CKR_SESSION_HANDLE_INVALID,
        ck::CKR_SESSION_CLOSED,
        ck::CKR_USER_NOT_LOGGED_IN,
        ck::CKR_DEVICE_REMOVED,
        ck::CKR_TOKEN_NOT_PRESENT,
        ck::CKR_KEY_HANDLE_INVALID,
        ck::CKR_OBJECT_HANDLE_INVALID,
        ck::CKR_OPERATION_ACTIVE,
        ck::CKR_DEVICE_MEMORY,
        ck::CKR_HOST_MEMORY,
        ck::CKR_CRYPTOKI_NOT_INITIALIZED,
        ck::CKR_VENDOR_DEFINED + 3,
    ])
}

fn ill() -> impl Strategy<Value = Ill> {
    let skip = 0..4_u64;
    prop_oneof![
        1 => Just(Ill::BridgeKilled),
        1 => Just(Ill::SessionsLost),
        1 => Just(Ill::LoginLost),
        1 => Just(Ill::SlotsShifted),
        1 => (1..9_u64).prop_map(|most| Ill::Crowded { most }),
        4 => (function(), skip.clone(), code())
            .prop_map(|(function, skip, code)| Ill::Answers { function, skip, code }),
        3 => (function(), skip.clone(), code())
            .prop_map(|(function, skip, code)| Ill::AnswerLost { function, skip, code }),
        1 => (function(), skip).prop_map(|(function, skip)| Ill::Crashes { function, skip }),
        1 => function().prop_map(|function| Ill::Slow { function }),
        // The longer one comes after another token has been asked.
        1 => (function(), select(vec![200, 1_300]))
            .prop_map(|(function, millis)| Ill::Late { function, millis }),
        1 => (select(ASKED), 1..5_u64)
            .prop_map(|(function, calls)| Ill::Hangs { function, calls }),
    ]
}

fn index() -> impl Strategy<Value = usize> {
    any::<Index>().prop_map(|index| index.index(1 << 16))
}

fn ask() -> impl Strategy<Value = Ask> {
    let drive = 0..DRIVES;
    prop_oneof![
        4 => drive.clone().prop_map(|drive| Ask::Create { drive }),
        8 => (drive.clone(), index(), any::<bool>())
            .prop_map(|(drive, tape, append)| Ask::Resolve { drive, tape, append }),
        4 => (drive.clone(), index(), index())
            .prop_map(|(drive, tape, kek)| Ask::Rekey { drive, tape, kek }),
        1 => (drive.clone(), index(), index())
            .prop_map(|(drive, tape, bit)| Ask::Forged { drive, tape, bit }),
        1 => (drive.clone(), index()).prop_map(|(drive, tape)| Ask::Nowhere { drive, tape }),
        1 => (drive.clone(), drive).prop_map(|(drive, asker)| Ask::Astray { drive, asker }),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let drive = 0..DRIVES;
    prop_oneof![
        4 => drive.clone().prop_map(|drive| Change::Remove { drive }),
        4 => drive.prop_map(|drive| Change::Enrol { drive }),
        3 => Just(Change::Rotate),
        1 => (0..2_usize).prop_map(|token| Change::Generate { token }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let client = prop::collection::vec(ask(), 1..5);
    let changes = prop_oneof![
        1 => Just(Vec::new()),
        1 => prop::collection::vec(change(), 1..6),
    ];
    (
        prop::collection::vec(client, 0..6),
        changes,
        prop::option::of((0..2_usize, ill())),
    )
        .prop_map(|(clients, changes, ill)| Step {
            clients,
            changes,
            ill,
        })
}

/// Everybody wants a key for one drive, which comes and goes.
fn rush() -> impl Strategy<Value = Step> {
    let resolve = (index(), any::<bool>());
    let client = prop::collection::vec(resolve, 4..12);
    (
        0..DRIVES,
        prop::collection::vec(client, 2..5),
        1..6_usize,
        prop::option::weighted(0.2, (0..2_usize, ill())),
    )
        .prop_map(|(drive, clients, times, ill)| {
            let asks = |client: Vec<(usize, bool)>| {
                let resolve = |(tape, append)| Ask::Resolve {
                    drive,
                    tape,
                    append,
                };
                client.into_iter().map(resolve).collect()
            };
            let comes_and_goes = [Change::Remove { drive }, Change::Enrol { drive }];
            Step {
                clients: clients.into_iter().map(asks).collect(),
                changes: comes_and_goes.into_iter().cycle().take(times).collect(),
                ill,
            }
        })
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(prop_oneof![3 => step(), 1 => rush()], 3..12)
}
