//! `ekm token`

use super::{Context, output, site};
use crate::admin::{Command, Reply};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Token {
    /// How each configured token is: ready, failed and why, locked and why.
    Status,
}

impl Token {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let Self::Status = self;
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
            fields.extend(
                token
                    .bridge_pid
                    .map(|pid| ("  bridge", format!("process {pid}"))),
            );
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
