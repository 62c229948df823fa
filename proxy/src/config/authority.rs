//! `certificateAuthorityFile` and `certificateAuthority`: whom to trust beside the system's authorities.

use std::path::PathBuf;

use berth_config::Section;

/// Certificates in PEM, in a file or in the configuration itself; none, mostly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authority {
    key: String,
    file: Option<PathBuf>,
    text: Option<String>,
}

impl Authority {
    /// Reads both keys.
    pub fn read(section: &Section<'_>) -> Self {
        let authority = Self {
            key: section.path_of("certificateAuthorityFile"),
            file: section.text("certificateAuthorityFile").map(PathBuf::from),
            text: section.text("certificateAuthority").map(str::to_owned),
        };
        if let Err(problem) = authority.certificates() {
            let message = problem.strip_prefix(&authority.key).unwrap_or(&problem).trim_start_matches(": ");
            section.problem("certificateAuthorityFile", message);
        }
        authority
    }

    /// The certificates; nothing, if the system's are enough.
    ///
    /// # Errors
    /// A sentence with the key's path.
    pub fn certificates(&self) -> Result<Option<Vec<reqwest::Certificate>>, String> {
        let pem = match (&self.file, &self.text) {
            (None, None) => return Ok(None),
            (Some(path), _) => {
                std::fs::read(path).map_err(|e| self.problem(&format!("{} can't be read ({e})", path.display())))?
            }
            (None, Some(text)) => text.clone().into_bytes(),
        };
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| self.problem(&e))?;
        if certificates.is_empty() {
            return Err(self.problem(&"holds no certificate"));
        }
        Ok(Some(certificates))
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<&std::path::Path> {
        self.file.as_deref()
    }

    /// A sentence that says what is wrong.
    pub fn problem(&self, what: &dyn std::fmt::Display) -> String {
        format!("{}: {what}; expected PEM certificates", self.key)
    }
}
