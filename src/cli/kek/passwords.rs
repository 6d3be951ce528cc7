//! The passwords of key files: from files, or typed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use secrecy::SecretString;

use crate::bridge::pin::{Pin, PinSource};
use crate::keyfile::Passwords;

/// Where the passwords of a key file come from. Belongs beside an argument `file`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PasswordFiles {
    /// A file whose first line is the store's password; without it, you are asked.
    #[arg(long, value_name = "FILE", requires = "file")]
    password_file: Option<PathBuf>,
    /// The same for the keys' password, where it is another than the store's.
    #[arg(long, value_name = "FILE", requires = "file")]
    key_password_file: Option<PathBuf>,
}

impl PasswordFiles {
    /// Reads them, or asks for the store's where `needed`.
    pub(in crate::cli) fn read(&self, store: &Path, needed: bool) -> anyhow::Result<Passwords> {
        let key = self.key_password_file.as_deref().map(first_line);
        let store = match &self.password_file {
            Some(path) => first_line(path)?,
            None if needed => {
                rpassword::prompt_password(format!("Password of {}: ", store.display()))
                    .map(SecretString::from)
                    .context("cannot ask for the password; give a file with --password-file")?
            }
            None => SecretString::default(),
        };
        Ok(Passwords {
            store,
            key: key.transpose()?,
        })
    }
}

/// A file's first line, as with PINs: without its end, and not readable by others.
pub(in crate::cli) fn first_line(path: &Path) -> anyhow::Result<SecretString> {
    let source = Pin::Source(PinSource::File(std::path::absolute(path)?));
    source
        .read_secret("")
        .map_err(|error| anyhow!(error.of_password()))
}
