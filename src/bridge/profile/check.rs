//! Which values a profile may have, and which do not go together.

use super::{HsmProfile, LoginProfile, Send, Sensitive, UnwrapTemplate};
use crate::key::SedkForm;

impl HsmProfile {
    /// Whether the values are in their ranges and fit together.
    pub(in crate::bridge) fn check(&self) -> Result<(), &'static str> {
        let Self {
            name: _,
            description: _,
            verified: _,
            unsupported: _,
            module: _,
            login,
            eedk: _,
            drive,
            data_key,
            kek,
            session,
            // Each was checked when it was read.
            faults: _,
        } = self;
        if login.user_type != LoginProfile::CKU_USER
            && login.user_type < LoginProfile::CKU_VENDOR_DEFINED
        {
            return Err(
                "login.user_type must be 1 (CKU_USER) or a vendor's own, 0x80000000 or more; ekm never serves as CKU_SO",
            );
        }
        if drive.forms.contains(&SedkForm::T10Plain) {
            return Err(
                "drive.forms: t10-00h is the key in clear and never made by a token; leave it out",
            );
        }
        if data_key.sensitive == Sensitive::SetAfter && kek.unwrap_template != UnwrapTemplate::Never
        {
            return Err(
                "data_key.sensitive = \"set-after\" contradicts kek.unwrap_template other than \"never\": the KEK would refuse every unwrap",
            );
        }
        if data_key.wrap_with_trusted && drive.forms.is_empty() {
            return Err(
                "data_key.wrap_with_trusted is for a token that wraps for drives itself, and drive.forms is empty",
            );
        }
        if kek.denied_uses == Send::Omit && !drive.forms.is_empty() {
            return Err(
                "kek.denied_uses = \"omit\" is for drive.forms = [] only: a KEK that may also decrypt or sign gives a data key out of the token",
            );
        }
        if !(1..=16).contains(&session.processes) {
            return Err("session.processes must be 1 to 16");
        }
        if !(1..=64).contains(&session.workers) {
            return Err("session.workers must be 1 to 64");
        }
        // One more session in each process keeps the login.
        let sessions = session.processes * (session.workers + 1);
        if session.limit.is_some_and(|limit| sessions > limit) {
            return Err(
                "session.processes times (workers + 1) is more than session.limit, the sessions that the token allows",
            );
        }
        if !(1..=300).contains(&session.deadline_seconds) {
            return Err("session.deadline_seconds must be 1 to 300");
        }
        if session.host_exchanges == 0 {
            return Err("session.host_exchanges must be 1 or more");
        }
        if session.exchanges == Some(0) {
            return Err("session.exchanges must be 1 or more, or left out");
        }
        Ok(())
    }
}
