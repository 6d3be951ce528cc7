//! `ekm config`

use std::path::{Path, PathBuf};

use super::{Context, Found, output};
use crate::alarms::ALARMS;
use crate::config::{Config as Configuration, ConfigError, EXAMPLE};
use crate::proxy::{HOST_EXAMPLE, HostConfig, HostConfigError};
use crate::tls::ServerTls;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Config {
    /// Reads a configuration and names everything that is wrong with it.
    Check {
        /// The file; otherwise that of --config.
        file: Option<PathBuf>,
        /// Checks a host's file instead (data classes, volume ranges, drives).
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        host: Option<PathBuf>,
    },
    /// Prints a configuration to start from.
    Example {
        /// That of a host: data classes, volume ranges, drives.
        #[arg(long)]
        host: bool,
    },
    /// Lists the alarms: codes, what they say, what to do.
    Alarms,
}

impl Config {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Example { host: false } => output::say(EXAMPLE.trim_end()),
            Self::Example { host: true } => output::say(HOST_EXAMPLE.trim_end()),
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
                                output::say(&format!("{}:\n  {error}", path.display()))?;
                                return Err(Found.into());
                            }
                        };
                        let faults = config.pin_file_faults();
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
        Ok(host) if context.json => return output::json(&host),
        Ok(host) => {
            return output::say(&format!(
                "{}: good; {} data class(es), {} volume range(s), {} drive(s), {} key server(s)",
                path.display(),
                host.data_classes().len(),
                host.volume_ranges().len(),
                host.drives().len(),
                host.key_servers().map_or(0, |list| list.servers.len()),
            ));
        }
        Err(error @ HostConfigError::Read { .. }) => return Err(error.into()),
        Err(error) if !context.json => {
            output::say(&error.to_string())?;
            return Err(Found.into());
        }
        Err(HostConfigError::Faults { faults, .. }) => faults,
        Err(error) => vec![error.to_string()],
    };
    output::json(&serde_json::json!({ "faults": faults }))?;
    Err(Found.into())
}
