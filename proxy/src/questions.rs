//! `berth-proxy can` and `token`: what the rules of a file say, for who writes them.

use std::{
    fs,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{
    action::Action,
    config::Config,
    identity::{Identity, workload::Workloads},
    oidc::{
        jwt::{audiences_of, is_access_token_of, never_taken, numeric_date, unchecked_claims},
        user_of,
    },
    policy::{Circumstances, Question},
    store::now,
};

/// The longest token or file of claims that is read, in bytes.
const MAX_INPUT_BYTES: u64 = 1024 * 1024;

/// Who asks, and from where.
pub struct Who {
    /// A name; nobody, without one.
    pub user: Option<String>,
    /// The groups of the name.
    pub groups: Vec<String>,
    /// Claims instead of both.
    pub claims: Option<PathBuf>,
    /// The address.
    pub ip: Option<IpAddr>,
}

impl Who {
    fn identity(&self, config: &Config) -> Result<Option<Identity>, String> {
        let Some(path) = &self.claims else {
            return Ok(self.user.as_ref().map(|user| Identity::named(user, self.groups.clone())));
        };
        let failed = |why: String| format!("--claims: {}: {why}", path.display());
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let claims: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| failed(format!("is no JSON object ({e}); expected {{\"sub\": …}}")))?;
        identity_of(config, claims).map(|(identity, _)| Some(identity)).map_err(failed)
    }
}

/// Who has these claims, and what of the file takes them: the provider or a rule of the issuer that their `iss` names, or the
/// only provider.
fn identity_of(config: &Config, claims: Map<String, Value>) -> Result<(Identity, String), String> {
    let issuer = claims.get("iss").and_then(Value::as_str).map(str::to_owned);
    let provider = match (&issuer, config.providers.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => return Err("has no \"iss\", and there is not exactly one provider; add it".to_owned()),
        (Some(issuer), all) => all.iter().find(|provider| provider.issuer == *issuer),
    };
    if let Some(provider) = provider {
        let user = user_of(provider, claims)
            .map_err(|claim| format!("there is no claim {:?}, which names people (claimMapping.username)", claim.0))?;
        let by = format!("http.auth.openid.providers.{}", provider.id);
        return Ok((Identity::for_question(user.name, user.groups, user.claims), by));
    }
    let workloads = Workloads::new(config.workloads.clone(), &Workloads::default())?;
    let taken = workloads.judge(&issuer.unwrap_or_default(), &claims);
    taken.map(|(identity, rule)| (identity, rule.to_owned())).map_err(|refusal| refusal.to_string())
}

/// `berth-proxy can`: whether somebody may do something, and which rule decides.
///
/// # Errors
/// The rule that says no, or what can't be asked.
pub fn can(path: &Path, who: Who, action: &str, target: &str) -> Result<(), String> {
    let (config, _) = Config::read(path).map_err(|problems| problems.to_string())?;
    let action = Action::from_name(action)
        .ok_or_else(|| format!("{action} is not an action; expected read, create, update or delete"))?;
    // A digest has a colon, a tag has none, and a repository has neither.
    let (repository, reference) = match target.split_once(['@', ':']) {
        None => (target, None),
        Some((repository, reference)) => (repository, Some(reference)),
    };
    let repository: berth_oci::Repository = repository.parse().map_err(|e| format!("{repository}: {e}"))?;
    let reference = reference.map(str::parse::<berth_oci::Reference>).transpose();
    let reference = reference.map_err(|e| format!("{target}: {e}"))?;
    let identity = who.identity(&config)?;
    let question = Question { action, repository: repository.as_str(), reference: reference.as_ref() };
    let circumstances = Circumstances { time: now(), client: who.ip, ..Circumstances::default() };
    let decision = config.rules.evaluate(identity.as_ref(), &question, &circumstances);
    let name = match (&who.claims, &identity) {
        (Some(_), Some(identity)) => {
            let groups = config.rules.groups_of(identity);
            let groups = if groups.is_empty() { "in no group".to_owned() } else { format!("in {}", groups.join(", ")) };
            format!("{} ({groups}): ", identity.user.escape_debug())
        }
        _ => String::new(),
    };
    let text = format!("{name}{}: {}", if decision.allowed { "yes" } else { "no" }, decision.rule);
    if decision.allowed {
        println!("{text}");
        return Ok(());
    }
    Err(text)
}

/// `berth-proxy token`: whose a token is, and which rule takes it. Its signature isn't looked at.
///
/// # Errors
/// Why it would be refused.
pub fn token(path: &Path, jwt: &Path) -> Result<(), String> {
    let (config, _) = Config::read(path).map_err(|problems| problems.to_string())?;
    let mut text = String::new();
    let read = match jwt.as_os_str() == "-" {
        true => std::io::stdin().take(MAX_INPUT_BYTES).read_to_string(&mut text),
        false => fs::File::open(jwt).and_then(|file| file.take(MAX_INPUT_BYTES).read_to_string(&mut text)),
    };
    read.map_err(|e| {
        format!("{}: {e}; give a file with the token, or - and the token on standard input", jwt.display())
    })?;
    let text = text.trim();
    let claims = unchecked_claims(text).ok_or("that is no JWT: three parts with dots between them, in Base64url")?;
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default().to_owned();
    println!("issuer: {}", issuer.escape_debug());
    println!("audience: {}", claims.get("aud").map_or_else(|| "none".to_owned(), audiences_of).escape_debug());
    match claims.get("exp").and_then(numeric_date) {
        Some(at) if at <= now() => return Err(format!("refused: the token has expired, {} s ago", now() - at)),
        Some(at) => println!("good for {} s", at - now()),
        None => return Err("the token has no exp, so it is refused".to_owned()),
    }
    if let Some(why) = never_taken(text, &claims) {
        return Err(format!("refused: {why}"));
    }
    if let Some(provider) = config.providers.iter().find(|provider| provider.issuer == issuer) {
        let ours = claims.get("aud").is_some_and(|aud| match aud {
            Value::Array(many) => many.iter().any(|one| one == provider.client_id.as_str()),
            one => one == provider.client_id.as_str(),
        });
        if !ours {
            return Err(format!("refused: it is not made for {}, the client of this registry", provider.client_id));
        }
        if claims.get("azp").is_some_and(|azp| *azp != *provider.client_id) {
            return Err(format!("refused: it was made for another client (azp) than {}", provider.client_id));
        }
        if !is_access_token_of(text, &claims) {
            return Err("refused: it can't be told from an ID token; show an access token".to_owned());
        }
    }
    let (identity, by) = identity_of(&config, claims).map_err(|why| format!("refused: {why}"))?;
    let groups = config.rules.groups_of(&identity);
    println!("taken by {by}, if its signature is good: user {:?}, groups {groups:?}", identity.user);
    Ok(())
}
