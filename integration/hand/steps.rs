//! Calls one at a time, as they come on standard input, with the answer to
//! each on a line of standard output: `ok`, what was asked for, or the name
//! of the `CKR_` code. Between two of them a test changes the token's behaviour.
//!
//! ```text
//! slots            numbers and labels of the slots with a token
//! at SLOT          label of the token in that slot
//! open             a session on the token, above those that are open
//! close            ends the newest session
//! login PIN        in the newest session, as everything below
//! state
//! random
//! generate         a data key
//! keys             number of data keys
//! flags            PIN flags and greatest number of sessions of the token
//! ```

use std::io::stdin;

use cryptoki::context::Pkcs11;
use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Limit, Slot};
use cryptoki::types::AuthPin;

use crate::Outcome;

/// Does what standard input says until it ends.
pub(crate) fn run(pkcs11: &Pkcs11, token: &str) -> Outcome<()> {
    let mut sessions = Vec::new();
    for line in stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match step(pkcs11, token, &mut sessions, &words) {
            Ok(answer) => println!("{answer}"),
            Err(error) => match error.downcast_ref::<Error>() {
                Some(Error::Pkcs11(code, _)) => println!("{code:?}"),
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

fn step(
    pkcs11: &Pkcs11,
    token: &str,
    sessions: &mut Vec<Session>,
    words: &[&str],
) -> Outcome<String> {
    let newest = || sessions.last().ok_or("no session is open");
    match words {
        ["slots"] => {
            let slots = pkcs11.get_slots_with_initialized_token()?;
            let shown = slots.into_iter().map(|slot| {
                let info = pkcs11.get_token_info(slot)?;
                Ok(format!("{}={}", slot.id(), info.label()))
            });
            return Ok(shown.collect::<Outcome<Vec<_>>>()?.join(" "));
        }
        ["at", slot] => {
            let slot = Slot::try_from(slot.parse::<u64>()?)?;
            return Ok(pkcs11.get_token_info(slot)?.label().to_owned());
        }
        ["open"] => sessions.push(pkcs11.open_rw_session(find(pkcs11, token)?)?),
        ["close"] => sessions.pop().ok_or("no session is open")?.close()?,
        ["login", pin] => {
            newest()?.login(UserType::User, Some(&AuthPin::from((*pin).to_owned())))?
        }
        ["state"] => {
            return Ok(format!(
                "{:?}",
                newest()?.get_session_info()?.session_state()
            ));
        }
        ["random"] => newest()?.generate_random_slice(&mut [0; 8])?,
        ["generate"] => {
            newest()?.generate_key(&Mechanism::AesKeyGen, &data_key())?;
        }
        ["keys"] => return Ok(newest()?.find_objects(&data_key()[..1])?.len().to_string()),
        ["flags"] => {
            let info = pkcs11.get_token_info(find(pkcs11, token)?)?;
            let most = match info.max_session_count() {
                Limit::Max(most) => most.to_string(),
                other => format!("{other:?}"),
            };
            return Ok(format!(
                "low={} final={} locked={} sessions={most}",
                info.user_pin_count_low(),
                info.user_pin_final_try(),
                info.user_pin_locked()
            ));
        }
        other => return Err(format!("hand: no step {other:?}").into()),
    }
    Ok("ok".to_owned())
}

fn find(pkcs11: &Pkcs11, token: &str) -> Outcome<Slot> {
    for slot in pkcs11.get_slots_with_initialized_token()? {
        if pkcs11.get_token_info(slot)?.label() == token {
            return Ok(slot);
        }
    }
    Err(format!("no token {token}").into())
}

fn data_key() -> [Attribute; 3] {
    [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(false),
        Attribute::ValueLen(32.into()),
    ]
}
