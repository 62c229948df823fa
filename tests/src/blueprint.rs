//! An authentik blueprint, as far as the stand-in needs it: what authentik's worker would make of the very same file.

use std::{env, fs, path::Path};

use serde_json::Value;

use crate::stand_in::Application;

/// The application that a blueprint describes, served at `origin`.
///
/// # Errors
/// What it lacks, or which of its files can't be read.
pub fn application(path: &Path, origin: &str) -> Result<Application, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    // The tags are left out: where `!File` stands, there is a path.
    let blueprint: Value = serde_saphyr::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let entry = |model: &str| {
        let entries = blueprint["entries"].as_array().into_iter().flatten();
        entries.clone().find(|entry| entry["model"] == model).ok_or_else(|| format!("there is no {model}"))
    };
    let provider = &entry("authentik_providers_oauth2.oauth2provider")?["attrs"];
    let uris = provider["redirect_uris"].as_array().into_iter().flatten();
    let redirect_uri = uris.clone().find(|uri| uri["redirect_uri_type"] == "authorization").ok_or("no redirect URI")?;
    let grants = provider["grant_types"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(Application {
        origin: origin.to_owned(),
        slug: text_of(&entry("authentik_core.application")?["identifiers"]["slug"])?,
        client_id: text_of(&provider["client_id"])?,
        client_secret: file(&provider["client_secret"])?,
        redirect_uri: text_of(&redirect_uri["url"])?,
        grant_types: grants.map(str::to_owned).collect(),
        ci_password: file(&entry("authentik_core.token")?["attrs"]["key"])?,
    })
}

/// `!File`, without the white space around it.
fn file(path: &Value) -> Result<String, String> {
    let path = path.as_str().ok_or("a secret is in no file")?;
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|e| format!("{path}: {e}"))
}

/// A text, `!Format [text, !Env [name, default]]`, or `!Env [name, default]`.
fn text_of(value: &Value) -> Result<String, String> {
    match value.as_array().map(Vec::as_slice) {
        None => value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is no text")),
        Some([Value::String(format), rest @ ..]) if format.contains("%s") => {
            rest.iter().try_fold(format.clone(), |text, value| Ok(text.replacen("%s", &text_of(value)?, 1)))
        }
        Some([Value::String(name), default]) => env::var(name).or_else(|_| text_of(default)),
        Some(_) => Err(format!("{value} is nothing that the stand-in knows")),
    }
}
