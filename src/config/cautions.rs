//! What a server starts with all the same, and somebody should know of.

use super::{Config, TokenConfig};
use crate::bridge::profile::{HsmProfile, SessionProfile};

impl Config {
    /// What does not go well together though it is no fault, one sentence each.
    #[must_use]
    pub fn cautions(&self) -> Vec<String> {
        let of_token = |token: &TokenConfig| {
            // A profile that does not load is a fault.
            let profile = HsmProfile::load(&token.profile).ok()?;
            let hangs = late(token, &profile, self.server.request_seconds);
            Some(hangs.into_iter().chain(unrenewed(token, &profile.session)))
        };
        self.tokens.iter().filter_map(of_token).flatten().collect()
    }
}

/// That a request is over before a call that hangs is given up.
fn late(token: &TokenConfig, profile: &HsmProfile, request: u64) -> Option<String> {
    let deadline = profile.session.deadline_seconds;
    (deadline >= request).then(|| {
        format!(
            "tokens {}: profile {} gives an exchange {deadline} s (session.deadline_seconds), and a request is over after {request} s (server.request_seconds), so nobody waits any more when a call that hangs is ended; raise server.request_seconds, or lower session.deadline_seconds in a profile of your own",
            token.name, profile.name
        )
    })
}

/// That its bridges are not started anew on purpose.
fn unrenewed(token: &TokenConfig, session: &SessionProfile) -> Option<String> {
    if token.pin.unattended() {
        return None;
    }
    let (keys, grows) = if session.exchanges.is_some() {
        (
            "session.host_exchanges or session.exchanges",
            ", and the memory that it does not free grows",
        )
    } else {
        ("session.host_exchanges", "")
    };
    Some(format!(
        "tokens {}: its PIN comes from {}, so no bridge of it is started anew after {keys} of its profile: what the vendor's module keeps of data keys in custody host stays in memory for as long as the bridge runs{grows}; docs/tokens.md says more",
        token.name, token.pin
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::EXAMPLE;

    /// The cautions of the example with one text replaced by another.
    fn cautions(from: &str, to: &str) -> Vec<String> {
        let text = EXAMPLE.replacen(from, to, 1);
        assert!(from == to || text != EXAMPLE, "no {from} in the example");
        let config = Config::parse(&text, Path::new("/site/ekm.toml"));
        config.unwrap().cautions()
    }

    #[test]
    fn a_deadline_that_a_request_does_not_outlast_is_told_of() {
        // The embedded profile's is 30.
        let told = |seconds: u64| {
            cautions(
                "request_seconds = 60",
                &format!("request_seconds = {seconds}"),
            )
        };
        assert_eq!(told(31), Vec::<String>::new());
        for seconds in [30, 1] {
            let told = told(seconds).join("\n");
            for word in [
                "tokens main",
                "embedded",
                "session.deadline_seconds",
                "server.request_seconds",
            ] {
                assert!(told.contains(word), "{seconds}: {told}");
            }
        }
    }

    #[test]
    fn no_shipped_profile_outlasts_a_request() {
        for name in HsmProfile::shipped() {
            let told = cautions("profile = \"embedded\"", &format!("profile = \"{name}\""));
            assert_eq!(told, Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn a_token_whose_bridges_are_never_renewed_is_told_of() {
        for (source, from) in [("operator", "ekm token unlock"), ("pad", "PIN pad")] {
            let pin = format!("pin = \"{source}\"");
            let told = cautions("pin = { file = \"pin\" }", &pin).join("\n");
            for word in ["tokens main", from, "session.host_exchanges"] {
                assert!(told.contains(word), "{source}: {told}");
            }
        }
    }
}
