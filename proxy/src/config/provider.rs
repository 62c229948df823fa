//! `http.auth.openid.providers.<name>`

use std::path::PathBuf;

use berth_config::{File, Section};
use url::Url;

use super::trust_roots;
use crate::{
    oidc::{ProviderConfig, ScimConfig},
    secrets,
    store::ScimLink,
};

/// Reads one provider; nothing if a problem was recorded without which it makes no sense.
pub fn read(id: &str, section: Section<'_>) -> Option<ProviderConfig> {
    if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        section.problem("issuer", "belongs to a provider whose name isn't made of letters, digits, - and _; rename it");
    }
    let issuer = read_issuer(&section, EXAMPLE);
    let (client_id, client_secret) = read_credentials(&section);
    if client_id.is_none() {
        section.problem(
            "clientid",
            "is missing; expected the Client ID of authentik's provider, here or in credentialsFile",
        );
    }
    let mut scopes = section.texts("scopes").unwrap_or_else(|| ["openid", "profile", "email"].map(String::from).into());
    if !scopes.iter().any(|scope| scope == "openid") {
        scopes.insert(0, "openid".to_owned());
    }
    let claims = section.section("claimMapping");
    let username_claim = claims.text("username").unwrap_or("email").to_owned();
    let groups_claim = claims.text("groups").unwrap_or("groups").to_owned();
    claims.close();
    let authority = trust_roots::read(&section);
    let (scim, token_file) = read_scim(section.section("scim"));
    let files = section.text("credentialsFile").map(PathBuf::from).into_iter().chain(token_file);
    let files = files.chain(authority.file().map(PathBuf::from)).collect();
    if section.text("keypath").is_some() {
        section.warn("keypath", "is not used: the provider's keys are fetched from it");
    }
    let name = section.text("name").unwrap_or("OIDC").to_owned();
    section.close();
    Some(ProviderConfig {
        id: id.to_owned(),
        name,
        issuer: issuer?,
        client_id: client_id?,
        client_secret,
        scopes,
        username_claim,
        groups_claim,
        authority,
        scim,
        files,
    })
}

/// How long the token of a provider that pushes is at least, in characters.
const MIN_SCIM_TOKEN_CHARS: usize = 20;

/// `scim`, and the file that its token is in.
fn read_scim(section: Section<'_>) -> (Option<ScimConfig>, Option<PathBuf>) {
    if !section.is_present() {
        return (None, None);
    }
    let expected = "expected a file with the token that authentik's SCIM provider has, 20 characters at least";
    let link = match section.text("linkBy") {
        None | Some("externalId") => ScimLink::ExternalId,
        Some("userName") => ScimLink::UserName,
        Some(_) => {
            section.problem(
                "linkBy",
                "must be externalId (users are pushed with the sub of their tokens, authentik's default) or userName",
            );
            ScimLink::ExternalId
        }
    };
    let is_required = section.flag("required").unwrap_or(false);
    let path = section.text("tokenFile").map(PathBuf::from);
    let token = path.as_ref().map(std::fs::read_to_string);
    let config = match (&path, token) {
        (Some(path), Some(Ok(token))) if token.trim().len() < MIN_SCIM_TOKEN_CHARS => {
            section.problem("tokenFile", format!("{} has too short a token; {expected}", path.display()));
            None
        }
        (_, Some(Ok(token))) => Some(ScimConfig { token_hash: secrets::hash(token.trim()), link, is_required }),
        (Some(path), Some(Err(error))) => {
            section.problem("tokenFile", format!("{} can't be read ({error}); {expected}", path.display()));
            None
        }
        _ => {
            section.problem("tokenFile", format!("is missing; {expected}"));
            None
        }
    };
    section.close();
    (config, path)
}

const EXAMPLE: &str = "expected the OpenID Configuration Issuer of authentik's provider, such as \
                       \"https://authentik.company/application/o/<slug>/\"";

/// Reads `issuer`; `example` says what is expected.
pub fn read_issuer(section: &Section<'_>, example: &str) -> Option<String> {
    let Some(issuer) = section.text("issuer") else {
        section.problem("issuer", format!("is missing; {example}"));
        return None;
    };
    match Url::parse(issuer) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none() => {
            Some(issuer.to_owned())
        }
        _ => {
            section.problem("issuer", format!("is not an http(s) URL; {example}"));
            None
        }
    }
}

/// The client's name and password, from the file that `credentialsFile` names or from here.
fn read_credentials(section: &Section<'_>) -> (Option<String>, Option<String>) {
    let own = |key| section.text(key).map(str::to_owned);
    let (id, secret) = (own("clientid"), own("clientsecret"));
    let Some(path) = section.text("credentialsFile") else { return (id, secret) };
    let expected = "expected {\"clientid\": \"…\", \"clientsecret\": \"…\"}";
    match std::fs::read_to_string(path) {
        Err(e) => {
            section
                .problem("credentialsFile", format!("{path} can't be read ({e}); {expected}, readable for this user"));
            (id, secret)
        }
        Ok(text) => match File::parse(&text) {
            Err(_) => {
                section.problem("credentialsFile", format!("{path} is not JSON; {expected}"));
                (id, secret)
            }
            Ok(file) => {
                let root = file.root();
                let from_file = |key| root.text(key).map(str::to_owned);
                (from_file("clientid").or(id), from_file("clientsecret").or(secret))
            }
        },
    }
}
