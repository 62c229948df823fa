//! An identity provider that behaves as authentik 2026.8 does, as far as a registry meets it: its addresses and slashes,
//! its claims, the grant types that a provider allows, its refresh tokens, its app passwords, its error bodies.
//!
//! It is for trying Berth out and for tests. It keeps everything in memory, and everybody's password is their name.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    digest, rand,
    rsa::{KeyPair, KeySize, PublicKeyComponents},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use axum::{
    Form, Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value, json};

use crate::scim_push::{Pushed, Target};

/// How long its tokens live, in seconds.
const LIFETIME: u64 = 5 * 60;

/// Somebody it knows.
#[derive(Clone, Debug)]
pub struct Account {
    /// The user name, which is the password too.
    pub name: &'static str,
    /// The groups.
    pub groups: &'static [&'static str],
    /// Whether it is a service account, which has an app password and none to sign in with.
    pub is_service: bool,
}

/// Everybody it knows.
pub const ACCOUNTS: [Account; 3] = [
    Account { name: "alice", groups: &["dev"], is_service: false },
    Account { name: "bob", groups: &["ops"], is_service: false },
    Account { name: "ci-robot", groups: &["ci"], is_service: true },
];

/// The app password of the service account, unless a blueprint says otherwise.
pub const CI_PASSWORD: &str = "ci-robot-app-password";

/// The application that people sign in to.
#[derive(Clone, Debug)]
pub struct Application {
    /// `http://host:port`, without a slash at its end.
    pub origin: String,
    /// The application's name in its addresses.
    pub slug: String,
    /// The client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// Where it may send people back to, exactly.
    pub redirect_uri: String,
    /// The grant types that it allows.
    pub grant_types: Vec<String>,
    /// The app password of the service account.
    pub ci_password: String,
}

impl Application {
    /// `…/application/o/<slug>/`, with its slash.
    pub fn issuer(&self) -> String {
        format!("{}/application/o/{}/", self.origin, self.slug)
    }
}

struct Provider {
    application: Application,
    key: KeyPair,
    state: Mutex<Memory>,
}

/// What a provider of authentik's must allow for a registry.
pub const GRANT_TYPES: [&str; 3] = ["authorization_code", "refresh_token", "client_credentials"];

#[derive(Default)]
struct Memory {
    /// Browser sessions: cookie to user.
    sessions: HashMap<String, String>,
    codes: HashMap<String, Grant>,
    refresh_tokens: HashMap<String, Grant>,
    /// What userinfo says to whom.
    access_tokens: HashMap<String, Map<String, Value>>,
    disabled: HashSet<String>,
    /// Where it pushes who is there, if it does.
    scim: Option<Target>,
    /// Groups that were changed.
    groups: HashMap<String, Vec<String>>,
    /// Names that were changed.
    names: HashMap<String, String>,
    /// What its front answers in its place, if it isn't 200.
    busy: u16,
    /// Subjects that were changed.
    subjects: HashMap<String, String>,
    /// The grant types that are allowed.
    grant_types: Vec<String>,
    /// Whether a refresh token is good once, as those that are near their end.
    rotates: bool,
    /// Whether refresh tokens are used, and the answer never comes.
    hangs: bool,
    /// How often tokens were asked for, by the kind of grant.
    asked: HashMap<String, u64>,
}

#[derive(Clone)]
struct Grant {
    user: String,
    scope: String,
    nonce: Option<String>,
    challenge: Option<String>,
    session: String,
}

type Shared = Arc<Provider>;
type Fields = HashMap<String, String>;

/// The provider's addresses.
///
/// # Panics
/// If no RSA key can be made.
pub fn router(application: Application) -> Router {
    let key = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
    let memory = Memory { grant_types: application.grant_types.clone(), ..Memory::default() };
    let provider = Arc::new(Provider { application, key, state: Mutex::new(memory) });
    Router::new()
        .route("/application/o/{slug}/.well-known/openid-configuration", get(discovery))
        .route("/application/o/{slug}/jwks/", get(keys))
        .route("/application/o/{slug}/end-session/", get(end_session))
        .route("/application/o/authorize/", get(authorize))
        .route("/application/o/token/", post(token))
        .route("/application/o/userinfo/", get(userinfo).post(userinfo))
        .route("/if/flow/default-authentication-flow/", get(login_page).post(login))
        .route("/people", get(people).post(change_people))
        .route("/test/scim", post(push_to))
        .route("/test/disable/{user}", post(disable))
        .route("/test/groups/{user}/{group}", post(regroup))
        .route("/test/subject/{user}/{subject}", post(rename_subject))
        .route("/test/name/{user}/{name}", post(rename))
        .route("/test/busy/{status}", post(be_busy))
        .route("/test/grants", post(allow_grants))
        .route("/test/rotate/{whether}", post(rotate))
        .route("/test/hang/{whether}", post(hang))
        .route("/test/asked/{grant}", get(asked))
        .route("/test/sign", post(sign_anything))
        .with_state(provider)
}

impl Provider {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self, path: &str) -> String {
        format!("{}/application/o/{path}", self.application.origin)
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({}), claims)
    }

    /// Signs with more parameters in the header.
    fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let mut head = json!({"alg": "RS256", "typ": "JWT", "kid": "stand-in"});
        if let (Some(head), Some(more)) = (head.as_object_mut(), header.as_object()) {
            head.extend(more.clone());
        }
        let head = encode(&head);
        let message = format!("{head}.{}", encode(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        let random = rand::SystemRandom::new();
        self.key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).expect("a signature");
        format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// The claims of a scope, as authentik's default mappings give them.
    fn claims(&self, user: &str, scope: &str) -> Map<String, Value> {
        let subject = self.memory().subjects.get(user).cloned();
        let subject = subject.unwrap_or_else(|| hex(user.as_bytes()));
        let name = self.memory().names.get(user).cloned().unwrap_or_else(|| user.to_owned());
        let mut claims = Map::from_iter([("sub".to_owned(), json!(subject))]);
        let groups = ACCOUNTS.iter().find(|account| account.name == user).map_or(&[][..], |account| account.groups);
        let groups = self.memory().groups.get(user).map_or_else(|| json!(groups), |changed| json!(changed));
        for scope in scope.split(' ') {
            let more = match scope {
                "email" => json!({"email": format!("{user}@example.com"), "email_verified": false}),
                "profile" => json!({
                    "name": user, "given_name": user, "preferred_username": name, "nickname": user, "groups": groups,
                }),
                _ => continue,
            };
            claims.extend(more.as_object().cloned().unwrap_or_default());
        }
        claims
    }

    fn allows(&self, grant: &str) -> bool {
        self.memory().grant_types.iter().any(|allowed| allowed == grant)
    }

    /// An answer of the token endpoint. `refresh_token` is given again while it is good for long.
    fn answer(&self, grant: &Grant, refresh_token: Option<&str>) -> Json<Value> {
        let mut claims = self.claims(&grant.user, &grant.scope);
        let application = &self.application;
        let fixed = json!({
            "iss": application.issuer(), "aud": application.client_id, "iat": now(), "exp": now() + LIFETIME,
            "auth_time": now(), "acr": "goauthentik.io/providers/oauth2/default", "amr": ["pwd"],
            "sid": hex(grant.session.as_bytes()),
        });
        claims.extend(fixed.as_object().cloned().unwrap_or_default());
        if let Some(nonce) = &grant.nonce {
            claims.insert("nonce".to_owned(), json!(nonce));
        }
        let mut access = claims.clone();
        access.insert("azp".to_owned(), json!(application.client_id));
        access.insert("uid".to_owned(), json!(random()));
        let access_token = self.sign(&Value::Object(access));
        let user_info = self.claims(&grant.user, &grant.scope);
        self.memory().access_tokens.insert(access_token.clone(), user_info);
        let id_token = self.sign(&Value::Object(claims));
        let mut answer = json!({
            "access_token": access_token, "token_type": "Bearer", "scope": grant.scope, "expires_in": LIFETIME,
            "id_token": id_token,
        });
        let is_offline = grant.scope.split(' ').any(|scope| scope == "offline_access");
        if is_offline && refresh_token.is_none() && self.allows("refresh_token") {
            let token = random();
            self.memory().refresh_tokens.insert(token.clone(), grant.clone());
            answer["refresh_token"] = json!(token);
        }
        Json(answer)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn random() -> String {
    let mut bytes = [0; 24];
    rand::fill(&mut bytes).expect("random numbers");
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn hex(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn discovery(State(provider): State<Shared>, Path(slug): Path<String>) -> Response {
    if slug != provider.application.slug {
        return StatusCode::NOT_FOUND.into_response();
    }
    Json(json!({
        "issuer": provider.application.issuer(),
        "authorization_endpoint": provider.address("authorize/"),
        "token_endpoint": provider.address("token/"),
        "userinfo_endpoint": provider.address("userinfo/"),
        "end_session_endpoint": provider.address(&format!("{slug}/end-session/")),
        "introspection_endpoint": provider.address("introspect/"),
        "revocation_endpoint": provider.address("revoke/"),
        "device_authorization_endpoint": provider.address("device/"),
        "jwks_uri": provider.address(&format!("{slug}/jwks/")),
        "response_types_supported": ["code", "id_token", "id_token token", "code token", "code id_token"],
        "response_modes_supported": ["query", "fragment", "form_post"],
        "grant_types_supported": [
            "authorization_code", "refresh_token", "implicit", "client_credentials", "password",
            "urn:ietf:params:oauth:grant-type:device_code",
        ],
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["public"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "acr_values_supported": ["goauthentik.io/providers/oauth2/default"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "request_parameter_supported": false,
        "claims_supported": ["sub", "iss", "aud", "exp", "iat", "nonce", "email", "name", "groups"],
        "claims_parameter_supported": false,
        "code_challenge_methods_supported": ["plain", "S256"],
    }))
    .into_response()
}

async fn keys(State(provider): State<Shared>) -> Json<Value> {
    let public = PublicKeyComponents::<Vec<u8>>::from(provider.key.public_key());
    let number = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Json(json!({"keys": [{
        "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "stand-in", "n": number(&public.n), "e": number(&public.e),
    }]}))
}

fn session(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    cookies.split("; ").find_map(|cookie| cookie.strip_prefix("authentik_session=")).map(str::to_owned)
}

async fn authorize(State(provider): State<Shared>, headers: HeaderMap, Query(query): Query<Fields>) -> Response {
    let field = |name: &str| query.get(name).cloned();
    let application = &provider.application;
    if field("client_id").as_ref() != Some(&application.client_id) {
        return (StatusCode::BAD_REQUEST, "The client identifier (client_id) is missing or invalid.").into_response();
    }
    if field("redirect_uri").as_ref() != Some(&application.redirect_uri) {
        let message = "The request fails due to a missing, invalid, or mismatching redirection URI (redirect_uri).";
        return (StatusCode::BAD_REQUEST, message).into_response();
    }
    let back = |fields: &[(&str, &str)]| {
        let mut back = form_urlencoded::Serializer::new(String::new());
        back.extend_pairs(fields).append_pair("state", &field("state").unwrap_or_default());
        Redirect::to(&format!("{}?{}", application.redirect_uri, back.finish())).into_response()
    };
    if !provider.allows("authorization_code") {
        let description = "The request is otherwise malformed";
        return back(&[("error", "invalid_request"), ("error_description", description)]);
    }
    let session = session(&headers).unwrap_or_default();
    let user = provider.memory().sessions.get(&session).cloned();
    let Some(user) = user else {
        let next = form_urlencoded::Serializer::new(String::new()).extend_pairs(&query).finish();
        let next = format!("/application/o/authorize/?{next}");
        let flow = form_urlencoded::Serializer::new(String::new()).append_pair("next", &next).finish();
        return Redirect::to(&format!("/if/flow/default-authentication-flow/?{flow}")).into_response();
    };
    let grant = Grant {
        user,
        scope: field("scope").unwrap_or_default(),
        nonce: field("nonce"),
        challenge: field("code_challenge"),
        session,
    };
    let code = random();
    provider.memory().codes.insert(code.clone(), grant);
    back(&[("code", &code)])
}

async fn login_page(Query(query): Query<Fields>) -> Html<String> {
    page(query.get("next").map_or("/", String::as_str), "")
}

fn page(next: &str, error: &str) -> Html<String> {
    let next = next.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    Html(format!(
        "<!doctype html><html lang=en><title>Stand-in for authentik</title><style>body{{font:1rem/1.6 sans-serif;\
         max-width:24rem;margin:4rem auto}}input,button{{font:inherit;width:100%;padding:.5rem;margin:.2rem 0}}</style>\
         <h1>Stand-in for authentik</h1><p>Everybody's password is their name: try <b>alice</b>, or <b>bob</b>.</p>\
         <p role=alert>{error}</p><form method=post><input type=hidden name=next value=\"{next}\">\
         <label>User name<input name=username autofocus></label>\
         <label>Password<input name=password type=password></label><button name=go>Sign in</button></form>"
    ))
}

async fn login(State(provider): State<Shared>, Form(form): Form<Fields>) -> Response {
    let field = |name: &str| form.get(name).cloned().unwrap_or_default();
    let (user, next) = (field("username"), field("next"));
    let known = ACCOUNTS.iter().any(|account| account.name == user && !account.is_service);
    if !known || field("password") != user || provider.memory().disabled.contains(&user) {
        return (StatusCode::UNAUTHORIZED, page(&next, "Invalid user name or password.")).into_response();
    }
    let session = random();
    provider.memory().sessions.insert(session.clone(), user);
    let cookie = format!("authentik_session={session}; Path=/; HttpOnly; SameSite=Lax");
    ([(header::SET_COOKIE, cookie)], Redirect::to(&next)).into_response()
}

async fn end_session(State(provider): State<Shared>, headers: HeaderMap, Query(query): Query<Fields>) -> Response {
    if let Some(session) = session(&headers) {
        provider.memory().sessions.remove(&session);
    }
    match query.get("post_logout_redirect_uri") {
        Some(uri) if provider.application.redirect_uri.starts_with(uri) => Redirect::to(uri).into_response(),
        _ => Html("<!doctype html><title>Signed out</title><p>You have signed out.</p>").into_response(),
    }
}

/// A token endpoint's error (RFC 6749, section 5.2), worded as authentik words it.
fn refused(error: &str) -> Response {
    let description = match error {
        "invalid_client" => {
            "Client authentication failed (e.g., unknown client, no client authentication included, or unsupported \
             authentication method)"
        }
        "invalid_grant" => {
            "The provided authorization grant or refresh token is invalid, expired, revoked, does not match the \
             redirection URI used in the authorization request, or was issued to another client"
        }
        _ => "The authorization grant type is not supported by the authorization server",
    };
    (StatusCode::BAD_REQUEST, Json(json!({"error": error, "error_description": description}))).into_response()
}

async fn token(State(provider): State<Shared>, headers: HeaderMap, Form(form): Form<Fields>) -> Response {
    let field = |name: &str| form.get(name).cloned();
    let busy = provider.memory().busy;
    if let Some(status) = StatusCode::from_u16(busy).ok().filter(|status| !status.is_success()) {
        return status.into_response();
    }
    *provider.memory().asked.entry(field("grant_type").unwrap_or_default()).or_default() += 1;
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| {
        let encoded = value.to_str().ok()?.strip_prefix("Basic ")?;
        let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
        let (id, secret) = decoded.split_once(':')?;
        Some((id.to_owned(), secret.to_owned()))
    });
    let (id, secret) =
        basic.unwrap_or_else(|| (field("client_id").unwrap_or_default(), field("client_secret").unwrap_or_default()));
    let application = &provider.application;
    if id != application.client_id {
        return refused("invalid_client");
    }
    let right_secret = secret == application.client_secret;
    match field("grant_type").as_deref() {
        Some(grant) if GRANT_TYPES.contains(&grant) && !provider.allows(grant) => refused("invalid_grant"),
        Some("authorization_code" | "refresh_token") if !right_secret => refused("invalid_client"),
        Some("authorization_code") => {
            let grant = field("code").and_then(|code| provider.memory().codes.remove(&code));
            let Some(grant) = grant else { return refused("invalid_grant") };
            let challenge = field("code_verifier")
                .map(|verifier| BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes())));
            if field("redirect_uri").as_ref() != Some(&application.redirect_uri) || challenge != grant.challenge {
                return refused("invalid_grant");
            }
            provider.answer(&grant, None).into_response()
        }
        Some("refresh_token") => {
            let token = field("refresh_token").unwrap_or_default();
            let (grant, rotates, hangs) = {
                let mut memory = provider.memory();
                // Good once: it is taken away, and a new one is given.
                let rotates = memory.rotates;
                let grant = if rotates {
                    memory.refresh_tokens.remove(&token)
                } else {
                    memory.refresh_tokens.get(&token).cloned()
                };
                (grant, rotates, memory.hangs)
            };
            if hangs {
                std::future::pending::<()>().await;
            }
            match grant {
                Some(grant) => {
                    let grant = Grant { nonce: None, ..grant };
                    provider.answer(&grant, (!rotates).then_some(token.as_str())).into_response()
                }
                None => refused("invalid_grant"),
            }
        }
        Some("client_credentials" | "password") => {
            let user = machine(&provider, &form, &secret, right_secret);
            let Some(user) = user else { return refused("invalid_grant") };
            let scope = field("scope").unwrap_or_default();
            let grant = Grant { user, scope, nonce: None, challenge: None, session: random() };
            provider.answer(&grant, None).into_response()
        }
        _ => refused("unsupported_grant_type"),
    }
}

/// Who a machine is: a user with an app password, in one of authentik's two forms, or the client itself.
fn machine(provider: &Provider, form: &Fields, secret: &str, right_secret: bool) -> Option<String> {
    let in_secret = || {
        let decoded = String::from_utf8(BASE64_STANDARD.decode(secret).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    };
    let in_fields = || Some((form.get("username")?.clone(), form.get("password")?.clone()));
    let Some((user, password)) = in_fields().or_else(in_secret) else {
        return right_secret.then(|| format!("ak-{}-client_credentials", provider.application.slug));
    };
    let account = ACCOUNTS.iter().find(|account| account.name == user)?;
    let allowed = account.is_service
        && provider.application.ci_password == password
        && !provider.memory().disabled.contains(&user);
    allowed.then_some(user)
}

async fn userinfo(State(provider): State<Shared>, headers: HeaderMap) -> Response {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let claims = token.and_then(|token| provider.memory().access_tokens.get(token).cloned());
    match claims {
        Some(claims) => Json(claims).into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// For tests: from now on the user is deactivated, and their refresh tokens are gone.
async fn disable(State(provider): State<Shared>, Path(user): Path<String>) -> StatusCode {
    let mut memory = provider.memory();
    memory.refresh_tokens.retain(|_, grant| grant.user != user);
    memory.disabled.insert(user);
    StatusCode::NO_CONTENT
}

/// For tests: from now on it pushes who is there.
async fn push_to(State(provider): State<Shared>, Json(target): Json<Map<String, Value>>) -> StatusCode {
    let text = |key: &str| target.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    provider.memory().scim = Some(Target { url: text("url"), token: text("token") });
    if push(&provider).await.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::BAD_GATEWAY }
}

async fn push(provider: &Provider) -> reqwest::Result<()> {
    let Some(target) = provider.memory().scim.clone() else { return Ok(()) };
    let people: Vec<Pushed> = ACCOUNTS.iter().map(|account| provider.pushed(account)).collect();
    let groups: Vec<String> = ACCOUNTS.iter().flat_map(|account| account.groups).map(ToString::to_string).collect();
    target.push(&people, &groups).await
}

impl Provider {
    fn pushed(&self, account: &Account) -> Pushed {
        let claims = self.claims(account.name, "profile");
        let text = |key: &str| claims[key].as_str().unwrap_or_default().to_owned();
        let groups = claims["groups"].as_array().into_iter().flatten().filter_map(|group| group.as_str());
        Pushed {
            name: text("preferred_username"),
            uid: text("sub"),
            is_active: !self.memory().disabled.contains(account.name),
            groups: groups.map(str::to_owned).collect(),
        }
    }
}

/// `GET /people`: who is there, with buttons to change that.
async fn people(State(provider): State<Shared>) -> Html<String> {
    let rows: String = ACCOUNTS.iter().filter(|account| !account.is_service).map(|account| {
        let pushed = provider.pushed(account);
        let (is_in, name) = (pushed.groups.iter().any(|group| group == "dev"), account.name);
        let state = if pushed.is_active { "active" } else { "deactivated" };
        let change = if pushed.is_active { "deactivate" } else { "activate" };
        let (join, verb) = if is_in { ("leave", "take out of dev") } else { ("join", "add to dev") };
        let groups = pushed.groups.join(", ");
        format!(
            "<form method=post><p><b>{name}</b>: {state}, in {groups} <input type=hidden name=user value={name}>\
             <button name=change value={change}>{change}</button> <button name=change value={join}>{verb}</button></p></form>"
        )
    }).collect();
    Html(format!(
        "<!doctype html><html lang=en><title>Stand-in for authentik</title><style>body{{font:1rem/1.6 sans-serif;\
         max-width:36rem;margin:4rem auto}}button{{font:inherit}}</style><h1>People</h1>{rows}\
         <p>What changes here is pushed to the registry at once, by SCIM.</p>"
    ))
}

/// `POST /people`
async fn change_people(State(provider): State<Shared>, Form(form): Form<Fields>) -> Response {
    let field = |name: &str| form.get(name).cloned().unwrap_or_default();
    let Some(account) = ACCOUNTS.iter().find(|account| account.name == field("user")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut groups = provider.pushed(account).groups;
    {
        let mut memory = provider.memory();
        match field("change").as_str() {
            "deactivate" => {
                memory.refresh_tokens.retain(|_, grant| grant.user != account.name);
                memory.disabled.insert(account.name.to_owned());
            }
            "activate" => drop(memory.disabled.remove(account.name)),
            "join" => groups.push("dev".to_owned()),
            "leave" => groups.retain(|group| group != "dev"),
            _ => return StatusCode::BAD_REQUEST.into_response(),
        }
        memory.groups.insert(account.name.to_owned(), groups);
    }
    match push(&provider).await {
        Ok(()) => Redirect::to("/people").into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("the registry did not take it: {error}\n")).into_response(),
    }
}

/// For tests: from now on the user is in this group alone.
async fn regroup(State(provider): State<Shared>, Path((user, group)): Path<(String, String)>) -> StatusCode {
    provider.memory().groups.insert(user, vec![group]);
    StatusCode::NO_CONTENT
}

/// For tests: from now on the user has another subject.
async fn rename_subject(State(provider): State<Shared>, Path((user, subject)): Path<(String, String)>) -> StatusCode {
    provider.memory().subjects.insert(user, subject);
    StatusCode::NO_CONTENT
}

/// For tests: from now on the user has another name.
async fn rename(State(provider): State<Shared>, Path((user, name)): Path<(String, String)>) -> StatusCode {
    provider.memory().names.insert(user, name);
    StatusCode::NO_CONTENT
}

/// For tests: what the token endpoint answers from now on; 200 for what it answers of itself.
async fn be_busy(State(provider): State<Shared>, Path(status): Path<u16>) -> StatusCode {
    provider.memory().busy = status;
    StatusCode::NO_CONTENT
}

/// For tests: from now on the provider allows these grant types alone.
async fn allow_grants(State(provider): State<Shared>, Json(allowed): Json<Vec<String>>) -> StatusCode {
    provider.memory().grant_types = allowed;
    StatusCode::NO_CONTENT
}

/// For tests: whether refresh tokens are good once from now on.
async fn rotate(State(provider): State<Shared>, Path(whether): Path<bool>) -> StatusCode {
    provider.memory().rotates = whether;
    StatusCode::NO_CONTENT
}

/// For tests: whether renewals are made and never answered from now on.
async fn hang(State(provider): State<Shared>, Path(whether): Path<bool>) -> StatusCode {
    provider.memory().hangs = whether;
    StatusCode::NO_CONTENT
}

/// For tests: how often tokens were asked for with this kind of grant.
async fn asked(State(provider): State<Shared>, Path(grant): Path<String>) -> String {
    provider.memory().asked.get(&grant).copied().unwrap_or_default().to_string()
}

/// For tests: a genuine token with any claims, of an issuer that signs for CI jobs.
async fn sign_anything(State(provider): State<Shared>, Json(wanted): Json<Value>) -> String {
    provider.sign_with(&wanted["header"], &wanted["claims"])
}

/// For tests: a token that the stand-in with this issuer signs with these claims, good for an hour unless they say
/// otherwise.
///
/// # Panics
/// If the stand-in doesn't answer.
pub async fn signed(issuer: &str, claims: Value) -> String {
    signed_with(issuer, json!({}), claims).await
}

/// The same with more parameters in the header.
///
/// # Panics
/// If the stand-in doesn't answer.
pub async fn signed_with(issuer: &str, header: Value, mut claims: Value) -> String {
    for (name, value) in [("iss", json!(issuer)), ("iat", json!(now())), ("exp", json!(now() + 3600))] {
        let claims = claims.as_object_mut().expect("an object");
        claims.entry(name).or_insert(value);
    }
    let origin = url::Url::parse(issuer).expect("a URL").origin().ascii_serialization();
    let wanted = json!({"header": header, "claims": claims});
    let answer = reqwest::Client::new().post(format!("{origin}/test/sign")).json(&wanted).send().await;
    answer.expect("an answer").text().await.expect("a token")
}

/// An access token of one of the stand-in's people, as authentik makes it.
///
/// # Panics
/// If the stand-in doesn't answer.
pub async fn access_token(issuer: &str, client_id: &str, user: &str) -> String {
    let groups = ACCOUNTS.iter().find(|account| account.name == user).map_or(&[][..], |account| account.groups);
    let claims = json!({
        "aud": client_id, "azp": client_id, "uid": random(), "sub": hex(user.as_bytes()), "preferred_username": user,
        "name": user, "email": format!("{user}@example.com"), "groups": groups,
    });
    signed(issuer, claims).await
}
