//! How a provider is set up.

use std::path::{Path, PathBuf};

use crate::store::ScimLink;

/// One provider that signs people in.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderConfig {
    /// Its key in the file, which is in its callback's path: `oidc`.
    pub id: String,
    /// What is on its button, after "SIGN IN WITH".
    pub name: String,
    /// The issuer, exactly as the provider writes it in its tokens.
    pub issuer: String,
    /// Our name at the provider.
    pub client_id: String,
    /// Our password there; a public client has none.
    pub client_secret: Option<String>,
    /// The scopes to ask for, `openid` among them.
    pub scopes: Vec<String>,
    /// The claim that is the user's name.
    pub username_claim: String,
    /// The claim that lists the user's groups.
    pub groups_claim: String,
    /// Whom to trust beside the system's verifiers.
    pub authority: TrustRoots,
    /// How it pushes who is there, if it does.
    pub scim: Option<ScimConfig>,
    /// The files that its section names.
    pub files: Vec<PathBuf>,
}

/// How a provider pushes who is there (SCIM).
#[derive(Clone, PartialEq, Eq)]
pub struct ScimConfig {
    /// The hash of the token that it shows.
    pub token_hash: String,
    /// How a pushed user is known to be a person.
    pub link: ScimLink,
    /// Whether nobody is let in who wasn't pushed.
    pub is_required: bool,
}

/// Certificates in PEM, in a file or in the configuration itself; none, mostly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustRoots {
    key: String,
    file: Option<PathBuf>,
    /// What was read, or why it can't be: another content makes another authority.
    pem: Option<Result<Vec<u8>, String>>,
}

impl TrustRoots {
    /// The one in `file` or in `text`; `key` is the path of the setting, for messages.
    pub fn new(key: String, file: Option<PathBuf>, text: Option<String>) -> Self {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|e| format!("{} can't be read ({e})", path.display()));
        let pem = file.as_ref().map(read).or_else(|| text.map(|text| Ok(text.into_bytes())));
        Self { key, file, pem }
    }

    /// The certificates; nothing, if the system's are enough.
    ///
    /// # Errors
    /// A sentence with the key's path.
    pub fn certificates(&self) -> Result<Option<Vec<reqwest::Certificate>>, String> {
        let Some(pem) = &self.pem else { return Ok(None) };
        let pem = pem.as_ref().map_err(|e| self.problem(e))?;
        let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| self.problem(&e))?;
        if certificates.is_empty() {
            return Err(self.problem(&"holds no certificate"));
        }
        Ok(Some(certificates))
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// A sentence that says what is wrong.
    pub fn problem(&self, what: &dyn std::fmt::Display) -> String {
        format!("{}: {what}; expected PEM certificates", self.key)
    }
}
