//! Tokens of CI jobs and workloads: JWTs of issuers like GitHub, GitLab, Forgejo or a Kubernetes cluster, taken by the
//! rules of `http.auth.bearer.oidc`.
//!
//! A rule says for whom a token must have been made, what must hold of its claims, and how its bearer is called. A token
//! that no rule takes is refused with the rule that came nearest, and what it missed.

use std::sync::Arc;

use cel::Context;
use serde_json::Value;
use tokio::sync::RwLock;

use super::{AuthMethod, Identity, Refusal, Rejection, shared_issuer::SharedIssuer};
use crate::{
    expression::{Expression, know},
    oidc::{
        ForUnknownKeys, Freshness, Http, Lately, SignInError, TrustRoots,
        jwt::{Claims, Expected, JwtError, JwtKeys, audiences_of, numeric_date},
        keep_fresh, keys_of,
    },
};

/// One entry of `http.auth.bearer.oidc`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its key's path, by which it is called.
    pub path: String,
    /// Whose tokens.
    pub issuer: IssuerConfig,
    /// For whom they must have been made: one of these.
    pub audiences: Vec<String>,
    /// `vars.<name>` of the other expressions, each of which may look at those before it.
    pub variables: Vec<(String, Expression)>,
    /// What must hold, and what is said if it doesn't.
    pub validations: Vec<(Expression, Option<String>)>,
    /// The user's name.
    pub username: Option<Expression>,
    /// The groups.
    pub groups: Option<Expression>,
}

/// An issuer, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerConfig {
    /// Its `iss`, below which its discovery is.
    pub issuer: String,
    /// Whom to trust beside the system's verifiers.
    pub authority: TrustRoots,
    /// Its tokens may have any `iss`.
    pub any_issuer: bool,
}

/// Why a rule doesn't take a token.
#[derive(Debug, PartialEq)]
struct Missed {
    /// How far it came: the more held, the nearer.
    held: usize,
    why: String,
}

impl Rule {
    /// Who brings a token with these claims, if the rule takes it.
    fn apply(&self, claims: &Claims) -> Result<Identity, Missed> {
        let missed = |held, why: String| Missed { held, why };
        if !self.is_for(claims) {
            let shown = claims.get("aud").map_or_else(|| "none".to_owned(), audiences_of);
            return Err(missed(0, format!("its audience is {shown}, and not {}", self.audiences.join(" or "))));
        }
        let document = Value::Object(claims.clone());
        let mut context = Context::default();
        know(&mut context, "claims", &document).map_err(|why| missed(1, why))?;
        let mut variables = std::collections::HashMap::new();
        context.add_variable_from_value("vars", variables.clone());
        for (name, expression) in &self.variables {
            let value = expression.value(&context);
            let value = value.map_err(|why| missed(1, format!("the variable {name} can't be had ({why})")))?;
            variables.insert(name.clone(), value);
            context.add_variable_from_value("vars", variables.clone());
        }
        for (i, (expression, message)) in self.validations.iter().enumerate() {
            let why = match expression.holds(&context) {
                Ok(true) => continue,
                Ok(false) => self.seen(expression, claims),
                Err(why) => format!("{why}; {}", self.seen(expression, claims)),
            };
            let message = message.as_ref().map(|message| format!("{message}: ")).unwrap_or_default();
            return Err(missed(2 + i, format!("{message}{} does not hold ({why})", expression.text())));
        }
        let all = 2 + self.validations.len();
        let user = match &self.username {
            Some(expression) => expression.to_text(&context).map_err(|why| missed(all, format!("username {why}")))?,
            None => {
                let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
                format!("{}/{}", text("iss"), text("sub"))
            }
        };
        let groups = match &self.groups {
            Some(expression) => expression.to_texts(&context).map_err(|why| missed(all, format!("groups {why}")))?,
            None => Vec::new(),
        };
        let good_until = claims.get("exp").and_then(numeric_date);
        let method = AuthMethod::Workload(self.issuer.issuer.clone());
        Ok(Identity { good_until, ..Identity::without_person(user, groups, claims.clone(), method) })
    }

    fn is_for(&self, claims: &Claims) -> bool {
        let ours = |value: &Value| value.as_str().is_some_and(|text| self.audiences.iter().any(|ours| ours == text));
        match claims.get("aud") {
            Some(Value::Array(many)) => many.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        }
    }

    /// What the claims are that an expression looks at.
    fn seen(&self, expression: &Expression, claims: &Claims) -> String {
        let seen = self.claims_of(expression).into_iter().map(|name| match claims.get(name) {
            Some(value) => format!("{name} is {}", value.to_string().chars().take(100).collect::<String>()),
            None => format!("there is no claim {name}"),
        });
        let seen: Vec<String> = seen.collect();
        if seen.is_empty() { "it looks at no claim".to_owned() } else { seen.join(", ") }
    }

    /// The claims that an expression looks at, itself or through variables.
    fn claims_of<'a>(&'a self, expression: &'a Expression) -> Vec<&'a str> {
        let mut claims = expression.members_of("claims");
        for name in expression.members_of("vars") {
            let variable = self.variables.iter().find(|(own, _)| own == name);
            claims.extend(variable.into_iter().flat_map(|(_, variable)| variable.members_of("claims")));
        }
        claims
    }

    /// Why this rule would let the whole world in, if it would: all customers of such a service share its issuer.
    pub fn lets_everybody_in(&self) -> Option<String> {
        let shared = SharedIssuer::of(&self.issuer.issuer, self.issuer.any_issuer)?;
        let pinned = self.validations.iter().any(|(validation, _)| shared.is_pinned_by(validation, &self.variables));
        (!pinned).then(|| {
            format!(
                "lets everybody in who uses that service, since all its customers share the issuer; expected a \
                 validation that every token must pass with an owner's claim equal to a literal, such as {:?} (or, if you \
                 are sure of what you wrote, \"anyOwner\": true beside issuer)",
                shared.example
            )
        })
    }
}

/// An issuer and what is known of its keys.
pub struct Issuer {
    config: IssuerConfig,
    http: Http,
    keys: RwLock<Option<Arc<JwtKeys>>>,
    lately: Lately<JwtKeys>,
    for_unknown_keys: ForUnknownKeys,
    /// How it goes with its keys.
    pub freshness: Freshness,
}

impl Issuer {
    /// An issuer of which nothing is known yet.
    ///
    /// # Errors
    /// A sentence, if its certificate authorities can't be read.
    pub fn new(config: &IssuerConfig) -> Result<Self, String> {
        let http = Http::new(&config.issuer, &config.authority)?;
        Ok(Self {
            config: config.clone(),
            http,
            keys: RwLock::default(),
            lately: Lately::default(),
            for_unknown_keys: ForUnknownKeys::default(),
            freshness: Freshness::default(),
        })
    }

    /// Keeps its keys fresh for as long as the process runs. Nothing waits for this.
    pub async fn keep_keys(self: Arc<Self>) {
        keep_fresh(self.config.issuer.clone(), move || {
            let issuer = Arc::clone(&self);
            async move { issuer.fetch().await.map(drop) }
        })
        .await;
    }

    /// Asks it for its keys, as a start does in the background.
    ///
    /// # Errors
    /// [`SignInError`] if it isn't there, or isn't what is configured.
    pub async fn look(&self) -> Result<(), SignInError> {
        self.fetch().await.map(drop)
    }

    /// By its `iss`.
    pub fn name(&self) -> &str {
        &self.config.issuer
    }

    async fn fetch(&self) -> Result<Arc<JwtKeys>, SignInError> {
        let fetched = self.fetch_now().await;
        self.freshness.note(fetched.is_ok());
        fetched
    }

    async fn fetch_now(&self) -> Result<Arc<JwtKeys>, SignInError> {
        let (_, document) = self.http.discovery(self.config.any_issuer).await?;
        let keys = Arc::new(keys_of(&self.http, &document, None).await?);
        *self.keys.write().await = Some(Arc::clone(&keys));
        Ok(keys)
    }

    async fn verify(&self, token: &str, audiences: &[String]) -> Result<Result<Claims, JwtError>, SignInError> {
        let issuer = (!self.config.any_issuer).then_some(self.config.issuer.as_str());
        let expected = Expected { issuer, audiences };
        let known = self.keys.read().await.clone();
        let keys = match known {
            Some(keys) => keys,
            None => self.lately.get(self.fetch()).await?,
        };
        match keys.verify(token, &expected) {
            Err(error) if error.may_be_stale() && self.for_unknown_keys.may_fetch() => {
                Ok(self.fetch().await?.verify(token, &expected))
            }
            verified => Ok(verified),
        }
    }
}

/// All rules, and their issuers.
#[derive(Default)]
pub struct Workloads {
    rules: Vec<Rule>,
    issuers: Vec<Arc<Issuer>>,
}

impl Workloads {
    /// The rules, with the issuers that are known from `before`.
    ///
    /// # Errors
    /// As [`Issuer::new`].
    pub fn new(rules: Vec<Rule>, before: &Self) -> Result<Self, String> {
        let mut issuers: Vec<Arc<Issuer>> = Vec::new();
        for rule in &rules {
            let same = |issuer: &&Arc<Issuer>| issuer.config == rule.issuer;
            if !issuers.iter().any(|issuer| same(&issuer)) {
                let known = before.issuers.iter().find(same).cloned();
                issuers.push(known.map_or_else(|| Issuer::new(&rule.issuer).map(Arc::new), Ok)?);
            }
        }
        Ok(Self { rules, issuers })
    }

    /// Whether no workload is taken.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The issuers.
    pub fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// Who brings this token, which says that it is of `issuer`.
    pub async fn find(&self, issuer: &str, token: &str) -> Result<Identity, Refusal> {
        let mut refusal = Refusal::from(Rejection::UnknownIssuer(issuer.chars().take(200).collect()));
        for own in &self.issuers {
            if !own.config.any_issuer && own.config.issuer != issuer {
                continue;
            }
            let audiences: Vec<String> =
                self.rules_of(&own.config.issuer).flat_map(|rule| rule.audiences.clone()).collect();
            match own.verify(token, &audiences).await {
                Ok(Ok(claims)) => return self.apply(&own.config.issuer, &claims),
                Ok(Err(error)) => refusal = error.into(),
                Err(error) => refusal = error.into(),
            }
        }
        Err(refusal)
    }

    fn rules_of(&self, issuer: &str) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.issuer.issuer == issuer)
    }

    /// Who would bring a token that says that it is of `issuer`, if its signature is good, and the rule that takes it.
    ///
    /// # Errors
    /// As [`Workloads::apply`].
    pub fn judge(&self, issuer: &str, claims: &Claims) -> Result<(Identity, &str), Refusal> {
        let mut refusal = Refusal::from(Rejection::UnknownIssuer(issuer.chars().take(200).collect()));
        for own in self.issuers.iter().filter(|own| own.config.any_issuer || own.config.issuer == issuer) {
            match self.apply_and_name(&own.config.issuer, claims) {
                Err(error) => refusal = error,
                taken => return taken,
            }
        }
        Err(refusal)
    }

    /// Who brings a genuine token of the configured `issuer` with these claims.
    ///
    /// # Errors
    /// [`Rejection::NoRule`] with the rule that came nearest.
    pub fn apply(&self, issuer: &str, claims: &Claims) -> Result<Identity, Refusal> {
        self.apply_and_name(issuer, claims).map(|(identity, _)| identity)
    }

    /// The same, with the rule that takes them.
    ///
    /// # Errors
    /// As [`Workloads::apply`].
    pub fn apply_and_name(&self, issuer: &str, claims: &Claims) -> Result<(Identity, &str), Refusal> {
        let mut nearest: Option<(&Rule, Missed)> = None;
        for rule in self.rules_of(issuer) {
            match rule.apply(claims) {
                Ok(identity) => return Ok((identity, &rule.path)),
                Err(missed) if nearest.as_ref().is_none_or(|(_, before)| missed.held > before.held) => {
                    nearest = Some((rule, missed));
                }
                Err(_) => {}
            }
        }
        let rejection = match nearest {
            Some((rule, missed)) => Rejection::NoRule(format!("{} came nearest: {}", rule.path, missed.why)),
            None => Rejection::UnknownIssuer(issuer.to_owned()),
        };
        Err(rejection.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GITHUB: &str = "https://token.actions.githubusercontent.com";

    fn expression(text: &str) -> Expression {
        Expression::compile(text).expect(text)
    }

    fn rule(path: &str, validations: &[&str]) -> Rule {
        Rule {
            path: path.to_owned(),
            issuer: IssuerConfig { issuer: GITHUB.to_owned(), authority: TrustRoots::default(), any_issuer: false },
            audiences: vec!["berth".to_owned()],
            variables: vec![("owner".to_owned(), expression("claims.repository_owner_id"))],
            validations: validations.iter().map(|text| (expression(text), None)).collect(),
            username: Some(expression("'ci-' + claims.repository")),
            groups: Some(expression("[vars.owner, 'ci']")),
        }
    }

    fn claims(changes: &Value) -> Claims {
        let mut claims = json!({
            "iss": GITHUB, "aud": "berth", "sub": "repo:o@1/n@2:ref:refs/heads/main", "repository_owner_id": "1",
            "repository_id": "2", "repository": "o/n", "ref": "refs/heads/main",
        });
        claims.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        claims.as_object().expect("an object").clone()
    }

    #[test]
    fn a_token_is_taken_by_the_first_rule_that_it_passes_and_named_by_it() {
        let rules = vec![
            rule("oidc[0]", &["vars.owner == '1'", "claims.ref == 'refs/heads/release'"]),
            rule("oidc[1]", &["vars.owner == '1'", "claims.ref == 'refs/heads/main'"]),
        ];
        let workloads = Workloads { rules, issuers: Vec::new() };
        let job = workloads.apply(GITHUB, &claims(&json!({}))).expect("taken");
        assert_eq!((job.user.as_str(), job.groups), ("ci-o/n", vec!["1".to_owned(), "ci".to_owned()]));

        let refused = |changes: Value| match workloads.apply(GITHUB, &claims(&changes)) {
            Err(Refusal::Rejected(Rejection::NoRule(why))) => why,
            other => panic!("{other:?}"),
        };
        let why = refused(json!({"ref": "refs/heads/x"}));
        assert!(why.starts_with("oidc[0] came nearest: claims.ref == 'refs/heads/release' does not hold"), "{why}");
        assert!(why.contains(r#"ref is "refs/heads/x""#), "{why}");
        let why = refused(json!({"repository_owner_id": "9"}));
        assert!(why.contains(r#"repository_owner_id is "9""#), "{why}");
        let why = refused(json!({"aud": "other"}));
        assert!(why.contains("its audience is other, and not berth"), "{why}");
    }

    #[test]
    fn without_a_name_of_its_own_a_workload_is_called_by_issuer_and_subject() {
        let rule = Rule { username: None, groups: None, ..rule("oidc[0]", &["claims.repository_id == '2'"]) };
        let job = rule.apply(&claims(&json!({}))).expect("taken");
        assert_eq!(job.user, format!("{GITHUB}/repo:o@1/n@2:ref:refs/heads/main"));
    }

    #[test]
    fn a_rule_for_a_shared_issuer_must_pin_the_owner() {
        assert_eq!(rule("x", &["claims.ref == 'a'", "vars.owner == '1'"]).lets_everybody_in(), None);
        assert!(rule("x", &["claims.ref == 'a'", "claims.repository != 'o/n'"]).lets_everybody_in().is_some());
        assert!(rule("x", &[]).lets_everybody_in().is_some());
        let mut own = rule("x", &[]);
        own.issuer.issuer = "https://gitlab.company".to_owned();
        assert_eq!(own.lets_everybody_in(), None);
    }
}
