//! `ekm token`

mod explain;
mod unlock;

use super::{Context, output, site};
use crate::admin::{Command, Reply, TokenStatus};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Token {
    /// How each configured token is: ready, degraded or failed and why, locked and why.
    Status,
    /// What a `CKR_` code means, what ekm does about it, and what you may do.
    Explain(explain::Explain),
    /// Has a token whose PIN is held back tried again, once you have mended the PIN.
    ///
    /// A PIN that the token refused, or whose answer nobody saw, is not sent
    /// again by itself. A changed PIN file is noticed without this; other
    /// sources are not. Where the configuration says `pin = "operator"`, this
    /// asks for the PIN and hands it to the token's bridge; it is needed again
    /// each time a bridge is started.
    Unlock(unlock::Unlock),
}

impl Token {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Status => all(context),
            Self::Explain(explain) => explain.run(context),
            Self::Unlock(unlock) => unlock.run(context),
        }
    }
}

fn all(context: &Context) -> anyhow::Result<()> {
    let reply = match site::ask_server(context, &Command::TokenStatus)? {
        Some(reply) => reply,
        None => {
            output::tell(
                "no server runs here, so nothing watches; this is how the tokens are to this command, which opens them itself",
            );
            site::execute(context, Command::TokenStatus)?
        }
    };
    let tokens = match reply {
        Reply::Tokens(tokens) => tokens,
        other => return site::out_of_turn(&other),
    };
    if context.json {
        return output::json(&tokens);
    }
    tokens.into_iter().try_for_each(show)
}

fn show(token: TokenStatus) -> anyhow::Result<()> {
    // Where it is not as it should be for that, `why` says it.
    let keyless = token.keyless.filter(|_| token.why.is_none());
    let forms: Vec<String> = token.forms.iter().map(ToString::to_string).collect();
    let mut fields = vec![("token", token.name), ("  state", token.state)];
    fields.extend(token.since.map(|since| ("  since", since)));
    fields.extend(token.why.map(|why| ("  why", why)));
    fields.extend(token.next.map(|next| ("  next try", next)));
    let processes: Vec<String> = token.bridges.iter().map(u32::to_string).collect();
    if !processes.is_empty() {
        fields.push(("  bridges", format!("process {}", processes.join(", "))));
    }
    fields.extend(
        token
            .sessions
            .map(|(open, wanted)| ("  sessions", format!("{open} of {wanted}"))),
    );
    if !processes.is_empty() {
        let proof = token.heard.map(|age| format!("{age:.1} s ago"));
        fields.push(("  last proof", proof.unwrap_or_else(|| "-".to_owned())));
    }
    fields.extend(keyless.map(|why| ("  no canary", why)));
    fields.extend(token.pin.map(|pin| ("  user PIN", pin)));
    let file = token
        .uri
        .as_ref()
        .is_some_and(|uri| uri.starts_with("file:"));
    let from = if file {
        "  password from"
    } else {
        "  PIN from"
    };
    fields.extend(token.pin_source.map(|source| (from, source)));
    fields.extend(token.uri.map(|uri| ("  uri", uri)));
    fields.push(("  KEKs", token.keks.to_string()));
    if !forms.is_empty() {
        fields.push(("  SEDK forms", forms.join(", ")));
    }
    if !token.trusted.is_empty() {
        fields.push((
            "  trusted",
            format!("{} public keys (ekm drive trust)", token.trusted.len()),
        ));
    }
    output::fields(&fields)
}
