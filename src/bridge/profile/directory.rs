//! The directory of a token: where its paths lead, what is made in it, whether it is there.

use std::path::Path;

use super::{HsmProfile, ModuleProfile};

impl HsmProfile {
    /// Whether a token of this product has a directory of its own here.
    #[must_use]
    pub fn wants_directory(&self) -> bool {
        let text = toml::to_string(self).unwrap_or_default();
        self.module.library == "embedded" || text.contains("{directory}")
    }

    /// Puts the token's directory where the profile says `{directory}`. Nothing is made.
    pub fn settle(&mut self, directory: &Path) {
        let wants_directory = self.wants_directory();
        let place = |text: &str| text.replace("{directory}", &directory.display().to_string());
        let ModuleProfile {
            library,
            environment,
            reserved,
            keeps,
            files,
            folders: _,
        } = &mut self.module;
        *library = place(library);
        for text in environment
            .values_mut()
            .chain(files.values_mut())
            .chain(reserved.as_mut())
        {
            *text = place(text);
        }
        *keeps = match keeps {
            Some(text) => Some(place(text)),
            None => wants_directory.then(|| directory.display().to_string()),
        };
    }

    /// Makes the directory of a new token, and the files and folders that the profile wants in
    /// it. For a token that is there already (`keeps`) it adds what is missing.
    ///
    /// # Errors
    /// The operating system's.
    pub fn make(&self, directory: &Path) -> std::io::Result<()> {
        if self.module.keeps.is_some() {
            crate::files::private_dir(directory)?;
        }
        for folder in &self.module.folders {
            crate::files::private_dir(&directory.join(folder))?;
        }
        for (name, content) in &self.module.files {
            let path = directory.join(name);
            if !path.exists() {
                crate::files::write_private(&path, content.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Why no token of this profile can be where it should be, its paths settled. What is not
    /// there is never made anew: whoever loads a module on the place where a disk is not mounted
    /// would have an empty token.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn there(&self) -> Result<(), String> {
        match &self.module.keeps {
            Some(place) if !Path::new(place).exists() => Err(format!(
                "there is no {place}, where the token's keys are; nothing was made in its place. Mount the disk that it is on, or restore it from the backup; a new, empty token is made by ekm slot init alone"
            )),
            Some(_) | None => Ok(()),
        }
    }
}
