//! Who may do what: zot's `accessControl`.
//!
//! Of the patterns that match a repository the longest alone counts. In it, a policy that names the caller and
//! the action allows; else `defaultPolicy` for who is signed in and `anonymousPolicy` for who isn't; else,
//! whatever matched, `adminPolicy`. Nothing here does I/O.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use berth_oci::{Operation, Reference, Repository};
use globset::{GlobBuilder, GlobMatcher};

use crate::identity::Identity;

/// What a rule may grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pull, list.
    Read,
    /// Push what isn't there.
    Create,
    /// Move a tag.
    Update,
    /// Delete.
    Delete,
}

impl Action {
    /// The action of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "read" => Self::Read,
            "create" => Self::Create,
            "update" => Self::Update,
            "delete" => Self::Delete,
            _ => return None,
        })
    }

    fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Create => 2,
            Self::Update => 4,
            Self::Delete => 8,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        })
    }
}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u8);

impl Actions {
    /// Whether `action` is among them.
    pub fn contains(self, action: Action) -> bool {
        self.0 & action.bit() != 0
    }
}

impl FromIterator<Action> for Actions {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Self {
        Self(actions.into_iter().fold(0, |bits, action| bits | action.bit()))
    }
}

/// Actions for some users and groups.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// By name.
    pub users: HashSet<String>,
    /// By group.
    pub groups: HashSet<String>,
    /// What they may do.
    pub actions: Actions,
}

impl Policy {
    fn grants(&self, caller: &Caller<'_>, action: Action) -> bool {
        let Some(user) = caller.user else { return false };
        self.actions.contains(action)
            && (self.users.contains(user) || caller.groups().any(|group| self.groups.contains(group)))
    }
}

/// The rules of the repositories that a pattern matches.
#[derive(Clone, Debug, Default)]
pub struct RepositoryRules {
    /// In the file's order.
    pub policies: Vec<Policy>,
    /// For everyone who is signed in.
    pub default_policy: Actions,
    /// For everyone who isn't.
    pub anonymous_policy: Actions,
}

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

    fn matches(&self, repository: &str) -> bool {
        self.matcher.is_match(repository) || self.parent.as_ref().is_some_and(|parent| parent.is_match(repository))
    }
}

/// All of `accessControl`.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The groups that the configuration gives to users, beside those of their claims.
    groups: HashMap<String, HashSet<String>>,
    /// The longest pattern first.
    repositories: Vec<(Pattern, RepositoryRules)>,
    admin: Policy,
    /// There is no `accessControl` at all.
    open: bool,
}

/// Who asks, with the groups that the configuration adds.
struct Caller<'a> {
    user: Option<&'a str>,
    claimed: &'a [String],
    configured: Option<&'a HashSet<String>>,
}

impl Caller<'_> {
    fn groups(&self) -> impl Iterator<Item = &String> {
        self.claimed.iter().chain(self.configured.into_iter().flatten())
    }
}

/// A yes or a no, and the rule that decided, by its path in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Yes or no.
    pub allowed: bool,
    /// Why.
    pub rule: String,
}

/// What may come of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it, with this condition on the write.
    Allowed(WriteCondition),
    /// Don't.
    Denied(Decision),
}

/// What must be so when the registry writes (RFC 9110, section 13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteCondition {
    /// The caller may create and update, or nothing is written.
    None,
    /// The caller may only create: `If-None-Match: *`.
    OnlyCreate,
    /// The caller may only update: `If-Match: *`.
    OnlyUpdate,
}

impl WriteCondition {
    /// What the client is told when the condition doesn't hold.
    pub fn refusal(self) -> &'static str {
        match self {
            Self::None => "requested access to the resource is denied",
            Self::OnlyCreate => {
                "requested access to the resource is denied: the tag exists, and you may create tags but not move them"
            }
            Self::OnlyUpdate => {
                "requested access to the resource is denied: the tag doesn't exist, and you may move tags but not create them"
            }
        }
    }
}

impl Rules {
    /// Rules from their parts.
    pub fn new(
        groups: HashMap<String, HashSet<String>>,
        mut repositories: Vec<(Pattern, RepositoryRules)>,
        admin: Policy,
    ) -> Self {
        // Equally long patterns are ordered by their text, so that the answer doesn't depend on the file's order.
        repositories.sort_by(|(a, _), (b, _)| b.text.len().cmp(&a.text.len()).then_with(|| a.text.cmp(&b.text)));
        Self { groups, repositories, admin, open: false }
    }

    /// No `accessControl` at all: everyone who is signed in may do everything, nobody else anything.
    pub fn everything_for_everyone_signed_in() -> Self {
        Self { open: true, ..Self::new(HashMap::new(), Vec::new(), Policy::default()) }
    }

    /// Whether some repositories are for everyone.
    pub fn has_anonymous(&self) -> bool {
        self.repositories.iter().any(|(_, rules)| rules.anonymous_policy != Actions::default())
    }

    /// The groups of a user, from the claims and from the configuration.
    pub fn groups_of(&self, identity: &Identity) -> Vec<String> {
        let mut groups: Vec<String> = self.caller(Some(identity)).groups().cloned().collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    fn caller<'a>(&'a self, identity: Option<&'a Identity>) -> Caller<'a> {
        let user = identity.map(|identity| identity.user.as_str());
        Caller {
            user,
            claimed: identity.map_or(&[], |identity| &identity.groups),
            configured: user.and_then(|user| self.groups.get(user)),
        }
    }

    /// Whether `identity`, or nobody, may do `action` in `repository`.
    pub fn decide(&self, identity: Option<&Identity>, action: Action, repository: &str) -> Decision {
        let yes = |rule: String| Decision { allowed: true, rule };
        let caller = self.caller(identity);
        if self.open {
            let rule = "no http.accessControl: everyone who is signed in may do everything".to_owned();
            return Decision { allowed: caller.user.is_some(), rule };
        }
        let matched = self.repositories.iter().find(|(pattern, _)| pattern.matches(repository));
        if let Some((pattern, rules)) = matched {
            let path = |rest: &str| format!("http.accessControl.repositories.{}.{rest}", pattern.text);
            if let Some(i) = rules.policies.iter().position(|policy| policy.grants(&caller, action)) {
                return yes(path(&format!("policies[{i}]")));
            }
            let (rest, others) = match caller.user {
                Some(_) => ("defaultPolicy", rules.default_policy),
                None => ("anonymousPolicy", rules.anonymous_policy),
            };
            if others.contains(action) {
                return yes(path(rest));
            }
        }
        if self.admin.grants(&caller, action) {
            return yes("http.accessControl.adminPolicy".to_owned());
        }
        let rule = match matched {
            Some((pattern, _)) => format!("http.accessControl.repositories.{} grants no {action}", pattern.text),
            None => format!("no pattern of http.accessControl.repositories matches {repository}"),
        };
        Decision { allowed: false, rule }
    }

    /// Whether a request may be forwarded.
    ///
    /// A mount's source isn't looked at: see [`Rules::may_read`]. Lists of repositories are always allowed; what
    /// they show is filtered.
    pub fn judge(&self, identity: Option<&Identity>, operation: &Operation) -> Verdict {
        use Operation as Op;
        let ask = |action, repository: &Repository| self.decide(identity, action, repository.as_str());
        let simply = |decision: Decision| match decision.allowed {
            true => Verdict::Allowed(WriteCondition::None),
            false => Verdict::Denied(decision),
        };
        match operation {
            Op::Ping | Op::ListRepositories(_) => Verdict::Allowed(WriteCondition::None),
            Op::ListTags { repository, .. }
            | Op::HeadManifest { repository, .. }
            | Op::PullManifest { repository, .. }
            | Op::HeadBlob { repository, .. }
            | Op::PullBlob { repository, .. }
            | Op::ListReferrers { repository, .. } => simply(ask(Action::Read, repository)),
            Op::DeleteManifest { repository, .. } | Op::DeleteBlob { repository, .. } => {
                simply(ask(Action::Delete, repository))
            }
            Op::StartUpload { repository, .. } | Op::PushBlob { repository, .. } | Op::MountBlob { repository, .. } => {
                simply(self.decide_push(identity, repository))
            }
            Op::UploadStatus(session) | Op::UploadChunk(session) | Op::CancelUpload(session) => {
                simply(self.decide_push(identity, &session.repository))
            }
            Op::FinishUpload { session, .. } => simply(self.decide_push(identity, &session.repository)),
            Op::PushManifest { repository, reference: Reference::Digest(_), tags } if tags.is_empty() => {
                simply(self.decide_push(identity, repository))
            }
            Op::PushManifest { repository, .. } => {
                let (create, update) = (ask(Action::Create, repository), ask(Action::Update, repository));
                match (create.allowed, update.allowed) {
                    (true, true) => Verdict::Allowed(WriteCondition::None),
                    (true, false) => Verdict::Allowed(WriteCondition::OnlyCreate),
                    (false, true) => Verdict::Allowed(WriteCondition::OnlyUpdate),
                    (false, false) => Verdict::Denied(create),
                }
            }
        }
    }

    /// Content by digest: `create` is asked for, as zot asks.
    fn decide_push(&self, identity: Option<&Identity>, repository: &Repository) -> Decision {
        self.decide(identity, Action::Create, repository.as_str())
    }

    /// Whether the repository may be seen at all.
    pub fn may_read(&self, identity: Option<&Identity>, repository: &str) -> bool {
        self.decide(identity, Action::Read, repository).allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str, groups: &[&str]) -> Identity {
        Identity::for_test(user, groups)
    }

    fn policy(users: &[&str], groups: &[&str], actions: &[Action]) -> Policy {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Policy { users: set(users), groups: set(groups), actions: actions.iter().copied().collect() }
    }

    fn rules() -> Rules {
        use Action::{Create, Delete, Read, Update};
        let repository = |policies, default: &[Action], anonymous: &[Action]| RepositoryRules {
            policies,
            default_policy: default.iter().copied().collect(),
            anonymous_policy: anonymous.iter().copied().collect(),
        };
        let pattern = |text| Pattern::parse(text).expect("a pattern");
        Rules::new(
            HashMap::from([("carol".to_owned(), HashSet::from(["dev".to_owned()]))]),
            vec![
                (pattern("**"), repository(vec![policy(&["alice"], &[], &[Read, Create, Update])], &[], &[])),
                (pattern("team/**"), repository(vec![policy(&[], &["dev"], &[Read, Create])], &[Read], &[])),
                (pattern("public/*"), repository(vec![], &[], &[Read])),
            ],
            policy(&["root"], &[], &[Delete]),
        )
    }

    #[test]
    fn the_longest_pattern_alone_counts() {
        let (rules, alice) = (rules(), who("alice", &[]));
        assert!(rules.decide(Some(&alice), Action::Create, "mine/x").allowed);
        // `**` would grant it, but `team/**` is longer, and `defaultPolicy` there only reads.
        assert!(!rules.decide(Some(&alice), Action::Create, "team/x").allowed);
        assert!(rules.decide(Some(&alice), Action::Read, "team/x").allowed);
        assert!(rules.decide(Some(&alice), Action::Read, "team").allowed);
    }

    #[test]
    fn groups_come_from_claims_and_from_the_configuration() {
        let rules = rules();
        assert!(rules.decide(Some(&who("bob", &["dev"])), Action::Create, "team/x").allowed);
        assert!(rules.decide(Some(&who("carol", &[])), Action::Create, "team/x").allowed);
        assert!(!rules.decide(Some(&who("dave", &["ops"])), Action::Create, "team/x").allowed);
    }

    #[test]
    fn anonymous_gets_its_own_policy_alone() {
        let rules = rules();
        assert!(rules.decide(None, Action::Read, "public/x").allowed);
        assert!(!rules.decide(None, Action::Read, "public/x/y").allowed);
        assert!(!rules.decide(None, Action::Read, "team/x").allowed);
        assert!(!rules.decide(Some(&who("dave", &[])), Action::Read, "public/x").allowed);
    }

    #[test]
    fn admin_policy_counts_whatever_matched() {
        let rules = rules();
        let decision = rules.decide(Some(&who("root", &[])), Action::Delete, "team/x");
        assert_eq!((decision.allowed, decision.rule.as_str()), (true, "http.accessControl.adminPolicy"));
    }

    #[test]
    fn who_may_only_create_creates_conditionally() {
        let rules = rules();
        let operation = |target: &str| {
            Operation::parse(&http::Method::PUT, &target.parse().expect("a target")).expect("an operation")
        };
        let push = operation("/v2/team/x/manifests/1");
        assert_eq!(rules.judge(Some(&who("b", &["dev"])), &push), Verdict::Allowed(WriteCondition::OnlyCreate));
        assert!(matches!(rules.judge(Some(&who("b", &[])), &push), Verdict::Denied(_)));
        let elsewhere = operation("/v2/x/manifests/1");
        assert_eq!(rules.judge(Some(&who("alice", &[])), &elsewhere), Verdict::Allowed(WriteCondition::None));
    }

    #[test]
    fn without_rules_whoever_is_signed_in_may_do_everything() {
        let rules = Rules::everything_for_everyone_signed_in();
        assert!(rules.decide(Some(&who("x", &[])), Action::Delete, "a").allowed);
        assert!(!rules.decide(None, Action::Read, "a").allowed);
    }
}
