//! The identity that a CI job or a pod has by itself: a token that its platform signs, for the registry's name as audience.

use std::{env, fs, io, path::PathBuf};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;

use crate::{client, host::Host};

/// Where a pod's token is if nobody says: a projected volume.
const TOKEN_FILE: &str = "/var/run/secrets/berth/token";

/// The longest token that is read.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// The token of the job that this runs in, if it is in one and the token is for this registry. A token for somebody else is
/// shown to nobody.
///
/// # Errors
/// A sentence, if there should be one and it can't be had.
pub fn token_for(host: &Host) -> Result<Option<String>, String> {
    let set = |name: &str| env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    // GitLab and Forgejo put it into a variable that the pipeline names.
    let variable = set("BERTH_ID_TOKEN_VARIABLE").unwrap_or_else(|| "BERTH_ID_TOKEN".to_owned());
    if let Some(token) = set(&variable) {
        return Ok(is_for(&token, host, &variable).then_some(token));
    }
    // Kubernetes puts it into a file.
    let told = set("BERTH_ID_TOKEN_FILE").map(PathBuf::from);
    let path = told.clone().unwrap_or_else(|| PathBuf::from(TOKEN_FILE));
    match read(&path) {
        Ok(token) => return Ok(is_for(&token, host, &path.display().to_string()).then_some(token)),
        Err(e) if told.is_none() && e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(format!("{} can't be read: {e}", path.display())),
    }
    // GitHub, and a Forgejo that does as GitHub does, are asked for it.
    match (set("ACTIONS_ID_TOKEN_REQUEST_URL"), set("ACTIONS_ID_TOKEN_REQUEST_TOKEN")) {
        (Some(url), Some(bearer)) => {
            let token = of_actions(&url, &bearer, host)?;
            Ok(is_for(&token, host, "the CI service's answer").then_some(token))
        }
        _ => Ok(None),
    }
}

fn read(path: &PathBuf) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, MAX_TOKEN_BYTES), &mut text)?;
    Ok(text.trim().to_owned())
}

#[derive(Deserialize)]
struct Actions {
    value: String,
}

fn of_actions(url: &str, bearer: &str, host: &Host) -> Result<String, String> {
    let separator = if url.contains('?') { '&' } else { '?' };
    let asked: Result<Actions, String> = client::get_json(&format!("{url}{separator}audience={host}"), bearer);
    asked.map(|answer| answer.value).map_err(|e| {
        format!("the CI service gives no token for this job: {e}; the job needs the permission 'id-token: write'")
    })
}

/// Whether a token was made for this registry. What it says of itself is enough to decide whom it is shown to.
pub fn is_for(token: &str, host: &Host, place: &str) -> bool {
    let audiences = audiences(token);
    let name = host.to_string();
    let is_for = audiences.iter().any(|audience| {
        let bare = audience.strip_prefix("https://").unwrap_or(audience);
        bare.strip_suffix('/').unwrap_or(bare) == name
    });
    if !is_for {
        let shown = if audiences.is_empty() { "nobody".to_owned() } else { audiences.join(" and ") };
        eprintln!("docker-credential-berth: the token in {place} is for {shown}, and is not shown to {host}");
    }
    is_for
}

/// `aud` of a JWT (RFC 7519, section 4.1.3), unchecked.
fn audiences(token: &str) -> Vec<String> {
    let payload =
        token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok());
    let claims: Option<Value> = payload.and_then(|payload| serde_json::from_slice(&payload).ok());
    match claims.as_ref().and_then(|claims| claims.get("aud")) {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_shown_only_to_whom_it_is_for() {
        let host: Host = "registry.company".parse().expect("a host");
        let token = |aud: Value| format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(json!({"aud": aud}).to_string()));
        for good in
            [json!("registry.company"), json!("https://registry.company/"), json!(["x", "https://registry.company"])]
        {
            assert!(is_for(&token(good.clone()), &host, "T"), "{good}");
        }
        for bad in [json!("registry.company.evil"), json!("http://registry.company"), json!([]), json!(null), json!(7)]
        {
            assert!(!is_for(&token(bad.clone()), &host, "T"), "{bad}");
        }
        for text in ["", "..", "a.b.c", "nothing"] {
            assert!(!is_for(text, &host, "T"), "{text}");
        }
    }
}
