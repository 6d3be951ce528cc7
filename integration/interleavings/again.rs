//! What once failed, step by step: a seed in `interleavings.proptest-regressions`
//! means another case as soon as the steps are drawn in another way.

use cryptoki_sys as ck;

use super::steps::{Ask, Change, Ill, Step};

/// Requests that go side by side.
fn asks(asked: Vec<Ask>, ill: Option<(usize, Ill)>) -> Step {
    Step {
        clients: asked.into_iter().map(|ask| vec![ask]).collect(),
        changes: Vec::new(),
        ill,
    }
}

fn change(change: Change) -> Step {
    Step {
        clients: Vec::new(),
        changes: vec![change],
        ill: None,
    }
}

fn answers(token: usize, function: &'static str, code: u64) -> Option<(usize, Ill)> {
    let skip = 0;
    let ill = Ill::Answers {
        function,
        skip,
        code,
    };
    Some((token, ill))
}

fn resolve(drive: usize, tape: usize, append: bool) -> Ask {
    Ask::Resolve {
        drive,
        tape,
        append,
    }
}

fn rekey(drive: usize, tape: usize, kek: usize) -> Ask {
    Ask::Rekey { drive, tape, kek }
}

pub(super) fn again() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        (
            "the token of the first EEDK hangs, and the other EEDK is on another one",
            vec![
                change(Change::Generate { token: 0 }),
                asks(vec![Ask::Create { drive: 0 }], None),
                asks(
                    vec![resolve(0, 0, false)],
                    Some((
                        0,
                        Ill::Hangs {
                            function: "C_UnwrapKey",
                            calls: 4,
                        },
                    )),
                ),
            ],
        ),
        (
            "a removed drive asks for a rekey",
            vec![
                change(Change::Remove { drive: 2 }),
                asks(vec![Ask::Create { drive: 0 }], None),
                asks(vec![rekey(2, 20, 3)], None),
                change(Change::Enrol { drive: 1 }),
            ],
        ),
        (
            "several slips of two tokens, one after another",
            vec![
                asks(vec![Ask::Create { drive: 0 }], None),
                asks(
                    vec![rekey(0, 0, 3)],
                    answers(0, "C_DestroyObject", ck::CKR_CRYPTOKI_NOT_INITIALIZED),
                ),
                asks(
                    vec![
                        resolve(0, 52531, true),
                        resolve(0, 13658, true),
                        rekey(0, 38266, 0),
                        resolve(0, 37990, false),
                    ],
                    answers(0, "C_WrapKey", ck::CKR_HOST_MEMORY),
                ),
                asks(
                    vec![resolve(1, 18792, false)],
                    answers(1, "C_UnwrapKey", ck::CKR_FUNCTION_FAILED),
                ),
                asks(
                    vec![rekey(2, 24736, 2)],
                    answers(1, "C_CreateObject", ck::CKR_SESSION_HANDLE_INVALID),
                ),
            ],
        ),
    ]
}
