//! The `ekm.toml` that a migration writes: complete, with what an operator still decides marked.

use super::properties::Properties;

/// The port of EKM, and of `ekm`.
const PORT: u16 = 3801;

/// A value of EKM's that became one of `ekm.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// The property.
    pub(super) property: &'static str,
    /// The value in `ekm.toml`, as TOML.
    pub(super) value: String,
    /// What is wrong with EKM's value, where something is.
    pub(super) fault: Option<String>,
}

/// What of the properties goes into `ekm.toml`.
pub(super) fn mapped(properties: &Properties) -> Vec<Mapped> {
    let mut mapped = Vec::new();
    let property = "TransportListener.tcp.port";
    if let Some(text) = properties.text(property) {
        let port = text.parse::<u16>().ok().filter(|port| *port != 0);
        mapped.push(Mapped {
            property,
            value: format!("\"0.0.0.0:{}\"", port.unwrap_or(PORT)),
            fault: port.is_none().then(|| {
                format!(
                    "{:?} is no port; {PORT} was taken",
                    super::keys::shown(text)
                )
            }),
        });
    }
    let property = "drive.acceptUnknownDrives";
    if let Some(text) = properties.text(property) {
        let (value, fault) = match text.to_ascii_lowercase().as_str() {
            "true" => ("pending", None),
            "false" => ("reject", None),
            _ => (
                "reject",
                Some(format!(
                    "{:?} is neither true nor false; reject was taken",
                    super::keys::shown(text)
                )),
            ),
        };
        mapped.push(Mapped {
            property,
            value: format!("\"{value}\""),
            fault,
        });
    }
    mapped
}

/// The text of an `ekm.toml` for a site. `profile` names the token's profile where it could be told
/// from EKM's configuration, and `library` its library.
pub(super) fn write(mapped: &[Mapped], profile: Option<&str>, library: Option<&str>) -> String {
    let value = |property: &str, otherwise: &str| {
        mapped
            .iter()
            .find(|mapped| mapped.property == property)
            .map_or_else(|| otherwise.to_owned(), |mapped| mapped.value.clone())
    };
    let listen = value("TransportListener.tcp.port", "\"0.0.0.0:3801\"");
    let unknown = value("drive.acceptUnknownDrives", "\"reject\"");
    let token = match profile {
        Some(profile) => {
            let library = library.map_or_else(String::new, |library| {
                format!("library = {}\n", toml::Value::from(library))
            });
            format!(
                "# The HSM that EKM used. Check its label (ekm slot list) and put its PIN into the file.\n\
                 [[tokens]]\nname = \"main\"\nprofile = \"{profile}\"\n{library}uri = \"pkcs11:token=ekm\"\n\
                 pin = {{ file = \"pin\" }}\ndirectory = \"token\"\n"
            )
        }
        None => "# DECIDE: where the KEKs shall live. The embedded token is for trying and for small sites; for an\n\
             # HSM name its profile (hsm-profiles/) and its token's label, before any key is imported.\n\
             [[tokens]]\nname = \"main\"\nprofile = \"embedded\"\nuri = \"pkcs11:token=ekm\"\n\
             pin = { file = \"pin\" }\ndirectory = \"token\"\n"
            .to_owned(),
    };
    format!(
        "# ekm.toml, written by ekm migrate ekm21. Relative paths are relative to this file.\n\
         # Check it with: ekm config check\n\n\
         node = \"ekm1\"               # this server's name in its audit records\n\
         state = \"state\"             # database, operators' socket, PIN ledgers: back this up\n\
         audit = \"audit\"             # hash-chained records of every key served\n\n\
         [server]\n\
         # From TransportListener.tcp.port. While EKM still runs on this host, choose another port.\n\
         listen = {listen}\n\
         certificate = \"tls/issued/server-ekm1.crt\"   # ekm tls init; ekm tls issue ekm1 --role server\n\
         key = \"tls/issued/server-ekm1.key\"\n\
         client_ca = \"tls/ca.crt\"\n\
         crl = \"tls/crl.pem\"\n\
         drive_ca = \"tls/ca.crt\"\n\n\
         {token}\n\
         [policy]\n\
         # From drive.acceptUnknownDrives: true became pending.\n\
         accept_unknown_drives = {unknown}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::policy::AcceptUnknown;

    fn properties(text: &str) -> Properties {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.properties");
        std::fs::write(&path, text).unwrap();
        Properties::read(&path).unwrap()
    }

    #[test]
    fn what_is_written_is_a_configuration() {
        let mapped = mapped(&properties(
            "TransportListener.tcp.port=4801\ndrive.acceptUnknownDrives=TRUE\n",
        ));
        for (profile, library) in [
            (None, None),
            (Some("softhsm2"), None),
            (Some("luna"), Some("/usr/lib/\"x\"\\.so")),
        ] {
            let text = write(&mapped, profile, library);
            let config: Config = toml::from_str(&text).unwrap();
            assert_eq!(config.server.listen.port(), 4801);
            assert_eq!(config.policy.accept_unknown_drives, AcceptUnknown::Pending);
            let token = config.tokens.first().unwrap();
            assert_eq!(token.library.as_deref(), library);
            assert_eq!(token.profile, profile.unwrap_or("embedded"));
        }
    }

    #[test]
    fn values_that_are_wrong_are_told_and_the_safe_one_is_taken() {
        let mapped = mapped(&properties(
            "TransportListener.tcp.port=70000\ndrive.acceptUnknownDrives=perhaps\n",
        ));
        assert!(mapped.iter().all(|mapped| mapped.fault.is_some()));
        let config: Config = toml::from_str(&write(&mapped, None, None)).unwrap();
        assert_eq!(config.server.listen.port(), 3801);
        assert_eq!(config.policy.accept_unknown_drives, AcceptUnknown::Reject);
    }
}
