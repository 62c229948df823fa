//! Patterns of repository names.

use globset::{GlobBuilder, GlobMatcher};

/// A doublestar glob over repository names: `*`, `**`, `?`, `[…]`, `{a,b}`; only `**` crosses a slash.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
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
        Ok(Self { text: text.to_owned(), matcher: glob(text)?, parent })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it matches a repository.
    pub fn matches(&self, repository: &str) -> bool {
        self.matcher.is_match(repository) || self.parent.as_ref().is_some_and(|parent| parent.is_match(repository))
    }
}
