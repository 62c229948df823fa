//! What an API key, a terminal or a credential helper's secret is for, if it isn't for everything that its owner may do.

use std::sync::Arc;

use berth_config::Pattern;
use berth_oci::Repository;

use crate::action::{Action, Actions};

/// The `scopes` of an API key: `read`, `push` and `delete` say what it may do, anything else is a pattern of the
/// repositories that it may do it in. Without one of the three, or without a pattern, there is no such limit.
#[derive(Clone, Debug)]
pub struct KeyScopes {
    texts: Vec<String>,
    actions: Actions,
    patterns: Vec<Pattern>,
}

impl KeyScopes {
    /// Reads scopes; nothing, if there are none.
    ///
    /// # Errors
    /// Which one is neither an action nor a pattern.
    pub fn parse(scopes: &[String]) -> Result<Option<Arc<Self>>, String> {
        let (mut actions, mut patterns) = (Vec::new(), Vec::new());
        for scope in scopes {
            match scope.as_str() {
                "read" => actions.push(Action::Read),
                // Whoever pushes looks first what is there already.
                "push" => actions.extend([Action::Read, Action::Create, Action::Update]),
                "delete" => actions.push(Action::Delete),
                pattern => patterns.push(Pattern::parse(pattern).map_err(|e| {
                    format!("the scope {pattern:?} is neither read, push, delete nor a pattern of repositories ({e})")
                })?),
            }
        }
        if scopes.is_empty() {
            return Ok(None);
        }
        if actions.is_empty() {
            actions = Action::ALL.to_vec();
        }
        Ok(Some(Arc::new(Self { texts: scopes.to_vec(), actions: actions.into_iter().collect(), patterns })))
    }

    /// The scope for one repository and no other. One that is called as an action is written as a pattern that has only that.
    pub fn only_in(repository: &Repository) -> String {
        Self::pattern(repository.as_str())
    }

    /// The scope for the repositories of a pattern, which is never taken for an action.
    pub fn pattern(text: &str) -> String {
        match text {
            "read" | "push" | "delete" => format!("{{{text}}}"),
            pattern => pattern.to_owned(),
        }
    }

    /// As they were written.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Whether they go as far as this.
    pub fn allow(&self, action: Action, repository: &str) -> bool {
        let here = self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(repository));
        here && self.actions.contains(action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_limit_actions_and_repositories_each_by_themselves() {
        let allow = |scopes: &[&str], action, repository: &str| {
            let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
            KeyScopes::parse(&scopes).expect("scopes").is_none_or(|scopes| scopes.allow(action, repository))
        };
        assert!(allow(&[], Action::Delete, "a"));
        assert!(allow(&["read"], Action::Read, "a") && !allow(&["read"], Action::Create, "a"));
        assert!(allow(&["push"], Action::Read, "a") && allow(&["push"], Action::Update, "a"));
        assert!(!allow(&["push"], Action::Delete, "a") && allow(&["push", "delete"], Action::Delete, "a"));
        assert!(allow(&["team/**"], Action::Delete, "team/a") && !allow(&["team/**"], Action::Read, "other"));
        assert!(allow(&["read", "a", "b"], Action::Read, "b") && !allow(&["read", "a", "b"], Action::Create, "b"));
        assert!(KeyScopes::parse(&["[".to_owned()]).is_err());
        let push = KeyScopes::pattern("push");
        assert!(allow(&["read", &push], Action::Read, "push") && !allow(&["read", &push], Action::Create, "push"));
        assert!(!allow(&["read", &push], Action::Read, "other"));
    }
}
