//! How much one bridge does before another takes its place on purpose.

use super::message::{Hello, Task};

/// What a bridge may do before it is started anew; without bound where there is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Exchanges in custody `host`.
    pub(super) host_exchanges: Option<u64>,
    /// Exchanges of any custody.
    pub(super) exchanges: Option<u64>,
}

impl Share {
    /// What the token's profile says; no bound where a person has to be there for its PIN.
    pub(super) fn of(hello: &Hello) -> Self {
        let session = &hello.profile.session;
        match &hello.task {
            Task::Serve { pin, .. } | Task::Keep { password: pin, .. } if pin.unattended() => {
                Self {
                    host_exchanges: Some(session.host_exchanges),
                    exchanges: session.exchanges,
                }
            }
            // The next bridge would have no PIN: a token that is well would lock itself.
            Task::Serve { .. }
            | Task::Keep { .. }
            | Task::List
            | Task::Init { .. }
            | Task::Trust { .. }
            | Task::Attend { .. } => Self {
                host_exchanges: None,
                exchanges: None,
            },
        }
    }

    /// Whether that many exchanges, and of them so many in custody `host`, are all of it.
    pub(super) fn is_done(self, exchanges: u64, in_host: u64) -> bool {
        self.host_exchanges.is_some_and(|most| in_host >= most)
            || self.exchanges.is_some_and(|most| exchanges >= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::pin::PinSource;
    use crate::bridge::profile::HsmProfile;

    #[test]
    fn a_bridge_whose_next_login_takes_a_person_is_never_renewed() {
        let known = HsmProfile::load("softhsm2").unwrap();
        let share = |pin: PinSource| {
            Share::of(&Hello {
                name: "t".to_owned(),
                profile: known.clone(),
                task: Task::Serve {
                    token: "pkcs11:token=t".parse().unwrap(),
                    serials: Vec::new(),
                    pin,
                    ledgers: "/none".into(),
                },
            })
        };
        let profile = Share {
            host_exchanges: Some(known.session.host_exchanges),
            exchanges: known.session.exchanges,
        };
        assert!(profile.exchanges.is_some());
        for pin in [
            PinSource::File("pin".into()),
            PinSource::Credential("pin".to_owned()),
            PinSource::Env("PIN".to_owned()),
            PinSource::Command(vec!["/bin/pin".to_owned()]),
        ] {
            assert_eq!(share(pin.clone()), profile, "{pin}");
        }
        let endless = Share {
            host_exchanges: None,
            exchanges: None,
        };
        for pin in [PinSource::Operator, PinSource::Pad] {
            assert_eq!(share(pin.clone()), endless, "{pin}");
        }
    }
}
