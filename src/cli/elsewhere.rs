//! Where operators' commands go: the server of the configuration, or one that is named.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::admin::{Command, Reply};
use crate::bridge::pin::Handed;
use crate::server::{self, OperatorError};
use crate::tls::ClientPaths;

/// Options for whoever may not read the server's configuration, or is on another host.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A server elsewhere")]
pub(super) struct Elsewhere {
    /// Puts operators' commands to this server, by its operators' door or socket, instead of that of the configuration: `https://HOST:PORT` or `unix:PATH`.
    #[arg(long, global = true, env = "EKM_SITE", value_name = "URL")]
    site: Option<String>,
    /// With https: your certificate, PEM (ekm tls issue NAME --role operator).
    #[arg(
        long,
        global = true,
        env = "EKM_OPERATOR_CERT",
        value_name = "FILE",
        hide_short_help = true
    )]
    operator_cert: Option<PathBuf>,
    /// With https: its private key, PEM.
    #[arg(
        long,
        global = true,
        env = "EKM_OPERATOR_KEY",
        value_name = "FILE",
        hide_short_help = true
    )]
    operator_key: Option<PathBuf>,
    /// With https: the CA of the server's certificate, PEM.
    #[arg(
        long,
        global = true,
        env = "EKM_SITE_CA",
        value_name = "FILE",
        hide_short_help = true
    )]
    site_ca: Option<PathBuf>,
}

/// A server that is named.
#[derive(Clone, Debug)]
pub(super) enum Site {
    /// By its operators' socket on this host.
    Socket(PathBuf),
    /// By its operators' door.
    Door {
        /// `host:port`
        server: String,
        /// This operator's TLS.
        paths: ClientPaths,
    },
}

impl Elsewhere {
    /// The server that is named, if one is.
    pub(super) fn site(self) -> anyhow::Result<Option<Site>> {
        let Self {
            site,
            operator_cert,
            operator_key,
            site_ca,
        } = self;
        let Some(site) = site else {
            return Ok(None);
        };
        if let Some(path) = site.strip_prefix("unix:") {
            return Ok(Some(Site::Socket(path.into())));
        }
        let Some(server) = site.strip_prefix("https://") else {
            bail!("--site {site}: write https://HOST:PORT, or unix:PATH for a socket of this host");
        };
        let server = server.trim_end_matches('/').to_owned();
        let port = server.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(_))) {
            bail!("--site {site}: the port is missing; it is that of [operators] listen");
        }
        let (Some(certificate), Some(key), Some(ca)) = (operator_cert, operator_key, site_ca)
        else {
            bail!(
                "--site {site} wants your certificate and its key, and the CA of the server's: --operator-cert, --operator-key, --site-ca (or EKM_OPERATOR_CERT, EKM_OPERATOR_KEY, EKM_SITE_CA)"
            );
        };
        Ok(Some(Site::Door {
            server,
            paths: ClientPaths {
                ca,
                certificate,
                key,
            },
        }))
    }
}

impl Site {
    /// Puts a command to it.
    pub(super) async fn ask(
        &self,
        command: &Command,
        pin: Option<&Handed>,
    ) -> anyhow::Result<Reply> {
        match (self, pin) {
            (Self::Socket(path), pin) => match server::ask_with_pin(path, command, pin).await {
                Err(OperatorError::NoServer(path)) => bail!(
                    "no server listens on {}; is it the socket that [operators] socket names?",
                    path.display()
                ),
                outcome => Ok(outcome?),
            },
            (Self::Door { .. }, Some(_)) => bail!(
                "a PIN is handed over on the key server's own host only, over its socket; run ekm token unlock there"
            ),
            (Self::Door { server, paths }, None) => {
                match server::ask_remote(server, paths, command).await {
                    // These say themselves whom they are about, and it is not the server.
                    Err(
                        error @ (OperatorError::Own(_)
                        | OperatorError::Unreached(_)
                        | OperatorError::Ended { .. }
                        | OperatorError::DrivesDoor(_)),
                    ) => Err(error.into()),
                    outcome => outcome.with_context(|| format!("the server at https://{server}")),
                }
            }
        }
    }
}
