//! Conditions of a policy: CEL expressions over the request.

use std::{fmt, net::IpAddr, sync::Arc};

use berth_oci::Reference;
use cel::Context;
use chrono::DateTime;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Question;
use crate::{
    action::Action,
    expression::{Expression, check::Kind},
    identity::Identity,
};

/// One condition.
#[derive(Clone, Debug)]
pub struct Condition {
    /// What must hold.
    pub expression: Expression,
    /// What the client is told if it doesn't.
    pub message: Option<Arc<str>>,
}

/// What there is to know of a request beside who sends it and what it asks.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// When, in seconds since 1970.
    pub time: i64,
    /// The method.
    pub method: String,
    /// `User-Agent`
    pub user_agent: String,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// `X-Forwarded-For`, if a proxy that is trusted has sent it.
    pub forwarded_for: String,
    /// The version of TLS, if the connection is.
    pub tls: Option<String>,
}

/// `req`, as zot's conditions know it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    time: cel::Timestamp,
    method: &'a str,
    user_agent: &'a str,
    action: String,
    repository: &'a str,
    reference: String,
    reference_type: &'static str,
    tag: String,
    digest: String,
    user: User<'a>,
    auth: Auth,
    client: Client<'a>,
    tls: Tls<'a>,
    claims: &'a Map<String, Value>,
}

impl<'a> Request<'a> {
    fn new(
        question: &Question<'a>,
        identity: Option<&'a Identity>,
        groups: &'a [String],
        admin: bool,
        circumstances: &'a Circumstances,
        claims: &'a Map<String, Value>,
    ) -> Self {
        let (tag, digest) = (question.tag(), question.digest());
        Self {
            time: cel::Timestamp(DateTime::from_timestamp(circumstances.time, 0).unwrap_or_default().fixed_offset()),
            method: &circumstances.method,
            user_agent: &circumstances.user_agent,
            action: question.action.to_string(),
            repository: question.repository,
            reference: question.reference.map(ToString::to_string).unwrap_or_default(),
            reference_type: match (&tag, &digest) {
                (Some(_), _) => "tag",
                (None, Some(_)) => "digest",
                (None, None) => "",
            },
            tag: tag.unwrap_or_default(),
            digest: digest.unwrap_or_default(),
            user: User { username: identity.map_or("", |identity| &identity.user), groups },
            auth: Auth { anonymous: identity.is_none(), admin },
            client: Client {
                ip: circumstances.client.map(|ip| ip.to_string()).unwrap_or_default(),
                forwarded_for: &circumstances.forwarded_for,
            },
            tls: Tls {
                enabled: circumstances.tls.is_some(),
                version: circumstances.tls.as_deref().unwrap_or_default(),
            },
            claims,
        }
    }
}

#[derive(Serialize)]
struct User<'a> {
    username: &'a str,
    groups: &'a [String],
}

#[derive(Serialize)]
struct Auth {
    anonymous: bool,
    admin: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Client<'a> {
    ip: String,
    forwarded_for: &'a str,
}

#[derive(Serialize)]
struct Tls<'a> {
    enabled: bool,
    version: &'a str,
}

/// A field, what it gives, and its own fields.
type Field = (&'static str, Kind, &'static [(&'static str, Kind)]);

/// The fields of `req`, and what each gives; of those that have fields, theirs.
const FIELDS: [Field; 14] = [
    ("time", Kind::Time, &[]),
    ("method", Kind::Text, &[]),
    ("userAgent", Kind::Text, &[]),
    ("action", Kind::Text, &[]),
    ("repository", Kind::Text, &[]),
    ("reference", Kind::Text, &[]),
    ("referenceType", Kind::Text, &[]),
    ("tag", Kind::Text, &[]),
    ("digest", Kind::Text, &[]),
    ("user", Kind::Unknown, &[("username", Kind::Text), ("groups", Kind::List)]),
    ("auth", Kind::Unknown, &[("anonymous", Kind::Boolean), ("admin", Kind::Boolean)]),
    ("client", Kind::Unknown, &[("ip", Kind::Text), ("forwardedFor", Kind::Text)]),
    ("tls", Kind::Unknown, &[("enabled", Kind::Boolean), ("version", Kind::Text)]),
    ("claims", Kind::Unknown, &[]),
];

/// What a path gives that a condition looks at.
///
/// # Errors
/// If there is nothing: a condition that looks at what isn't there never holds, and its policy grants nothing.
pub fn kind_of(variable: &str, path: &[&str]) -> Result<Kind, String> {
    let names = |names: Vec<&str>| names.join(", ");
    if variable != "req" {
        return Err(format!("looks at {variable}, which there isn't; expected req.… (req.claims for claims)"));
    }
    let Some((field, rest)) = path.split_first() else { return Ok(Kind::Unknown) };
    let Some((_, kind, inner)) = FIELDS.iter().find(|(name, ..)| name == field) else {
        let known = names(FIELDS.iter().map(|(name, ..)| *name).collect());
        return Err(format!("looks at req.{field}, which there isn't; expected one of {known}"));
    };
    let Some(next) = rest.first() else { return Ok(*kind) };
    if inner.is_empty() {
        return Ok(Kind::Unknown);
    }
    let found = inner.iter().find(|(name, _)| name == next).map(|(_, kind)| *kind);
    found.ok_or_else(|| {
        let known = names(inner.iter().map(|(name, _)| *name).collect());
        format!("looks at req.{field}.{next}, which there isn't; expected one of {known}")
    })
}

/// An example of what a condition sees.
pub fn sample() -> Context<'static, 'static> {
    let identity = Identity::named("user", vec!["group".to_owned()]);
    let reference: Reference = Reference::Tag(SAMPLE_TAG.parse().unwrap_or_else(|_| unreachable!("a constant tag")));
    let question = Question { action: Action::Create, repository: "repository", reference: Some(&reference) };
    let (groups, circumstances) = (identity.groups.clone(), Circumstances::default());
    let request = Request::new(&question, Some(&identity), &groups, false, &circumstances, &identity.claims);
    let mut context = Context::default();
    if let Ok(value) = cel::to_value(&request) {
        context.add_variable_from_value("req", value);
    }
    context
}

const SAMPLE_TAG: &str = "v1";

/// Why a condition doesn't hold.
#[derive(Clone, Debug)]
pub struct Unmet {
    /// What the client is told.
    pub message: Option<Arc<str>>,
    /// For the log.
    pub why: String,
}

/// The first condition that doesn't hold for this question. One that can't be evaluated doesn't.
pub fn unmet(
    conditions: &[Condition],
    question: &Question<'_>,
    identity: Option<&Identity>,
    groups: &[String],
    admin: bool,
    circumstances: &Circumstances,
) -> Option<Unmet> {
    if conditions.is_empty() {
        return None;
    }
    let none = Map::new();
    let claims = identity.map_or(&none, |identity| &identity.claims);
    let request = Request::new(question, identity, groups, admin, circumstances, claims);
    let mut context = Context::default();
    match cel::to_value(&request) {
        Ok(value) => context.add_variable_from_value("req", value),
        Err(error) => return Some(Unmet { message: None, why: format!("the request can't be said in CEL: {error}") }),
    }
    conditions.iter().find_map(|condition| {
        let why = match condition.expression.holds(&context) {
            Ok(true) => return None,
            Ok(false) => format!("{} does not hold", condition.expression.text()),
            Err(error) => format!("{} can't be evaluated: {error}", condition.expression.text()),
        };
        Some(Unmet { message: condition.message.clone(), why })
    })
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
