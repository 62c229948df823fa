//! Who may do what: zot's `accessControl`.
//!
//! Of the patterns that match a repository the longest alone counts. In it, a policy that names the caller and
//! the action, and whose conditions hold, allows; else `defaultPolicy` for who is signed in and `anonymousPolicy` for who
//! isn't; else, whatever matched, `adminPolicy`. An API key goes no further than its own scopes. Nothing here does I/O.

pub mod condition;
#[cfg(test)]
mod oracle;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use berth_config::Pattern;
use berth_oci::{Digest, Operation, Reference, Repository};
use http::Method;

use self::condition::Unmet;
pub use self::condition::{Circumstances, Condition};
use crate::{
    action::{Action, Actions},
    identity::Identity,
};

/// Actions for some users and groups.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// By name.
    pub users: HashSet<String>,
    /// By group.
    pub groups: HashSet<String>,
    /// What they may do.
    pub actions: Actions,
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// Whether what they may read and the registry lacks is fetched for them from where it is mirrored.
    pub on_demand: bool,
}

impl Policy {
    fn names(&self, subject: &Subject<'_>) -> bool {
        let named = |user| self.users.contains(user) || subject.groups().any(|group| self.groups.contains(group));
        subject.user().is_some_and(named)
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

/// Who may see what is counted.
#[derive(Clone, Debug, Default)]
pub struct MetricsPolicy {
    /// By name.
    pub users: HashSet<String>,
    /// Whether everybody may.
    pub anonymous: bool,
}

/// All of `accessControl`.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The groups that the configuration gives to users, beside those of their claims.
    groups: HashMap<String, HashSet<String>>,
    /// The longest pattern first.
    repositories: Vec<(Pattern, RepositoryRules)>,
    admin: Policy,
    metrics: MetricsPolicy,
    /// There is no `accessControl` at all.
    open: bool,
}

/// Who asks, with the groups that the configuration adds.
struct Subject<'a> {
    identity: Option<&'a Identity>,
    configured: Option<&'a HashSet<String>>,
}

impl Subject<'_> {
    fn user(&self) -> Option<&str> {
        self.identity.map(|identity| identity.user.as_str())
    }

    fn groups(&self) -> impl Iterator<Item = &String> {
        let claimed: &[String] = self.identity.map_or(&[], |identity| &identity.groups);
        claimed.iter().chain(self.configured.into_iter().flatten())
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// What is to be done.
    pub action: Action,
    /// Where.
    pub repository: &'a str,
    /// With which tag or manifest, if it is about one.
    pub reference: Option<&'a Reference>,
}

impl<'a> Question<'a> {
    /// A question about a repository as a whole.
    pub fn of(action: Action, repository: &'a str) -> Self {
        Self { action, repository, reference: None }
    }

    fn tag(&self) -> Option<String> {
        self.reference.and_then(|reference| match reference {
            Reference::Tag(tag) => Some(tag.to_string()),
            Reference::Digest(_) => None,
        })
    }

    fn digest(&self) -> Option<String> {
        self.reference.and_then(|reference| match reference {
            Reference::Tag(_) => None,
            Reference::Digest(digest) => Some(digest.to_string()),
        })
    }
}

/// A yes or a no, and what decided.
#[derive(Clone, Debug)]
pub struct Decision<'a> {
    /// Yes or no.
    pub allowed: bool,
    /// Why; written as the path of the rule in the file when it is printed.
    pub rule: Rule<'a>,
}

impl Decision<'_> {
    /// What the client is told beside a no.
    pub fn message(&self) -> Option<&str> {
        match &self.rule {
            Rule::Unmet(unmet) => unmet.iter().find_map(|(_, unmet)| unmet.message.as_deref()),
            Rule::KeyScopes => Some("the API key's scopes don't go so far"),
            _ => None,
        }
    }
}

/// What decides.
#[derive(Clone, Debug)]
pub enum Rule<'a> {
    /// There is no `accessControl`.
    Open,
    /// The scopes of the API key don't go so far.
    KeyScopes,
    /// Something of the file grants it.
    Grants(Place<'a>),
    /// Policies would grant it whose conditions don't hold.
    Unmet(Vec<(Place<'a>, Unmet)>),
    /// The pattern that matches grants nothing of the kind.
    GrantsNo(&'a Pattern, Action),
    /// No pattern matches.
    NoPattern,
}

/// A part of `http.accessControl`.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// One of the policies of a pattern.
    Policy(&'a Pattern, usize),
    /// What everybody may who is signed in.
    Default(&'a Pattern),
    /// What everybody may who isn't.
    Anonymous(&'a Pattern),
    /// `adminPolicy`
    Admin,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = "http.accessControl.repositories";
        match self {
            Self::Policy(pattern, i) => write!(f, "{of}.{}.policies[{i}]", pattern.text()),
            Self::Default(pattern) => write!(f, "{of}.{}.defaultPolicy", pattern.text()),
            Self::Anonymous(pattern) => write!(f, "{of}.{}.anonymousPolicy", pattern.text()),
            Self::Admin => f.write_str("http.accessControl.adminPolicy"),
        }
    }
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("no http.accessControl: everyone who is signed in may do everything"),
            Self::KeyScopes => f.write_str("the API key's own scopes don't go so far"),
            Self::Grants(place) => write!(f, "{place}"),
            Self::Unmet(unmet) => unmet
                .iter()
                .enumerate()
                .try_for_each(|(i, (place, unmet))| write!(f, "{}{place}: {unmet}", if i == 0 { "" } else { "; " })),
            Self::GrantsNo(pattern, action) => {
                write!(f, "http.accessControl.repositories.{} grants no {action}", pattern.text())
            }
            Self::NoPattern => f.write_str("no pattern of http.accessControl.repositories matches"),
        }
    }
}

/// What may come of a request.
#[derive(Clone, Debug)]
pub enum Verdict<'a> {
    /// Forward it, with this condition on the write; what grants it, where something must.
    Allowed(WriteCondition, Option<Rule<'a>>),
    /// Don't.
    Denied(Decision<'a>),
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
        metrics: MetricsPolicy,
    ) -> Self {
        // Equally long patterns are ordered by their text, so that the answer doesn't depend on the file's order.
        repositories.sort_by(|(a, _), (b, _)| b.text().len().cmp(&a.text().len()).then_with(|| a.text().cmp(b.text())));
        Self { groups, repositories, admin, metrics, open: false }
    }

    /// No `accessControl` at all: everyone who is signed in may do everything, nobody else anything.
    pub fn everything_for_everyone_signed_in() -> Self {
        let none = Self::new(HashMap::new(), Vec::new(), Policy::default(), MetricsPolicy::default());
        Self { open: true, ..none }
    }

    /// Whether some repositories are for everyone.
    pub fn has_anonymous(&self) -> bool {
        self.repositories.iter().any(|(_, rules)| rules.anonymous_policy != Actions::default())
    }

    /// Whether anybody lets fetch what is mirrored.
    pub fn lets_fetch(&self) -> bool {
        let mut policies = self.repositories.iter().flat_map(|(_, rules)| &rules.policies).chain([&self.admin]);
        self.open || policies.any(|policy| policy.on_demand)
    }

    /// The groups of a user, from the claims and from the configuration.
    pub fn groups_of(&self, identity: &Identity) -> Vec<String> {
        let mut groups: Vec<String> = self.subject(Some(identity)).groups().cloned().collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Whether somebody, or nobody, may see what is counted.
    pub fn may_see_metrics(&self, identity: Option<&Identity>) -> bool {
        let may = |identity: &Identity| self.open || self.metrics.users.contains(&identity.user);
        self.metrics.anonymous || identity.is_some_and(may)
    }

    /// Whether `adminPolicy` names somebody.
    pub fn is_admin(&self, identity: &Identity) -> bool {
        self.admin.names(&self.subject(Some(identity)))
    }

    /// The patterns in which somebody may do something, and what, as far as that can be said before it is known what exactly:
    /// conditions may still say no, and a longer pattern may have rules of its own.
    pub fn patterns_of(&self, identity: &Identity) -> Vec<(&str, Actions)> {
        let subject = self.subject(Some(identity));
        let admin = if self.admin.names(&subject) { self.admin.actions } else { Actions::default() };
        let patterns = self.repositories.iter().map(|(pattern, rules)| {
            let own = rules.policies.iter().filter(|policy| policy.names(&subject)).map(|policy| policy.actions);
            let granted: Vec<Actions> = own.chain([rules.default_policy, admin]).collect();
            let may = |action: &Action| granted.iter().any(|actions| actions.contains(*action));
            (pattern.text(), Action::ALL.into_iter().filter(may).collect())
        });
        patterns.filter(|(_, actions)| *actions != Actions::default()).collect()
    }

    fn subject<'a>(&'a self, identity: Option<&'a Identity>) -> Subject<'a> {
        Subject { identity, configured: identity.and_then(|identity| self.groups.get(&identity.user)) }
    }

    /// Whether `identity`, or nobody, may do that, under these circumstances.
    pub fn evaluate<'a>(
        &'a self,
        identity: Option<&Identity>,
        question: &Question<'_>,
        circumstances: &Circumstances,
    ) -> Decision<'a> {
        self.evaluate_policies(identity, question, Some(circumstances), false)
    }

    /// Whether something that may be read is fetched for somebody from where it is mirrored, if the registry lacks it.
    pub fn may_fetch(
        &self,
        identity: Option<&Identity>,
        question: &Question<'_>,
        circumstances: &Circumstances,
    ) -> bool {
        self.evaluate_policies(identity, question, Some(circumstances), true).allowed
    }

    /// Whether somebody may do something somewhere in a repository, as far as that can be said before it is known with
    /// which tag or manifest: the conditions of the rules may still say no.
    pub fn may_under_some_condition(&self, identity: Option<&Identity>, action: Action, repository: &str) -> bool {
        self.evaluate_policies(identity, &Question::of(action, repository), None, false).allowed
    }

    /// By all policies, or by those alone that let fetch. Without circumstances, all conditions hold.
    fn evaluate_policies<'a>(
        &'a self,
        identity: Option<&Identity>,
        question: &Question<'_>,
        circumstances: Option<&Circumstances>,
        fetching: bool,
    ) -> Decision<'a> {
        let yes = |place| Decision { allowed: true, rule: Rule::Grants(place) };
        let &Question { action, repository, .. } = question;
        let scopes = identity.and_then(|identity| identity.scopes.as_ref());
        if scopes.is_some_and(|scopes| !scopes.allow(action, repository)) {
            return Decision { allowed: false, rule: Rule::KeyScopes };
        }
        if self.open {
            return Decision { allowed: identity.is_some(), rule: Rule::Open };
        }
        let subject = self.subject(identity);
        // The policies that name the subject and the action and grant nothing all the same.
        let mut unmet = Vec::new();
        let mut grants = |policy: &Policy, place| {
            if (fetching && !policy.on_demand) || !policy.actions.contains(action) || !policy.names(&subject) {
                return false;
            }
            let Some(circumstances) = circumstances.filter(|_| !policy.conditions.is_empty()) else { return true };
            let groups: Vec<String> = subject.groups().cloned().collect();
            let admin = self.admin.names(&subject);
            let failed = condition::unmet(&policy.conditions, question, identity, &groups, admin, circumstances);
            let Some(failed) = failed else { return true };
            unmet.push((place, failed));
            false
        };
        let matched = self.repositories.iter().find(|(pattern, _)| pattern.matches(repository));
        if let Some((pattern, rules)) = matched {
            for (i, policy) in rules.policies.iter().enumerate() {
                let place = Place::Policy(pattern, i);
                if grants(policy, place) {
                    return yes(place);
                }
            }
            let (place, others) = match identity {
                Some(_) => (Place::Default(pattern), rules.default_policy),
                None => (Place::Anonymous(pattern), rules.anonymous_policy),
            };
            if !fetching && others.contains(action) {
                return yes(place);
            }
        }
        if grants(&self.admin, Place::Admin) {
            return yes(Place::Admin);
        }
        let rule = match (unmet.is_empty(), matched) {
            (false, _) => Rule::Unmet(unmet),
            (true, Some((pattern, _))) => Rule::GrantsNo(pattern, action),
            (true, None) => Rule::NoPattern,
        };
        Decision { allowed: false, rule }
    }

    /// Whether a request may be forwarded.
    ///
    /// A mount's source isn't looked at: see [`Rules::may_mount_from`]. Lists of repositories are always allowed; what
    /// they show is filtered.
    pub fn authorize<'a>(
        &'a self,
        identity: Option<&Identity>,
        operation: &Operation,
        circumstances: &Circumstances,
    ) -> Verdict<'a> {
        use Operation as Op;
        let ask = |action, repository: &Repository, reference: Option<&Reference>| {
            self.evaluate(identity, &Question { action, repository: repository.as_str(), reference }, circumstances)
        };
        let simply = |decision: Decision<'a>| match decision.allowed {
            true => Verdict::Allowed(WriteCondition::None, Some(decision.rule)),
            false => Verdict::Denied(decision),
        };
        match operation {
            Op::Ping | Op::ListRepositories(_) | Op::DescribeRepositories(_) => {
                Verdict::Allowed(WriteCondition::None, None)
            }
            Op::HeadManifest { repository, reference } | Op::PullManifest { repository, reference } => {
                simply(ask(Action::Read, repository, Some(reference)))
            }
            Op::HeadBlob { repository, digest }
            | Op::PullBlob { repository, digest }
            | Op::ListHolders { repository, digest, .. } => {
                simply(ask(Action::Read, repository, Some(&Reference::Digest(digest.clone()))))
            }
            Op::ListTags { repository, .. }
            | Op::DescribeTags { repository, .. }
            | Op::DescribeUsage { repository }
            | Op::ListReferrers { repository, .. } => simply(ask(Action::Read, repository, None)),
            Op::DeleteManifest { repository, reference } => simply(ask(Action::Delete, repository, Some(reference))),
            Op::DeleteBlob { repository, digest } => {
                simply(ask(Action::Delete, repository, Some(&Reference::Digest(digest.clone()))))
            }
            // Content by digest: `create` is asked for, as zot asks.
            Op::StartUpload { repository, .. } | Op::PushBlob { repository, .. } | Op::MountBlob { repository, .. } => {
                simply(ask(Action::Create, repository, None))
            }
            Op::UploadStatus(session) | Op::UploadChunk(session) | Op::CancelUpload(session) => {
                simply(ask(Action::Create, &session.repository, None))
            }
            Op::FinishUpload { session, .. } => simply(ask(Action::Create, &session.repository, None)),
            Op::PushManifest { repository, reference: reference @ Reference::Digest(_), tags } if tags.is_empty() => {
                simply(ask(Action::Create, repository, Some(reference)))
            }
            Op::PushManifest { repository, reference, tags } => {
                let references: Vec<Reference> = match reference {
                    Reference::Tag(_) => vec![reference.clone()],
                    Reference::Digest(_) => tags.iter().cloned().map(Reference::Tag).collect(),
                };
                // Of several tags, what holds for all of them.
                let all = |action| {
                    let mut rule = None;
                    for reference in &references {
                        let decision = ask(action, repository, Some(reference));
                        if !decision.allowed {
                            return Err(decision);
                        }
                        rule = Some(decision.rule);
                    }
                    Ok(rule)
                };
                match (all(Action::Create), all(Action::Update)) {
                    (Ok(rule), Ok(_)) => Verdict::Allowed(WriteCondition::None, rule),
                    (Ok(rule), Err(_)) => Verdict::Allowed(WriteCondition::OnlyCreate, rule),
                    (Err(_), Ok(rule)) => Verdict::Allowed(WriteCondition::OnlyUpdate, rule),
                    (Err(no), Err(_)) => Verdict::Denied(no),
                }
            }
        }
    }

    /// Whether a blob may be mounted from a repository: whether it may be pulled from there, by its digest.
    pub fn may_mount_from(
        &self,
        identity: Option<&Identity>,
        from: &Repository,
        digest: &Digest,
        circumstances: &Circumstances,
    ) -> bool {
        let reference = Reference::Digest(digest.clone());
        let question = Question { action: Action::Read, repository: from.as_str(), reference: Some(&reference) };
        let pull = Circumstances { method: Method::GET.to_string(), ..circumstances.clone() };
        self.evaluate(identity, &question, &pull).allowed
    }

    /// Whether the repository may be seen at all.
    pub fn may_read(&self, identity: Option<&Identity>, repository: &str, circumstances: &Circumstances) -> bool {
        self.evaluate(identity, &Question::of(Action::Read, repository), circumstances).allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::api_key_scopes::KeyScopes;

    fn who(user: &str, groups: &[&str]) -> Identity {
        Identity::for_test(user, groups)
    }

    fn policy(users: &[&str], groups: &[&str], actions: &[Action]) -> Policy {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Policy {
            users: set(users),
            groups: set(groups),
            actions: actions.iter().copied().collect(),
            conditions: Vec::new(),
            on_demand: false,
        }
    }

    #[test]
    fn only_who_is_named_lets_fetch() {
        let read = &[Action::Read][..];
        let fetching = |users: &[&str]| Policy { on_demand: true, ..policy(users, &[], read) };
        let pattern = |text: &str| Pattern::parse(text).expect("a pattern");
        let rules = RepositoryRules {
            policies: vec![policy(&["bob"], &[], read), fetching(&["alice"])],
            default_policy: read.iter().copied().collect(),
            anonymous_policy: read.iter().copied().collect(),
        };
        let rules = vec![(pattern("up/**"), rules), (pattern("up/own/**"), RepositoryRules::default())];
        let rules = Rules::new(HashMap::new(), rules, fetching(&["root"]), MetricsPolicy::default());
        let may = |who: Option<&Identity>, repository: &str| {
            let question = Question::of(Action::Read, repository);
            rules.may_fetch(who, &question, &Circumstances::default())
        };
        let [alice, bob, carol, root] = ["alice", "bob", "carol", "root"].map(|name| who(name, &[]));
        assert!(may(Some(&alice), "up/a") && may(Some(&root), "up/a") && may(Some(&root), "up/own/a"));
        for who in [Some(&bob), Some(&carol), None] {
            assert!(rules.evaluate(who, &Question::of(Action::Read, "up/a"), &Circumstances::default()).allowed);
            assert!(!may(who, "up/a"));
        }
        assert!(!may(Some(&alice), "up/own/a") && !may(Some(&alice), "other"));
    }

    fn ask<'a>(rules: &'a Rules, identity: Option<&Identity>, action: Action, repository: &str) -> Decision<'a> {
        rules.evaluate(identity, &Question::of(action, repository), &Circumstances::default())
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
            MetricsPolicy::default(),
        )
    }

    #[test]
    fn the_longest_pattern_alone_counts() {
        let (rules, alice) = (rules(), who("alice", &[]));
        assert!(ask(&rules, Some(&alice), Action::Create, "mine/x").allowed);
        // `**` would grant it, but `team/**` is longer, and `defaultPolicy` there only reads.
        assert!(!ask(&rules, Some(&alice), Action::Create, "team/x").allowed);
        assert!(ask(&rules, Some(&alice), Action::Read, "team/x").allowed);
        assert!(ask(&rules, Some(&alice), Action::Read, "team").allowed);
    }

    #[test]
    fn groups_come_from_claims_and_from_the_configuration() {
        let rules = rules();
        assert!(ask(&rules, Some(&who("bob", &["dev"])), Action::Create, "team/x").allowed);
        assert!(ask(&rules, Some(&who("carol", &[])), Action::Create, "team/x").allowed);
        assert!(!ask(&rules, Some(&who("dave", &["ops"])), Action::Create, "team/x").allowed);
    }

    #[test]
    fn anonymous_gets_its_own_policy_alone() {
        let rules = rules();
        assert!(ask(&rules, None, Action::Read, "public/x").allowed);
        assert!(!ask(&rules, None, Action::Read, "public/x/y").allowed);
        assert!(!ask(&rules, None, Action::Read, "team/x").allowed);
        assert!(!ask(&rules, Some(&who("dave", &[])), Action::Read, "public/x").allowed);
    }

    #[test]
    fn admin_policy_counts_whatever_matched() {
        let rules = rules();
        let decision = ask(&rules, Some(&who("root", &[])), Action::Delete, "team/x");
        assert_eq!((decision.allowed, decision.rule.to_string()), (true, "http.accessControl.adminPolicy".to_owned()));
    }

    #[test]
    fn who_may_only_create_creates_conditionally() {
        let rules = rules();
        let operation = |target: &str| {
            Operation::parse(&http::Method::PUT, &target.parse().expect("a target")).expect("an operation")
        };
        let push = operation("/v2/team/x/manifests/1");
        assert!(matches!(
            rules.authorize(Some(&who("b", &["dev"])), &push, &Circumstances::default()),
            Verdict::Allowed(WriteCondition::OnlyCreate, _)
        ));
        assert!(matches!(rules.authorize(Some(&who("b", &[])), &push, &Circumstances::default()), Verdict::Denied(_)));
        let elsewhere = operation("/v2/x/manifests/1");
        assert!(matches!(
            rules.authorize(Some(&who("alice", &[])), &elsewhere, &Circumstances::default()),
            Verdict::Allowed(WriteCondition::None, _)
        ));
    }

    #[test]
    fn without_rules_whoever_is_signed_in_may_do_everything() {
        let rules = Rules::everything_for_everyone_signed_in();
        assert!(ask(&rules, Some(&who("x", &[])), Action::Delete, "a").allowed);
        assert!(!ask(&rules, None, Action::Read, "a").allowed);
    }

    fn condition(text: &str, message: &str) -> Condition {
        let expression = crate::expression::Expression::compile(text).expect(text);
        Condition { expression, message: (!message.is_empty()).then(|| message.into()) }
    }

    #[test]
    fn a_policy_grants_only_while_its_conditions_hold() {
        let with = |texts: &[&str]| {
            let conditions = texts.iter().map(|text| condition(text, "not now")).collect();
            let policy = Policy { conditions, ..policy(&["alice"], &[], &[Action::Update]) };
            let rules = RepositoryRules { policies: vec![policy], ..RepositoryRules::default() };
            let pattern = Pattern::parse("**").expect("a pattern");
            Rules::new(HashMap::new(), vec![(pattern, rules)], Policy::default(), MetricsPolicy::default())
        };
        let mut alice = who("alice", &["dev"]);
        alice.claims.insert("email_verified".to_owned(), true.into());
        let circumstances = Circumstances {
            time: 1_795_000_000, // 2026-11-18, a Wednesday
            method: "PUT".to_owned(),
            user_agent: "docker/28".to_owned(),
            client: Some("10.1.2.3".parse().expect("an address")),
            tls: Some("1.3".to_owned()),
            ..Circumstances::default()
        };
        let reference: Reference = "v1.2".parse().expect("a tag");
        let question = Question { action: Action::Update, repository: "team/x", reference: Some(&reference) };
        for holds in [
            "req.tag.startsWith('v')",
            "req.reference == 'v1.2' && req.referenceType == 'tag' && req.digest == ''",
            "req.repository == 'team/x' && req.action == 'update'",
            "req.user.username == 'alice' && 'dev' in req.user.groups && !req.auth.anonymous && !req.auth.admin",
            "req.client.ip.startsWith('10.') && req.tls.enabled && req.tls.version == '1.3'",
            "req.method == 'PUT' && req.userAgent.contains('docker')",
            "req.claims.email_verified",
            "req.time.getDayOfWeek() == 3 && req.time < timestamp('2027-01-01T00:00:00Z')",
        ] {
            let rules = with(&[holds]);
            let decision = rules.evaluate(Some(&alice), &question, &circumstances);
            assert!(decision.allowed, "{holds}: {decision:?}");
        }
        for fails in ["req.tag == 'latest'", "req.claims.missing == 'x'", "req.nothing", "req.tag", "1 / 0 == 1"] {
            let rules = with(&["true", fails]);
            let decision = rules.evaluate(Some(&alice), &question, &circumstances);
            assert_eq!((decision.allowed, decision.message()), (false, Some("not now")), "{fails}");
            let rule = decision.rule.to_string();
            assert!(rule.contains("policies[0]") && rule.contains(fails), "{rule}");
        }
        // Who isn't named isn't told.
        let rules = with(&["false"]);
        let decision = rules.evaluate(Some(&who("bob", &[])), &question, &circumstances);
        assert_eq!((decision.allowed, decision.message()), (false, None));
    }

    #[test]
    fn a_push_to_several_tags_may_do_what_it_may_do_with_each() {
        let conditions = vec![condition("req.tag.startsWith('v')", "")];
        let policy = Policy { conditions, ..policy(&["alice"], &[], &[Action::Create]) };
        let rules = RepositoryRules { policies: vec![policy], ..RepositoryRules::default() };
        let pattern = Pattern::parse("**").expect("a pattern");
        let rules = Rules::new(HashMap::new(), vec![(pattern, rules)], Policy::default(), MetricsPolicy::default());
        let verdict = |tags: &str| {
            let target = format!("/v2/a/manifests/sha256:{}?{tags}", "0".repeat(64)).parse().expect("a target");
            let operation = Operation::parse(&http::Method::PUT, &target).expect("an operation");
            rules.authorize(Some(&who("alice", &[])), &operation, &Circumstances::default())
        };
        assert!(matches!(verdict("tag=v1&tag=v2"), Verdict::Allowed(WriteCondition::OnlyCreate, _)));
        assert!(matches!(verdict("tag=v1&tag=latest"), Verdict::Denied(_)));
    }

    #[test]
    fn the_scopes_of_a_key_take_away_and_never_give() {
        let rules = rules();
        let mut alice = who("alice", &[]);
        alice.scopes = KeyScopes::parse(&["read".to_owned(), "mine/**".to_owned()]).expect("scopes");
        assert!(ask(&rules, Some(&alice), Action::Read, "mine/x").allowed);
        assert!(!ask(&rules, Some(&alice), Action::Create, "mine/x").allowed);
        assert!(!ask(&rules, Some(&alice), Action::Read, "theirs/x").allowed);
        let mut bob = who("bob", &[]);
        bob.scopes = KeyScopes::parse(&["read".to_owned()]).expect("scopes");
        assert!(!ask(&rules, Some(&bob), Action::Read, "mine/x").allowed);
    }
}
