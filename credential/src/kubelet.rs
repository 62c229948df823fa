//! A kubelet asks for the credentials of an image, with the token of the pod's service account (KEP-2133, KEP-4412): the
//! registry gives a secret for it that is good for that one repository.
//! <https://kubernetes.io/docs/reference/config-api/kubelet-credentialprovider.v1/>

use std::{
    io::{self, Read},
    process::ExitCode,
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{client::Client, host::Host, job};

const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// The most that is read from the kubelet.
const MAX_INPUT_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    api_version: String,
    kind: String,
    image: String,
    #[serde(default)]
    service_account_token: Option<String>,
}

/// Answers one request on standard input. What goes wrong is told on standard error, which the kubelet logs.
pub fn answer() -> ExitCode {
    let mut input = String::new();
    let read = io::stdin().take(MAX_INPUT_BYTES).read_to_string(&mut input);
    match read.map_err(|e| e.to_string()).and_then(|_| response(&input)) {
        Ok(response) => {
            println!("{response}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("berth-credential-provider: {message}");
            ExitCode::FAILURE
        }
    }
}

fn response(input: &str) -> Result<Value, String> {
    let request: Request =
        serde_json::from_str(input).map_err(|e| format!("the kubelet's request can't be read: {e}"))?;
    if request.api_version != API_VERSION || request.kind != "CredentialProviderRequest" {
        let shown = format!("{} {}", request.api_version, request.kind);
        return Err(format!("the kubelet asks with {shown}; set apiVersion of this provider to {API_VERSION}"));
    }
    let (host, repository) = parts(&request.image)?;
    let token = request.service_account_token.filter(|token| !token.is_empty());
    let (auth, cache) = match token {
        None => (json!({}), "0s".to_owned()),
        Some(token) if !job::is_for(&token, &host, "the request") => {
            return Err(format!(
                "the pod's token is not for {host}; set serviceAccountTokenAudience to that, and matchImages to no other"
            ));
        }
        Some(token) => {
            let client = Client::at_first(&host.addresses()).map_err(|e| e.to_string())?;
            let secret = client.exchange(&token, &format!("repository:{repository}:pull"));
            let secret = secret.map_err(|e| format!("{host} gives nothing for the pod's token: {e}"))?;
            let auth =
                json!({format!("{host}/{repository}"): {"username": secret.username, "password": secret.secret}});
            // For half as long as it lives, so that a pull has the other half.
            (auth, format!("{}s", secret.expires_in / 2))
        }
    };
    Ok(json!({
        "apiVersion": API_VERSION,
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Image",
        "cacheDuration": cache,
        "auth": auth,
    }))
}

/// The registry and the repository of an image: `registry.company/team/app` of `registry.company/team/app:1@sha256:…`.
fn parts(image: &str) -> Result<(Host, &str), String> {
    let bad = || format!("the image {image:?} names no registry");
    let (host, rest) = image.split_once('/').ok_or_else(bad)?;
    let rest = rest.split('@').next().unwrap_or(rest);
    // A tag has no slash, and a port stands before the first one.
    let repository = rest.rsplit_once(':').map_or(rest, |(repository, _)| repository);
    let is_registry = host.contains(['.', ':']) || host == "localhost";
    match host.parse() {
        Ok(host) if is_registry && !repository.is_empty() => Ok((host, repository)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_registry_and_repository() {
        for (image, expected) in [
            ("registry.company/team/app:1", ("registry.company", "team/app")),
            ("registry.company:5000/app@sha256:ab", ("registry.company:5000", "app")),
            ("localhost/a/b/c:1@sha256:ab", ("localhost", "a/b/c")),
            ("registry.company/app", ("registry.company", "app")),
        ] {
            let (host, repository) = parts(image).expect(image);
            assert_eq!((host.to_string().as_str(), repository), expected);
        }
        for image in ["", "app", "library/app", "registry.company/", "a b.c/x"] {
            assert!(parts(image).is_err(), "{image}");
        }
    }

    #[test]
    fn without_a_token_a_pod_is_nobody() {
        let request =
            json!({"apiVersion": API_VERSION, "kind": "CredentialProviderRequest", "image": "registry.company/a:1"});
        let response = response(&request.to_string()).expect("an answer");
        assert_eq!((&response["auth"], &response["cacheKeyType"]), (&json!({}), &json!("Image")));
        for bad in ["", "{}", r#"{"apiVersion": "v1", "kind": "Pod", "image": "a.b/c"}"#] {
            assert!(super::response(bad).is_err(), "{bad}");
        }
    }
}
