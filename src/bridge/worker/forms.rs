//! The forms in which the token wraps for drives, and what to do about those in which it does not.

use super::attempt::{At, Opener};
use crate::bridge::faults::Fault;
use crate::key::SedkForm;

impl At<'_> {
    /// That the token wraps what it opens in this form.
    pub(super) fn must_make(&self, opener: &Opener, form: SedkForm) -> Result<(), Fault> {
        if self.makes(form) {
            return Ok(());
        }
        Err(Fault::Unsupported {
            token: self.token.name.clone(),
            reason: format!(
                "KEK {} opens only inside the token, and the token cannot make an SEDK of form {form}; enrol the drive in a form that it can ({}), or write such cartridges under a KEK generated with --custody host",
                opener.label,
                self.forms()
            ),
        })
    }

    pub(super) fn makes(&self, form: SedkForm) -> bool {
        self.token.profile.drive.forms.contains(&form)
    }

    fn forms(&self) -> String {
        let forms: Vec<String> = self
            .token
            .profile
            .drive
            .forms
            .iter()
            .map(ToString::to_string)
            .collect();
        forms.join(", ")
    }

    pub(super) fn cannot_make(&self, form: SedkForm) -> Fault {
        let reason = if self.token.profile.host_only() {
            format!(
                "it can only decrypt (profile {}: drive.forms = []), so it makes no SEDK of form {form} itself; enrol the drive for custody host (ekm drive mod SERIAL --custody host)",
                self.token.profile.name
            )
        } else {
            format!(
                "it cannot make an SEDK of form {form} itself; enrol the drive in a form that it can ({}), or for custody host (ekm drive mod SERIAL --custody host)",
                self.forms()
            )
        };
        Fault::Unsupported {
            token: self.token.name.clone(),
            reason,
        }
    }
}
