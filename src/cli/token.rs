//! `ekm token`

mod explain;

use super::{Context, output, site};
use crate::admin::{Command, Reply};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Token {
    /// How each configured token is: ready, degraded or failed and why, locked and why.
    Status,
    /// What a `CKR_` code means, what ekm does about it, and what you may do.
    Explain(explain::Explain),
}

impl Token {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        if let Self::Explain(explain) = self {
            return explain.run(context);
        }
        let tokens = match site::execute(context, Command::TokenStatus)? {
            Reply::Tokens(tokens) => tokens,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            return output::json(&tokens);
        }
        for token in tokens {
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
            fields.extend(
                token
                    .heard
                    .map(|age| ("  last proof", format!("{age:.1} s ago"))),
            );
            fields.extend(token.pin.map(|pin| ("  user PIN", pin)));
            fields.extend(token.uri.map(|uri| ("  uri", uri)));
            fields.push(("  KEKs", token.keks.to_string()));
            if !forms.is_empty() {
                fields.push(("  SEDK forms", forms.join(", ")));
            }
            output::fields(&fields)?;
        }
        Ok(())
    }
}
