//! What authentik's worker sends to a SCIM provider: everybody and every group, each time in full.

use std::collections::BTreeMap;

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

/// Where it is pushed, with which token.
#[derive(Clone, Debug)]
pub struct Target {
    /// The base URL, such as `https://registry.company/scim/v2`.
    pub url: String,
    /// The static token.
    pub token: String,
}

/// Somebody who is pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The user name.
    pub name: String,
    /// The `uid`, which is the `sub` of tokens.
    pub uid: String,
    /// Whether they are active.
    pub is_active: bool,
    /// Their groups.
    pub groups: Vec<String>,
}

impl Target {
    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> reqwest::Result<Response> {
        let request = Client::new().request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        let request = match body {
            Some(body) => request.header("content-type", "application/scim+json").body(body.to_string()),
            None => request,
        };
        request.send().await
    }

    /// Makes or replaces what `filter` finds; gives its id.
    async fn keep(&self, kind: &str, filter: &str, body: Value) -> reqwest::Result<String> {
        let filter: String = form_urlencoded::byte_serialize(filter.as_bytes()).collect();
        let found = self.send(Method::GET, &format!("/{kind}?filter={filter}"), None).await?;
        let found: Value = found.error_for_status()?.json().await?;
        let known = found["Resources"][0]["id"].as_str();
        let (method, path) = match known {
            Some(id) => (Method::PUT, format!("/{kind}/{id}")),
            None => (Method::POST, format!("/{kind}")),
        };
        let kept: Value = self.send(method, &path, Some(body)).await?.error_for_status()?.json().await?;
        Ok(kept["id"].as_str().unwrap_or_default().to_owned())
    }

    /// Pushes everybody, and the groups that they are in or were in.
    ///
    /// # Errors
    /// If the other side doesn't take it.
    pub async fn push(&self, people: &[Pushed], all_groups: &[String]) -> reqwest::Result<()> {
        let mut members: BTreeMap<&str, Vec<Value>> =
            all_groups.iter().map(|group| (group.as_str(), Vec::new())).collect();
        for Pushed { name, uid, is_active, groups } in people {
            let user = json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "externalId": uid, "userName": name,
                "displayName": name, "active": is_active, "name": {"formatted": name, "givenName": name, "familyName": " "},
                "emails": [{"value": format!("{name}@example.com"), "type": "other", "primary": true}]});
            let id = self.keep("Users", &format!("userName eq \"{name}\""), user).await?;
            for group in groups {
                members.entry(group).or_default().push(json!({"value": id}));
            }
        }
        for (name, members) in members {
            let group = json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"], "displayName": name});
            let filter = format!("displayName eq \"{name}\"");
            let found: String = form_urlencoded::byte_serialize(filter.as_bytes()).collect();
            let known = self.send(Method::GET, &format!("/Groups?filter={found}"), None).await?;
            let known: Value = known.error_for_status()?.json().await?;
            let id = match known["Resources"][0]["id"].as_str() {
                Some(id) => id.to_owned(),
                None => self.keep("Groups", &filter, group).await?,
            };
            let replace = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
                "Operations": [{"op": "replace", "path": "members", "value": members}]});
            let answer = self.send(Method::PATCH, &format!("/Groups/{id}"), Some(replace)).await?;
            debug_assert_ne!(answer.status(), StatusCode::NOT_FOUND);
            answer.error_for_status()?;
        }
        Ok(())
    }
}
