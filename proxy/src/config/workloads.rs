//! `http.auth.bearer.oidc`: the rules by which tokens of workloads are taken.

use berth_config::Section;

use super::{provider::read_issuer, trust_roots};
use crate::{
    expression::Expression,
    identity::workload::{IssuerConfig, Rule},
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
    let variables = mapping.sections("variables").into_iter().filter_map(|variable| {
        let name = variable.text("name").map(str::to_owned);
        if name.is_none() {
            variable.problem("name", "is missing; expected the name by which vars knows it");
        }
        let expression = required(&variable, expression(&variable, "expression"));
        variable.close();
        Some((name?, expression?))
    });
    let variables = variables.collect();
    let validations = mapping.sections("validations").into_iter().filter_map(|validation| {
        let message = validation.text("message").map(str::to_owned);
        let expression = required(&validation, expression(&validation, "expression"));
        validation.close();
        Some((expression?, message))
    });
    let validations = validations.collect();
    let (username, groups) = (expression(&mapping, "username"), expression(&mapping, "groups"));
    mapping.close();
    let authority = trust_roots::read(&section);
    let any_issuer = section.flag("skipIssuerVerification").unwrap_or(false);
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
