//! Issuers that all customers of a service share. A rule for one of them lets the whole world in, unless it says whose
//! jobs it takes.
//!
//! What a rule demands is read off its expressions, and not tried out: a validation pins the owner if it can only be true
//! while an owner claim equals a literal. So it holds whatever else somebody's token says.

use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};
use url::Url;

use crate::expression::{Expression, path_of};

/// Such an issuer.
pub struct SharedIssuer {
    host: &'static str,
    /// Without the slashes around it.
    path: &'static str,
    /// The claims that say whose job it is; nobody else can have the same.
    owners: &'static [&'static str],
    /// What a `sub` that says so begins with: some services let their customers choose what it is made of.
    subjects: &'static [&'static str],
    /// For the operator who forgot it.
    pub example: &'static str,
}

const SHARED: [SharedIssuer; 4] = [
    SharedIssuer {
        host: "token.actions.githubusercontent.com",
        path: "",
        // Not job_workflow_ref: anybody may call another's workflow.
        owners: &[
            "repository_owner_id",
            "repository_id",
            "repository_owner",
            "repository",
            "enterprise_id",
            "enterprise",
            "workflow_ref",
        ],
        subjects: &["repo:", "repository:", "repository_id:", "repository_owner:", "repository_owner_id:"],
        example: "claims.repository_owner_id == \"12345\"",
    },
    SharedIssuer {
        host: "gitlab.com",
        path: "",
        owners: &["namespace_id", "namespace_path", "project_id", "project_path", "user_id", "user_login"],
        subjects: &["project_path:"],
        example: "claims.namespace_id == \"12345\"",
    },
    SharedIssuer {
        host: "agent.buildkite.com",
        path: "",
        owners: &["organization_id", "organization_slug", "pipeline_id"],
        subjects: &["organization:"],
        example: "claims.organization_slug == \"company\"",
    },
    SharedIssuer {
        host: "codeberg.org",
        path: "api/actions",
        owners: &["repository_owner_id", "repository_id", "repository_owner", "repository"],
        subjects: &["repo:"],
        example: "claims.repository_owner_id == \"12345\"",
    },
];

impl SharedIssuer {
    /// The one that an issuer's URL is, however it is written. What has a path of its own there is one customer's, if its
    /// tokens must say so.
    pub fn of(issuer: &str, any_issuer: bool) -> Option<&'static Self> {
        let url = Url::parse(issuer).ok()?;
        let host = url.host_str()?.trim_end_matches('.');
        let path = url.path().trim_matches('/');
        SHARED.iter().find(|shared| shared.host == host && (any_issuer || shared.path == path))
    }

    /// Whether a validation is true only while a claim says whose the job is. `variables` are those of `vars`.
    pub fn is_pinned_by(&self, validation: &Expression, variables: &[(String, Expression)]) -> bool {
        self.pins(validation.root(), variables)
    }

    fn pins(&self, expression: &Expr, variables: &[(String, Expression)]) -> bool {
        let Expr::Call(CallExpr { func_name, args, .. }) = expression else { return false };
        let pins = |i: usize| args.get(i).is_some_and(|arg| self.pins(&arg.expr, variables));
        match (func_name.as_str(), args.as_slice()) {
            (operators::LOGICAL_AND, _) => pins(0) || pins(1),
            (operators::LOGICAL_OR, _) => pins(0) && pins(1),
            (operators::CONDITIONAL, _) => (pins(0) || pins(1)) && pins(2),
            (operators::EQUALS, [left, right]) => {
                let equals = |claim, literal| self.names_owner(claim, variables, &[literal]);
                equals(&left.expr, &right.expr) || equals(&right.expr, &left.expr)
            }
            (operators::IN, [claim, list]) => {
                let Expr::List(list) = &list.expr else { return false };
                let literals: Vec<&Expr> = list.elements.iter().map(|element| &element.expr).collect();
                list.optional_indices.is_empty() && self.names_owner(&claim.expr, variables, &literals)
            }
            _ => false,
        }
    }

    /// Whether `claim` is an owner claim, or a variable that is one, and each of the values a literal that names an owner.
    fn names_owner(&self, claim: &Expr, variables: &[(String, Expression)], values: &[&Expr]) -> bool {
        let claim = match path_of(claim) {
            Some(("vars", path)) => {
                let [name] = path.as_slice() else { return false };
                // The last of a name is the one that counts.
                let variable = variables.iter().rev().find(|(own, _)| own == name);
                variable.and_then(|(_, expression)| path_of(expression.root()))
            }
            other => other,
        };
        let Some(("claims", path)) = claim else { return false };
        let [claim] = path.as_slice() else { return false };
        let names = |value: &&Expr| match value {
            Expr::Literal(LiteralValue::String(text)) if *claim == "sub" => {
                self.subjects.iter().any(|prefix| text.len() > prefix.len() && text.starts_with(prefix))
            }
            // Whoever has none has it empty.
            Expr::Literal(LiteralValue::String(text)) => self.owners.contains(claim) && !text.is_empty(),
            Expr::Literal(LiteralValue::Int(_) | LiteralValue::UInt(_)) => self.owners.contains(claim),
            _ => false,
        };
        values.iter().all(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GITHUB: &str = "https://token.actions.githubusercontent.com";

    fn is_pinned(text: &str) -> bool {
        let expression = |text: &str| Expression::compile(text).expect(text);
        let variables = [
            ("owner".to_owned(), expression("claims.repository")),
            ("owner".to_owned(), expression("claims['repository_owner_id']")),
            ("long".to_owned(), expression("claims.repository_owner_id + ''")),
        ];
        let shared = SharedIssuer::of(GITHUB, false).expect("GitHub");
        shared.is_pinned_by(&expression(text), &variables)
    }

    #[test]
    fn an_equality_that_every_path_passes_pins_the_owner() {
        for pinned in [
            "claims.repository_owner_id == '1'",
            "'1' == claims[\"repository_owner_id\"]",
            "vars.owner == '1'",
            "claims.repository in ['o/n', 'o/m']",
            "claims.ref == 'refs/heads/main' && (claims.repository == 'o/n' || claims.repository_id in ['1'])",
            "claims.ref == 'x' ? claims.repository == 'o/n' : claims.repository_owner == 'o'",
            "claims.sub == 'repo:o/n:ref:refs/heads/main'",
            "has(claims.environment) && claims.repository_owner_id == '1'",
        ] {
            assert!(is_pinned(pinned), "{pinned}");
        }
        for open in [
            "true",
            "claims.ref == 'refs/heads/main'",
            "has(claims.repository_owner)",
            "claims.repository_owner != 'stranger'",
            "!(claims.repository_owner_id == '1')",
            "claims.repository_owner_id != '1' || claims.repository_owner_id == '1'",
            "claims.repository.matches('^(o|p)/')",
            "claims.repository.startsWith('o/')",
            "claims.repository.contains('o/n')",
            "size(claims.repository) == 3",
            "claims.repository_owner == claims.actor",
            "claims.repository == claims['aud']",
            "claims.enterprise == ''",
            "claims.enterprise in ['', 'company']",
            "claims.repository in claims.repositories",
            "claims.repository in []",
            "claims.repository == 'o/n' || claims.ref == 'refs/heads/main'",
            "claims.ref == 'x' ? true : claims.repository == 'o/n'",
            "claims.sub == 'environment:production'",
            "claims.job_workflow_ref == 'o/n/.github/workflows/x.yml@refs/heads/main'",
            "[{'repository_owner_id': '1'}].exists(claims, claims.repository_owner_id == '1')",
            "vars.long == '1'",
            "vars.missing == '1'",
            "claims.repository_owner_id.x == '1'",
            "string(claims.repository_owner_id) == '1'",
        ] {
            // An empty list lets nobody in; it isn't worth an exception.
            let is_empty = open.ends_with("[]");
            assert!(!is_pinned(open) || is_empty, "{open}");
        }
    }

    #[test]
    fn an_issuer_is_known_however_its_host_is_written() {
        for issuer in [
            GITHUB,
            "https://token.actions.githubusercontent.com/",
            "https://TOKEN.actions.GitHubUserContent.com",
            "https://token.actions.githubusercontent.com.",
            "https://token.actions.githubusercontent.com:443",
            "http://token.actions.githubusercontent.com",
        ] {
            assert!(SharedIssuer::of(issuer, false).is_some(), "{issuer}");
        }
        let enterprise = "https://token.actions.githubusercontent.com/company";
        assert!(SharedIssuer::of(enterprise, false).is_none() && SharedIssuer::of(enterprise, true).is_some());
        assert!(SharedIssuer::of("https://codeberg.org/api/actions/", false).is_some());
        assert!(SharedIssuer::of("https://gitlab.company", false).is_none());
    }
}
