//! Which slot has the token: found by what is written on it, never by number.

use super::faults::Fault;
use super::pkcs11::{CK_SLOT_ID, Module, TokenInfo};
use super::uri::TokenUri;

/// What names a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Which {
    /// Its URI.
    pub(super) uri: TokenUri,
    /// The serials that it may have, the preferred first: the nodes of a
    /// cluster show one label and a serial each.
    pub(super) serials: Vec<String>,
}

impl Which {
    /// A token by its label alone.
    pub(super) fn labelled(label: &str) -> Self {
        Self {
            uri: TokenUri::labelled(label),
            serials: Vec::new(),
        }
    }

    /// Whether this is the token, or a node of the cluster.
    pub(super) fn is(&self, info: &TokenInfo) -> bool {
        self.uri.matches(info) && (self.serials.is_empty() || self.place(info).is_some())
    }

    /// The token as its PIN counter sees it: the nodes of a cluster share one
    /// user and his PIN, so they share one ledger.
    pub(super) fn counted(&self, info: &TokenInfo) -> TokenInfo {
        TokenInfo {
            serial: self.serials.first().unwrap_or(&info.serial).clone(),
            ..info.clone()
        }
    }

    fn place(&self, info: &TokenInfo) -> Option<usize> {
        self.serials
            .iter()
            .position(|serial| *serial == info.serial)
    }

    /// The slot and its token; exactly one may match, but for the nodes of a
    /// cluster, of which the first in the list is taken.
    ///
    /// # Errors
    /// None or several match, or the module does not list its slots.
    pub(super) fn find(
        &self,
        name: &str,
        module: &Module,
    ) -> Result<(CK_SLOT_ID, TokenInfo), Fault> {
        let slots = module
            .slots(true)
            .map_err(|error| Fault::call(name, error, "listing the slots"))?;
        let mut found = Vec::new();
        for slot in slots {
            // A slot that will not say what is in it is not ours; its neighbours may be.
            if let Ok(info) = module.token_info(slot)
                && info.initialized()
                && self.is(&info)
            {
                found.push((slot, info));
            }
        }
        found.sort_by_key(|(_, info)| self.place(info));
        let first = self.place_of_first(&found);
        let many = found
            .iter()
            .filter(|(_, info)| self.place(info) == first)
            .count()
            > 1;
        let uri = &self.uri;
        match found.into_iter().next() {
            Some(only) if !many => Ok(only),
            // The nodes of a cluster may do so while one takes over from another, and no PIN was
            // sent: it is looked for again.
            Some(_) => Err(Fault::Down {
                token: name.to_owned(),
                reason: format!(
                    "more than one token matches {uri}; if that stays so, add serial= to the URI (see ekm slot list)"
                ),
            }),
            None => Err(Fault::Down {
                token: name.to_owned(),
                reason: format!(
                    "no initialised token matches {uri}{}; is the HSM reachable? ekm slot list shows what is there, ekm slot init makes a token",
                    self.nodes()
                ),
            }),
        }
    }

    fn place_of_first(&self, found: &[(CK_SLOT_ID, TokenInfo)]) -> Option<usize> {
        found.first().and_then(|(_, info)| self.place(info))
    }

    fn nodes(&self) -> String {
        if self.serials.is_empty() {
            String::new()
        } else {
            format!(" with one of the serials {}", self.serials.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(serial: &str) -> TokenInfo {
        TokenInfo {
            label: "cluster".into(),
            serial: serial.into(),
            manufacturer: String::new(),
            model: String::new(),
            flags: 0,
            max_rw_sessions: 0,
            min_pin: 4,
            max_pin: 32,
        }
    }

    #[test]
    fn the_nodes_of_a_cluster_are_one_token_with_one_pin_counter() {
        let which = Which {
            uri: "pkcs11:token=cluster".parse().unwrap(),
            serials: vec!["A".into(), "B".into()],
        };
        assert!(which.is(&node("A")) && which.is(&node("B")));
        assert!(!which.is(&node("C")));
        assert_eq!(which.counted(&node("B")).serial, "A");
        assert_eq!(Which::labelled("cluster").counted(&node("B")).serial, "B");
    }
}
