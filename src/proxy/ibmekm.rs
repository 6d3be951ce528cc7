//! `ibmekm.conf`, the list of key servers of the tape drivers of AIX and Linux (Atape, `lin_tape`).
//!
//! ```text
//! # comment
//! server TIMEOUT ADDRESS:PORT
//! ```
//!
//! One line for each server, in the order in which they are tried, 16 at most. The timeout is in
//! seconds and is how long one try may take there. The port is always given: what follows the last
//! colon, so that an IPv6 address needs no brackets, and may have them.
//!
//! The drivers' own port is 3801 of IBM's protocol; `ekm` speaks to the servers of this list as to
//! any other, over mutual TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::servers::{KeyServer, KeyServers, ServerAddress};

/// Longest file, bytes.
const MAX_FILE: u64 = 1 << 16;

/// Longest timeout, seconds: drives wait for 300.
const MAX_TIMEOUT: u64 = 240;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum IbmekmError {
    /// The file cannot be read.
    #[error("cannot read the list of key servers {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Lines are wrong; all of them.
    #[error("{}:\n  {}", path.display(), faults.join("\n  "))]
    Faults {
        /// The file.
        path: PathBuf,
        /// One sentence each, with the line.
        faults: Vec<String>,
    },
}

/// Reads such a file.
///
/// # Errors
/// It cannot be read, or its faults, all of them.
pub fn load(path: &Path) -> Result<Vec<KeyServer>, IbmekmError> {
    let read = |source| IbmekmError::Read {
        path: path.to_owned(),
        source,
    };
    let text = crate::files::read_limited(path, MAX_FILE).map_err(read)?;
    let text = String::from_utf8(text)
        .map_err(|error| read(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
    parse(&text).map_err(|faults| IbmekmError::Faults {
        path: path.to_owned(),
        faults,
    })
}

/// Reads the text of such a file.
///
/// # Errors
/// Its faults, each with its line.
pub fn parse(text: &str) -> Result<Vec<KeyServer>, Vec<String>> {
    let mut servers: Vec<KeyServer> = Vec::new();
    let mut faults = Vec::new();
    for (at, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        match entry(&words) {
            Ok(server) if servers.iter().any(|one| one.address == server.address) => {
                faults.push(format!("line {at}: {server} is listed twice"));
            }
            Ok(_) if servers.len() == KeyServers::MAX => {
                faults.push(format!(
                    "line {at}: there are {} servers already, which is the most",
                    KeyServers::MAX
                ));
            }
            Ok(server) => servers.push(server),
            Err(fault) => faults.push(format!("line {at}: {fault}")),
        }
    }
    if servers.is_empty() && faults.is_empty() {
        faults.push("it names no server; a line is: server TIMEOUT ADDRESS:PORT".to_owned());
    }
    if faults.is_empty() {
        Ok(servers)
    } else {
        Err(faults)
    }
}

fn entry(words: &[&str]) -> Result<KeyServer, String> {
    let shown: String = words.join(" ").chars().take(100).collect();
    let &[keyword, timeout, place] = words else {
        return Err(format!(
            "expected server TIMEOUT ADDRESS:PORT, got {shown:?}"
        ));
    };
    if keyword != "server" {
        return Err(format!(
            "expected server TIMEOUT ADDRESS:PORT, got {shown:?}"
        ));
    }
    let digits = timeout.bytes().all(|digit| digit.is_ascii_digit());
    let seconds = timeout
        .parse()
        .ok()
        .filter(|seconds| digits && (1..=MAX_TIMEOUT).contains(seconds));
    let Some(seconds) = seconds else {
        let timeout: String = timeout.chars().take(100).collect();
        return Err(format!(
            "the timeout {timeout:?} is not 1 to {MAX_TIMEOUT} (seconds)"
        ));
    };
    Ok(KeyServer {
        address: address(place)?,
        answer: Some(Duration::from_secs(seconds)),
    })
}

fn address(place: &str) -> Result<ServerAddress, String> {
    let shown: String = place.chars().take(300).collect();
    let (host, port) = place
        .rsplit_once(':')
        .filter(|(_, port)| !port.is_empty() && !port.contains(']'))
        .ok_or_else(|| format!("expected ADDRESS:PORT, got {shown:?}"))?;
    let bare = host.contains(':') && !host.starts_with('[');
    let whole = if bare {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    whole
        .parse()
        .map_err(|_| format!("expected ADDRESS:PORT, got {shown:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_the_tape_drivers_is_read_in_its_order() {
        let text = "# EKM servers\n\nserver 10 9.37.28.57:8050\n  server\t5 [2001:db8::1]:3801 # second\r\nserver 30 fe80::207:30ee:edcb:d05d:8050\nserver 1 ekm4.example.com:441";
        let servers = parse(text).unwrap();
        let read: Vec<(String, u64)> = servers
            .iter()
            .map(|one| (one.to_string(), one.answer.unwrap().as_secs()))
            .collect();
        let wanted = [
            ("9.37.28.57:8050", 10),
            ("[2001:db8::1]:3801", 5),
            ("[fe80::207:30ee:edcb:d05d]:8050", 30),
            ("ekm4.example.com:441", 1),
        ];
        let wanted: Vec<(String, u64)> = wanted
            .iter()
            .map(|(place, seconds)| ((*place).to_owned(), *seconds))
            .collect();
        assert_eq!(read, wanted);
    }

    #[test]
    fn every_bad_line_is_named_with_its_number() {
        let text = "server 10 9.37.28.57:8050\nserver 10\nservr 10 a:1\nserver 0 a:1\nserver +5 a:1\nserver 999999999999999999999 a:1\nserver 10 a\nserver 10 a:\nserver 10 [::1]\nserver 10 a:0\nserver 10 a b:1\nserver 10 9.37.28.57:8050\nserver 10 a:99999\n";
        let faults = parse(text).unwrap_err();
        let lines: Vec<String> = (2..=13).map(|at| format!("line {at}: ")).collect();
        assert_eq!(faults.len(), lines.len(), "{faults:?}");
        for (fault, line) in faults.iter().zip(lines) {
            assert!(fault.starts_with(&line), "{fault}");
        }
        assert!(faults[10].ends_with("9.37.28.57:8050 is listed twice"));
        assert_eq!(parse("# nothing\n").unwrap_err().len(), 1);
        let many: String = (1..=17).map(|n| format!("server 5 a{n}:1\n")).collect();
        assert!(parse(&many).unwrap_err()[0].starts_with("line 17: "));
    }
}
