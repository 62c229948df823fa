//! `http.auth.bearer.oidc`: the rules by which tokens of workloads are taken.

use berth_config::Section;
use cel::Context;

use super::{access::report, provider::read_issuer, trust_roots};
use crate::{
    expression::{
        Expression,
        check::{Kind, Mistakes, check_condition, check_value},
    },
    identity::{
        shared_issuer::SharedIssuer,
        workload::{IssuerConfig, Rule},
    },
};

const EXAMPLE: &str = "expected the issuer of the tokens, such as \"https://token.actions.githubusercontent.com\" or \
                       \"https://gitlab.company\"";

/// Reads the section.
pub fn read(bearer: Section<'_>) -> Vec<Rule> {
    bearer.refuse("cert", "tokens are made by Berth's own token service; describe other issuers under oidc");
    bearer.ignore("realm", "it is the token service's, of externalUrl");
    bearer.ignore("service", "it is the host of externalUrl");
    let rules = bearer.sections("oidc").into_iter().filter_map(read_rule).collect();
    bearer.close();
    rules
}

fn read_rule(section: Section<'_>) -> Option<Rule> {
    let issuer = read_issuer(&section, EXAMPLE);
    let audiences = section.texts("audiences").unwrap_or_default();
    if audiences.is_empty() {
        section
            .problem("audiences", "is missing; expected for whom the tokens are made, such as [\"registry.company\"]");
    }
    let mapping = section.section("claimMapping");
    let expression = |section: &Section<'_>, key: &'static str| -> Option<Expression> {
        let compiled = Expression::compile(section.text(key)?);
        compiled.map_err(|e| section.problem(key, format!("is no CEL expression: {e}; mend it"))).ok()
    };
    let any_issuer = section.flag("skipIssuerVerification").unwrap_or(false);
    let claims =
        ClaimKinds { all_texts: issuer.as_deref().is_some_and(|own| SharedIssuer::of(own, any_issuer).is_some()) };
    let mut kinds: Vec<(String, Kind)> = Vec::new();
    // Nothing is known of claims before there is a token.
    let sample = Context::default();
    let variables = mapping.sections("variables").into_iter().filter_map(|variable| {
        let name = variable.text("name").map(str::to_owned);
        if name.is_none() {
            variable.problem("name", "is missing; expected the name by which vars knows it");
        }
        let expression = required(&variable, expression(&variable, "expression"));
        if let (Some(name), Some(expression)) = (&name, &expression) {
            let (kind, mistakes) = check_value(expression, &sample, &|root, path| claims.kind_of(&kinds, root, path));
            report(&variable, mistakes);
            kinds.push((name.clone(), kind));
        }
        variable.close();
        Some((name?, expression?))
    });
    let variables = variables.collect();
    let validations = mapping.sections("validations").into_iter().filter_map(|validation| {
        let message = validation.text("message").map(str::to_owned);
        let expression = required(&validation, expression(&validation, "expression"));
        if let Some(expression) = &expression {
            report(&validation, check_condition(expression, &sample, &|root, path| claims.kind_of(&kinds, root, path)));
        }
        validation.close();
        Some((expression?, message))
    });
    let validations = validations.collect();
    let named = |key: &'static str, wanted: &[Kind], what: &str| {
        let expression = expression(&mapping, key)?;
        let (kind, Mistakes { fatal, .. }) =
            check_value(&expression, &sample, &|root, path| claims.kind_of(&kinds, root, path));
        fatal.into_iter().for_each(|mistake| mapping.problem(key, mistake));
        if kind != Kind::Unknown && !wanted.contains(&kind) {
            mapping.problem(key, format!("gives no {what}; expected one, such as \"claims.sub\""));
        }
        Some(expression)
    };
    let username = named("username", &[Kind::Text], "text");
    let groups = named("groups", &[Kind::Text, Kind::List], "text or list of texts");
    mapping.close();
    let authority = trust_roots::read(&section);
    let path = section.path_of("").trim_end_matches('.').to_owned();
    let issuer = IssuerConfig { issuer: issuer?, authority, any_issuer };
    let rule = Rule { path, issuer, audiences, variables, validations, username, groups };
    let any_owner = section.flag("anyOwner").unwrap_or(false);
    if let Some(problem) = rule.lets_everybody_in().filter(|_| !any_owner) {
        section.problem("claimMapping.validations", problem);
    }
    section.close();
    Some(rule)
}

/// What the claims of an issuer are.
struct ClaimKinds {
    /// CI services send texts, ids and flags too: all but the times.
    all_texts: bool,
}

impl ClaimKinds {
    /// What a path gives that an expression looks at, after these variables.
    fn kind_of(&self, variables: &[(String, Kind)], root: &str, path: &[&str]) -> Result<Kind, String> {
        match (root, path) {
            ("claims", ["exp" | "iat" | "nbf"]) => Ok(Kind::Number),
            // GitLab has lists and numbers, Buildkite numbers.
            (
                "claims",
                ["aud" | "user_identities" | "groups_direct" | "user_access_level" | "runner_id" | "build_number"],
            ) => Ok(Kind::Unknown),
            ("claims", [_]) if self.all_texts => Ok(Kind::Text),
            ("claims", _) | ("vars", []) => Ok(Kind::Unknown),
            ("vars", [name, ..]) => match variables.iter().rev().find(|(own, _)| own == name) {
                Some((_, kind)) => Ok(if path.len() == 1 { *kind } else { Kind::Unknown }),
                None => Err(format!("looks at vars.{name}, which isn't among the variables before it; add it there")),
            },
            _ => Err(format!("looks at {root}, which there isn't; expected claims.… or vars.…")),
        }
    }
}

fn required(section: &Section<'_>, expression: Option<Expression>) -> Option<Expression> {
    // An empty one would be left out, and the rule would let in more than its writer meant.
    if section.text("expression").is_none() {
        section.problem(
            "expression",
            "is missing; expected a CEL expression, such as \"claims.ref == 'refs/heads/main'\"",
        );
    }
    expression
}
