//! `http.accessControl`, read into [`Rules`].

use std::collections::{HashMap, HashSet};

use berth_config::{Pattern, Section};

use crate::{
    action::{Action, Actions},
    expression::{
        Expression,
        check::{Mistakes, check_condition},
    },
    policy::{Condition, MetricsPolicy, Policy, RepositoryRules, Rules, condition},
};

/// Reads the section. Without it, whoever is signed in may do everything.
pub fn read(section: Section<'_>) -> Rules {
    if !section.is_present() {
        return Rules::everything_for_everyone_signed_in();
    }
    let mut groups: HashMap<String, HashSet<String>> = HashMap::new();
    for (name, group) in section.entries("groups") {
        for user in group.texts("users").unwrap_or_default() {
            groups.entry(user).or_default().insert(name.to_owned());
        }
        group.close();
    }
    let repositories = section.entries("repositories");
    let repositories = repositories.into_iter().filter_map(|(pattern, entry)| {
        let rules = RepositoryRules {
            policies: entry.sections("policies").into_iter().map(read_policy).collect(),
            default_policy: actions(&entry, "defaultPolicy"),
            anonymous_policy: actions(&entry, "anonymousPolicy"),
        };
        let parsed = Pattern::parse(pattern).map_err(|e| {
            entry.problem("policies", format!("belongs to a pattern that is no glob ({e}); mend the pattern"));
        });
        entry.close();
        Some((parsed.ok()?, rules))
    });
    let repositories = repositories.collect();
    let admin = read_policy(section.section("adminPolicy"));
    let metrics = read_metrics(section.section("metrics"));
    section.close();
    Rules::new(groups, repositories, admin, metrics)
}

fn read_policy(section: Section<'_>) -> Policy {
    let policy = Policy {
        users: section.texts("users").unwrap_or_default().into_iter().collect(),
        groups: section.texts("groups").unwrap_or_default().into_iter().collect(),
        actions: actions(&section, "actions"),
        conditions: section.sections("conditions").into_iter().filter_map(read_condition).collect(),
        on_demand: section.flag("onDemand").unwrap_or(false),
    };
    if policy.on_demand && !policy.actions.contains(Action::Read) {
        section.problem("onDemand", "is for who may read; expected \"read\" among the actions");
    }
    section.close();
    policy
}

fn read_condition(section: Section<'_>) -> Option<Condition> {
    let message = section.text("message").map(Into::into);
    let compiled = match section.text("expression") {
        Some(text) => Expression::compile(text).map_err(|e| format!("is no CEL expression: {e}; mend it")),
        None => Err("is missing; expected a CEL expression, such as \"req.tag != 'latest'\"".to_owned()),
    };
    // Without it the policy would grant more than its writer meant; but then the file is refused.
    let expression = compiled.map_err(|problem| section.problem("expression", problem));
    if let Ok(expression) = &expression {
        report(&section, check_condition(expression, &condition::sample(), &condition::kind_of));
    }
    section.close();
    Some(Condition { expression: expression.ok()?, message })
}

/// Reports the mistakes of an expression.
pub fn report(section: &Section<'_>, Mistakes { fatal, doubtful }: Mistakes) {
    for mistake in fatal {
        section.problem("expression", mistake);
    }
    for doubt in doubtful {
        section.warn("expression", doubt);
    }
}

fn read_metrics(section: Section<'_>) -> MetricsPolicy {
    let metrics = MetricsPolicy {
        users: section.texts("users").unwrap_or_default().into_iter().collect(),
        anonymous: actions(&section, "anonymousPolicy").contains(Action::Read),
    };
    section.close();
    metrics
}

fn actions(section: &Section<'_>, key: &'static str) -> Actions {
    let names = section.texts(key).unwrap_or_default();
    let parsed = names.iter().enumerate().filter_map(|(i, name)| {
        let action = Action::from_name(name);
        if action.is_none() {
            let key = format!("{key}[{i}]");
            section.problem(&key, "is not an action; expected read, create, update or delete");
        }
        action
    });
    parsed.collect()
}
