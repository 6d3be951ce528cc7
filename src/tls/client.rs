//! The side of drives, proxies and operators.

use std::path::Path;

use rustls::ClientConfig;
use rustls::client::Resumption;

use super::{ALPN, TlsError, VERSIONS, certificates, private_key, provider, root_store};

/// TLS for a client that shows `cert` and trusts servers of the CAs in `ca`. All three files are
/// PEM; `cert` may hold intermediate certificates behind the client's own.
///
/// # Errors
///
/// When a file cannot be read or used.
pub fn client_config(ca: &Path, cert: &Path, key: &Path) -> Result<ClientConfig, TlsError> {
    let roots = root_store(ca, &certificates(ca)?)?;
    let identity = |source| TlsError::Identity {
        cert: cert.into(),
        key: key.into(),
        source,
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(identity)?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(cert)?, private_key(key)?)
        .map_err(identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Our server resumes nothing, so that there is nothing to remember.
    config.resumption = Resumption::disabled();
    Ok(config)
}
