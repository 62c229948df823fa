//! `http.accessControl`, read into [`Rules`].

use std::collections::{HashMap, HashSet};

use berth_config::Section;

use crate::policy::{Action, Actions, Pattern, Policy, RepositoryRules, Rules};

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
    section.ignore("metrics", "there are no metrics to see");
    section.close();
    Rules::new(groups, repositories, admin)
}

fn read_policy(section: Section<'_>) -> Policy {
    section.refuse("conditions", "rules with conditions aren't read yet; leave the rule out");
    let policy = Policy {
        users: section.texts("users").unwrap_or_default().into_iter().collect(),
        groups: section.texts("groups").unwrap_or_default().into_iter().collect(),
        actions: actions(&section, "actions"),
    };
    section.close();
    policy
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
