//! The rules once more, as naively as they can be written down from zot's documentation, and the question whether the
//! evaluator ever says something else.

use std::collections::{HashMap, HashSet};

use globset::GlobBuilder;
use proptest::prelude::*;

use super::{Circumstances, MetricsPolicy, Policy, Question, RepositoryRules, Rules};
use berth_config::Pattern;

use crate::{action::Action, identity::Identity};

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const GROUPS: [&str; 3] = ["dev", "ops", "all"];
const PATTERNS: [&str; 8] = ["**", "team/**", "team/*", "team/a?", "{team,x}/ab", "team/[a-c]b", "x", "x/**/z"];
const REPOSITORIES: [&str; 8] = ["x", "team", "team/ab", "team/ab/c", "x/ab", "x/y/z", "other", "team/bb"];

#[derive(Clone, Debug)]
struct ModelPolicy {
    users: Vec<&'static str>,
    groups: Vec<&'static str>,
    actions: Vec<Action>,
}

#[derive(Clone, Debug)]
struct ModelRepository {
    policies: Vec<ModelPolicy>,
    default_policy: Vec<Action>,
    anonymous_policy: Vec<Action>,
}

#[derive(Clone, Debug)]
struct Model {
    groups: HashMap<&'static str, Vec<&'static str>>,
    repositories: HashMap<&'static str, ModelRepository>,
    admin: ModelPolicy,
}

impl Model {
    /// "Of the patterns that match a repository the longest pattern string alone counts. In it: a policy that names the
    /// user, or one of the user's groups, and the action → allowed. Else defaultPolicy if signed in, anonymousPolicy if
    /// not. Else, whatever matched, adminPolicy."
    fn allows(&self, who: Option<(&str, &[&str])>, action: Action, repository: &str) -> bool {
        let mut matching: Vec<&&str> =
            self.repositories.keys().filter(|pattern| matches(pattern, repository)).collect();
        matching.sort_by_key(|pattern| (std::cmp::Reverse(pattern.len()), **pattern));
        let names = |policy: &ModelPolicy| {
            let Some((user, claimed)) = who else { return false };
            let configured: Vec<&str> =
                self.groups.iter().filter(|(_, users)| users.contains(&user)).map(|(group, _)| *group).collect();
            let in_group = claimed.iter().chain(&configured).any(|group| policy.groups.contains(group));
            (policy.users.contains(&user) || in_group) && policy.actions.contains(&action)
        };
        if let Some(pattern) = matching.first() {
            let rules = &self.repositories[**pattern];
            if rules.policies.iter().any(names) {
                return true;
            }
            let others = if who.is_some() { &rules.default_policy } else { &rules.anonymous_policy };
            if others.contains(&action) {
                return true;
            }
        }
        names(&self.admin)
    }

    fn rules(&self) -> Rules {
        let policy = |model: &ModelPolicy| Policy {
            users: model.users.iter().map(ToString::to_string).collect(),
            groups: model.groups.iter().map(ToString::to_string).collect(),
            actions: model.actions.iter().copied().collect(),
            conditions: Vec::new(),
            on_demand: false,
        };
        let mut groups: HashMap<String, HashSet<String>> = HashMap::new();
        for (group, users) in &self.groups {
            for user in users {
                groups.entry((*user).to_owned()).or_default().insert((*group).to_owned());
            }
        }
        let repositories = self.repositories.iter().map(|(pattern, model)| {
            let rules = RepositoryRules {
                policies: model.policies.iter().map(policy).collect(),
                default_policy: model.default_policy.iter().copied().collect(),
                anonymous_policy: model.anonymous_policy.iter().copied().collect(),
            };
            (Pattern::parse(pattern).expect("a pattern"), rules)
        });
        Rules::new(groups, repositories.collect(), policy(&self.admin), MetricsPolicy::default())
    }
}

fn matches(pattern: &str, repository: &str) -> bool {
    let glob = |pattern: &str| {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build().expect("a glob");
        glob.compile_matcher().is_match(repository)
    };
    glob(pattern) || pattern.strip_suffix("/**").is_some_and(glob)
}

fn some<T: Clone + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    proptest::sample::subsequence(of, 0..=of.len())
}

fn policies() -> impl Strategy<Value = ModelPolicy> {
    (some(&USERS), some(&GROUPS), some(&Action::ALL)).prop_map(|(users, groups, actions)| ModelPolicy {
        users,
        groups,
        actions,
    })
}

fn models() -> impl Strategy<Value = Model> {
    let repository = (proptest::collection::vec(policies(), 0..3), some(&Action::ALL), some(&Action::ALL)).prop_map(
        |(policies, default_policy, anonymous_policy)| ModelRepository { policies, default_policy, anonymous_policy },
    );
    let repositories = proptest::collection::hash_map(proptest::sample::select(&PATTERNS[..]), repository, 0..6);
    let groups = proptest::collection::hash_map(proptest::sample::select(&GROUPS[..]), some(&USERS), 0..3);
    (groups, repositories, policies()).prop_map(|(groups, repositories, admin)| Model { groups, repositories, admin })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_evaluator_says_what_the_documentation_says(
        model in models(),
        user in proptest::option::of(proptest::sample::select(&USERS[..])),
        claimed in some(&GROUPS),
    ) {
        let rules = model.rules();
        let identity = user.map(|user| Identity::for_test(user, &claimed));
        for repository in REPOSITORIES {
            for action in Action::ALL {
                let expected = model.allows(user.map(|user| (user, &claimed[..])), action, repository);
                let question = Question::of(action, repository);
                let decision = rules.evaluate(identity.as_ref(), &question, &Circumstances::default());
                prop_assert_eq!(decision.allowed, expected, "{} {}: {:?}", action, repository, decision);
            }
        }
    }
}
