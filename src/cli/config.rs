//! `ekm config`

mod roles;

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::{Context, Found, output};
use crate::alarms::ALARMS;
use crate::config::{Config as Configuration, ConfigError, EXAMPLE};
use crate::proxy::ibmekm::IbmekmError;
use crate::proxy::{HOST_EXAMPLE, HostConfig, HostConfigError, check_certificates};
use crate::tls::ServerTls;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Config {
    /// Reads a configuration and names everything that is wrong with it.
    Check {
        /// The file; otherwise that of --config.
        file: Option<PathBuf>,
        /// Checks a host's file instead (data classes, volume ranges, drives, key servers).
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        host: Option<PathBuf>,
    },
    /// Prints a configuration to start from.
    Example {
        /// That of a host: data classes, volume ranges, drives, key servers.
        #[arg(long)]
        host: bool,
    },
    /// Lists the alarms: codes, what they say, what to do.
    Alarms,
    /// Shows which role may do what, and what can take a second person.
    Roles,
}

impl Config {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Example { .. } if context.json => {
                bail!("an example is the text of a file, TOML with comments; leave --json away")
            }
            Self::Example { host: false } => output::say(EXAMPLE.trim_end()),
            Self::Example { host: true } => output::say(HOST_EXAMPLE.trim_end()),
            Self::Roles => roles::print(context),
            Self::Alarms if context.json => output::json(&ALARMS),
            Self::Alarms => ALARMS.iter().try_for_each(|alarm| {
                output::fields(&[
                    (alarm.code, alarm.title.to_owned()),
                    ("  do", alarm.action.to_owned()),
                ])
            }),
            Self::Check {
                host: Some(path), ..
            } => check_host(path, context),
            Self::Check { file, host: None } => {
                let path = file.as_ref().unwrap_or(&context.config);
                match Configuration::load(path) {
                    Ok(config) => {
                        // What a server would refuse to start with is wrong, too.
                        let tls = match ServerTls::load(&config.server.tls_paths()) {
                            Ok(tls) => tls,
                            Err(error) => {
                                if context.json {
                                    let faults = [error.to_string()];
                                    output::json(&serde_json::json!({ "faults": faults }))?;
                                } else {
                                    output::say(&format!("{}:\n  {error}", path.display()))?;
                                }
                                return Err(Found.into());
                            }
                        };
                        let faults = config.file_faults();
                        if !faults.is_empty() {
                            if context.json {
                                output::json(&serde_json::json!({ "faults": faults }))?;
                            } else {
                                output::say(&format!(
                                    "{}:\n  {}",
                                    path.display(),
                                    faults.join("\n  ")
                                ))?;
                            }
                            return Err(Found.into());
                        }
                        for exposed in config.exposed_keys() {
                            output::tell(&format!("warning: {exposed}"));
                        }
                        for caution in config.cautions() {
                            output::tell(&format!("warning: {caution}"));
                        }
                        if context.json {
                            return output::json(&config);
                        }
                        output::say(&format!(
                            "{}: good; {} token(s){}, door {}, certificates good until {}",
                            path.display(),
                            config.tokens.len(),
                            match config.keystores.len() {
                                0 => String::new(),
                                keystores => format!(", {keystores} software keystore(s)"),
                            },
                            config.server.listen,
                            tls.expiry().date()
                        ))
                    }
                    Err(error @ (ConfigError::Faults { .. } | ConfigError::Syntax { .. })) => {
                        if context.json {
                            let faults = match &error {
                                ConfigError::Faults { faults, .. } => faults.clone(),
                                other => vec![other.to_string()],
                            };
                            output::json(&serde_json::json!({ "faults": faults }))?;
                        } else {
                            output::say(&error.to_string())?;
                        }
                        Err(Found.into())
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

fn check_host(path: &Path, context: &Context) -> anyhow::Result<()> {
    let faults = match HostConfig::load(path) {
        Ok(host) => match unfit(&host) {
            None if context.json => return output::json(&host),
            None => return good(path, &host),
            // What a daemon would refuse to start with is wrong, too.
            Some(fault) if !context.json => {
                output::say(&format!("{}:\n  {fault}", path.display()))?;
                return Err(Found.into());
            }
            Some(fault) => vec![fault],
        },
        Err(error @ HostConfigError::Read { .. }) => return Err(error.into()),
        Err(error) if !context.json => {
            output::say(&error.to_string())?;
            return Err(Found.into());
        }
        Err(
            HostConfigError::Faults { faults, .. }
            | HostConfigError::Servers(IbmekmError::Faults { faults, .. }),
        ) => faults,
        Err(error) => vec![error.to_string()],
    };
    output::json(&serde_json::json!({ "faults": faults }))?;
    Err(Found.into())
}

/// What is wrong with the certificates, where the file names any.
fn unfit(host: &HostConfig) -> Option<String> {
    host.tls()?;
    let error = check_certificates(host).err()?;
    Some(match std::error::Error::source(&error) {
        Some(cause) if !error.to_string().contains(&cause.to_string()) => {
            format!("{error}: {cause}")
        }
        _ => error.to_string(),
    })
}

fn good(path: &Path, host: &HostConfig) -> anyhow::Result<()> {
    output::say(&format!(
        "{}: good; {} data class(es), {} volume range(s), {} drive(s), {} key server(s)",
        path.display(),
        host.data_classes().len(),
        host.volume_ranges().len(),
        host.drives().len(),
        host.key_servers().map_or(0, |list| list.servers.len()),
    ))?;
    match (host.tls(), host.key_servers()) {
        (Some(paths), Some(_)) => {
            let expiry = paths.expiry().ok().flatten();
            let until = expiry.map_or_else(
                || "an unknown day".to_owned(),
                |expiry| expiry.date().to_string(),
            );
            output::say(&format!(
                "ekm proxy run: certificate good until {until}; a request takes {} s at most; socket {}",
                host.times().total.as_secs(),
                host.socket().display()
            ))
        }
        (None, _) => output::say("ekm proxy run wants a [tls] besides"),
        (Some(_), None) => output::say("ekm proxy run wants [key_servers] besides"),
    }
}
