//! Patterns of repository names.

use globset::{GlobBuilder, GlobMatcher};

/// A doublestar glob over repository names: `*`, `**`, `?`, `[…]`, `{a,b}`; only `**` crosses a slash.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    /// Nothing, for one that is a name.
    matcher: Option<GlobMatcher>,
    /// `a/**` matches `a` too.
    parent: Option<GlobMatcher>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// A sentence, if it is no glob.
    pub fn parse(text: &str) -> Result<Self, String> {
        let glob = |text: &str| {
            let glob = GlobBuilder::new(text).literal_separator(true).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|e| e.kind().to_string())
        };
        let parent = text.strip_suffix("/**").map(glob).transpose()?;
        // Most are names, and comparing them costs nothing.
        let is_name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        let matcher = (!is_name).then(|| glob(text)).transpose()?;
        Ok(Self { text: text.to_owned(), matcher, parent })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it matches a repository.
    pub fn matches(&self, repository: &str) -> bool {
        self.matcher.as_ref().map_or(self.text == repository, |matcher| matcher.is_match(repository))
            || self.parent.as_ref().is_some_and(|parent| parent.is_match(repository))
    }
}
