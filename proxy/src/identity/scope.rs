//! Scopes of registry tokens: `repository:team/app:pull,push` (the registry token specification, "Token Scope").

use berth_oci::{Operation, Repository};
use serde::{Deserialize, Serialize};

/// A resource and what may be done with it: one entry of a token's `access`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The repository, or `catalog`.
    pub name: String,
    /// `pull`, `push`, `delete`, or `*` for all.
    pub actions: Vec<String>,
}

impl Access {
    /// Reads one scope. The type ends at the first colon and the actions begin after the last one, since a name may
    /// hold `host:port`; a class as in `repository(plugin)` doesn't matter.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let kind = kind.split('(').next().unwrap_or(kind).to_owned();
        let actions = actions.split(',').filter(|action| !action.is_empty()).map(str::to_owned).collect();
        Some(Self { kind, name: name.to_owned(), actions })
    }

    /// To pull from a repository.
    pub fn pull(repository: &Repository) -> Self {
        Self::of(repository, &["pull"])
    }

    fn of(repository: &Repository, actions: &[&str]) -> Self {
        let actions = actions.iter().map(ToString::to_string).collect();
        Self { kind: "repository".to_owned(), name: repository.to_string(), actions }
    }

    /// What a request needs; `None` if any good token will do.
    pub fn needed(operation: &Operation) -> Option<Self> {
        use Operation as Op;
        let of = |repository, actions| Some(Self::of(repository, actions));
        match operation {
            Op::Ping => None,
            Op::ListRepositories(_) | Op::DescribeRepositories(_) => {
                Some(Self { kind: "registry".to_owned(), name: "catalog".to_owned(), actions: vec!["*".to_owned()] })
            }
            Op::ListTags { repository, .. }
            | Op::DescribeTags { repository, .. }
            | Op::DescribeUsage { repository }
            | Op::ListHolders { repository, .. }
            | Op::HeadManifest { repository, .. }
            | Op::PullManifest { repository, .. }
            | Op::HeadBlob { repository, .. }
            | Op::PullBlob { repository, .. }
            | Op::ListReferrers { repository, .. } => Some(Self::pull(repository)),
            Op::DeleteManifest { repository, .. } | Op::DeleteBlob { repository, .. } => of(repository, &["delete"]),
            Op::PushManifest { repository, .. }
            | Op::StartUpload { repository, .. }
            | Op::PushBlob { repository, .. }
            | Op::MountBlob { repository, .. } => of(repository, &["pull", "push"]),
            Op::UploadStatus(session)
            | Op::UploadChunk(session)
            | Op::CancelUpload(session)
            | Op::FinishUpload { session, .. } => of(&session.repository, &["pull", "push"]),
        }
    }

    /// Whether this entry goes as far as `needed`. Who pushes need not have asked to pull.
    pub fn covers(&self, needed: &Self) -> bool {
        let has = |action: &str| self.actions.iter().any(|own| own == action || own == "*");
        self.kind == needed.kind
            && self.name == needed.name
            && match needed.actions.as_slice() {
                [_, push] if push == "push" => has("push"),
                actions => actions.iter().all(|action| has(action)),
            }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.kind, self.name, self.actions.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_clients_write_them() {
        for (text, printed) in [
            ("repository:team/app:pull,push", "repository:team/app:pull,push"),
            ("repository:host:5000/app:pull", "repository:host:5000/app:pull"),
            ("repository(plugin):app:pull", "repository:app:pull"),
            ("registry:catalog:*", "registry:catalog:*"),
            ("repository:app:", "repository:app:"),
        ] {
            assert_eq!(Access::parse(text).map(|a| a.to_string()).as_deref(), Some(printed), "{text}");
        }
        assert_eq!(Access::parse("repository"), None);
        assert_eq!(Access::parse("repository:app"), None);
    }

    #[test]
    fn a_scope_covers_its_own_repository_and_actions() {
        let needed = |text| Access::parse(text).expect("a scope");
        let own = needed("repository:app:pull,push");
        assert!(own.covers(&needed("repository:app:pull")));
        assert!(own.covers(&needed("repository:app:pull,push")));
        assert!(needed("repository:app:push").covers(&needed("repository:app:pull,push")));
        assert!(!needed("repository:app:pull").covers(&needed("repository:app:pull,push")));
        assert!(!own.covers(&needed("repository:app:delete")));
        assert!(!own.covers(&needed("repository:app2:pull")));
        assert!(needed("repository:app:*").covers(&needed("repository:app:delete")));
    }
}
