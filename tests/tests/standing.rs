//! Whether somebody is still vouched for, whatever they show: what their provider says when it is asked again, and what
//! becomes of everything that they have when it doesn't vouch for them any more.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use berth_tests::{
    api::{Api, Credential},
    images::Image,
    person::Person,
    process::{free_port, wait_for},
    stand_in::{access_token, signed},
    system::{CLIENT_ID, Setup, System, answers, stand_in},
};
use reqwest::{Client, Identity, Response, StatusCode};
use serde_json::{Value, json};

use crate::authority::Authority;

/// How soon everything must end.
const SOON: Duration = Duration::from_secs(5);

async fn message(answer: Response) -> String {
    let body: Value = answer.json().await.unwrap();
    body["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
}

async fn page(person: &Person) -> String {
    person.get("/").await.text().await.unwrap()
}

/// A system whose people give it refresh tokens.
async fn renewing() -> System {
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    System::start(Setup { provider, ..Setup::default() }).await
}

async fn is_refused(api: &Api) -> Option<()> {
    (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(())
}

/// Makes claims due to be renewed, as if a quarter of an hour were over; whether that can be done here.
fn grow_old(system: &System) -> bool {
    system.sql("UPDATE people SET renew_after = 0, renewed_at = renewed_at - 1000")
}

#[tokio::test]
async fn claims_are_renewed_and_keys_follow_them() {
    let rules = json!({"repositories": {"**": {"policies": [
        {"groups": ["dev", "ops"], "actions": ["read", "create", "update"]},
    ]}}});
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    let system = System::start(Setup { access_control: rules, provider, ..Setup::default() }).await;
    let origin = system.provider_origin();
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    api.must_push("r", "1", &Image::new(1, 100)).await;
    let http = reqwest::Client::new();
    let renewals = async || {
        let asked = reqwest::get(format!("{origin}/test/asked/refresh_token")).await.unwrap();
        asked.text().await.unwrap()
    };

    http.post(format!("{origin}/test/groups/alice/guests")).send().await.unwrap();
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    if !grow_old(&system) {
        return;
    }
    wait_for("the new groups", async || {
        (api.get("/v2/r/manifests/1").await.status() == StatusCode::FORBIDDEN).then_some(())
    })
    .await;
    assert!(alice.get("/").await.text().await.unwrap().contains("Your groups: guests"));
    assert_eq!(renewals().await, "1");
    http.post(format!("{origin}/test/groups/alice/ops")).send().await.unwrap();
    grow_old(&system);
    wait_for("the next groups", async || (api.get("/v2/r/manifests/1").await.status() == StatusCode::OK).then_some(()))
        .await;

    // Gone at authentik: the session ends, and the key waits until they sign in again.
    http.post(format!("{origin}/test/disable/alice")).send().await.unwrap();
    grow_old(&system);
    wait_for("the end", async || (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(())).await;
    assert!(message(api.get("/v2/").await).await.contains("does not know the owner of this credential any more"));
    assert!(alice.get("/").await.text().await.unwrap().contains("Your session has ended"));
}

#[tokio::test]
async fn a_provider_that_is_away_ends_no_session() {
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    let mut system = System::start(Setup { provider, ..Setup::default() }).await;
    let alice = system.signed_in("alice").await;
    system.stand_in.as_mut().unwrap().kill();
    if !grow_old(&system) {
        return;
    }
    system.proxy.prints("claims can't be renewed now; they stay as they are").await;
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
}

#[tokio::test]
async fn keys_follow_their_owner_after_the_owner_has_signed_out() {
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    let system = System::start(Setup { provider, ..Setup::default() }).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let out = alice.http.post(format!("{}/zot/auth/logout", system.url)).header("content-type", "application/json");
    assert_eq!(out.send().await.unwrap().status(), StatusCode::OK);
    assert!(!alice.get("/").await.text().await.unwrap().contains("Signed in as"));
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    let disable = format!("{}/test/disable/alice", system.provider_origin());
    reqwest::Client::new().post(disable).send().await.unwrap();
    if !grow_old(&system) {
        return;
    }
    wait_for("the end of the key", async || (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(()))
        .await;
    assert!(message(api.get("/v2/").await).await.contains("does not know the owner of this credential any more"));
}

#[tokio::test]
async fn a_lost_answer_leaves_keys_good_for_the_grace_period_and_then_suspends_their_owner() {
    let mut system = renewing().await;
    // A refresh token near its end is good once: whoever loses the answer can't ask again.
    system.at_stand_in("rotate/true", json!({})).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    system.at_stand_in("hang/true", json!({})).await;
    if !grow_old(&system) {
        return;
    }
    let asked = format!("{}/test/asked/refresh_token", system.provider_origin());
    wait_for("the question", async || (reqwest::get(&asked).await.unwrap().text().await.unwrap() == "1").then_some(()))
        .await;
    // The provider hangs, and the proxy is killed in between; a minute later it asks again.
    system.proxy.kill();
    system.at_stand_in("hang/false", json!({})).await;
    system.sql("UPDATE people SET renewing_until = 1, renew_after = 0");
    system.restart_proxy().await;
    system.proxy.prints("an answer of the identity provider was lost").await;
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    let shown = page(&alice).await;
    assert!(shown.contains("Signed in as alice") && shown.contains("your identity provider can't be asked about you"));

    system.sql("UPDATE people SET unconfirmed_since = unconfirmed_since - 90000");
    wait_for("the end of the grace period", async || is_refused(&api).await).await;
    assert!(message(api.get("/v2/").await).await.contains("for too long, the identity provider could not be asked"));
    system.proxy.prints("suspended: for too long, the identity provider could not be asked").await;
    assert!(page(&alice).await.contains("Your session has ended"));
    // Signed in again, the key is as good as before.
    let again = system.signed_in("alice").await;
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    assert!(!page(&again).await.contains("can't be asked about you"));
}

#[tokio::test]
async fn a_provider_that_renews_nobody_suspends_nobody_and_is_told_what_to_allow() {
    let system = renewing().await;
    let (alice, bob) = (system.signed_in("alice").await, system.signed_in("bob").await);
    let keys = [("alice", alice.make_key("a").await.0), ("bob", bob.make_key("b").await.0)];
    let [alices, bobs] = keys.map(|(user, key)| Api::basic(&system.url, user, &key));
    system.at_stand_in("grants", json!(["authorization_code", "client_credentials"])).await;
    if !grow_old(&system) {
        return;
    }
    let ready = async || reqwest::get(format!("{}/readyz", system.url)).await.unwrap();
    wait_for("the warning", async || ready().await.text().await.unwrap().contains("refresh_token").then_some(())).await;
    assert_eq!(ready().await.status(), StatusCode::OK);
    system.proxy.prints("allow the grant type refresh_token at the provider").await;
    for (api, person) in [(&alices, &alice), (&bobs, &bob)] {
        assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
        assert!(page(person).await.contains("Signed in as"));
    }
    // However long that goes on.
    let asked = async || {
        let asked = reqwest::get(format!("{}/test/asked/refresh_token", system.provider_origin())).await.unwrap();
        asked.text().await.unwrap().parse::<u64>().unwrap()
    };
    let before = asked().await;
    let days_ago = "unconfirmed_since = CASE WHEN unconfirmed_since > 0 THEN 1 ELSE 0 END";
    system.sql(&format!("UPDATE people SET renew_after = 0, renewed_at = renewed_at - 1000, {days_ago}"));
    wait_for("both to be asked about again", async || (asked().await >= before + 2).then_some(())).await;
    for api in [&alices, &bobs] {
        assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    }
    let metrics = alices.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("berth_renewals_refused{provider=\"oidc\"} 1"), "{metrics}");

    system.at_stand_in("grants", json!(["authorization_code", "refresh_token", "client_credentials"])).await;
    grow_old(&system);
    wait_for("the mend", async || (ready().await.text().await.unwrap() == "ok\n").then_some(())).await;
    // Now who is refused is gone, and alone.
    system.at_stand_in("disable/alice", json!({})).await;
    grow_old(&system);
    wait_for("the end of alice", async || is_refused(&alices).await).await;
    assert_eq!(bobs.get("/v2/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_provider_whose_front_is_away_loses_nobody_s_answer() {
    let system = renewing().await;
    // As behind a proxy that answers for a provider that isn't there.
    system.at_stand_in("rotate/true", json!({})).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    for status in [502, 503, 429] {
        system.at_stand_in(&format!("busy/{status}"), json!({})).await;
        if !grow_old(&system) {
            return;
        }
        system.proxy.prints(&format!("it answers {status}")).await;
    }
    system.at_stand_in("busy/200", json!({})).await;
    assert!(!page(&alice).await.contains("can't be asked about you"));
    // Who is gone is gone at once, and not after the grace period.
    system.at_stand_in("disable/alice", json!({})).await;
    grow_old(&system);
    wait_for("the end", async || is_refused(&api).await).await;
    assert!(message(api.get("/v2/").await).await.contains("does not know the owner of this credential any more"));
}

#[tokio::test]
async fn who_is_called_otherwise_now_signs_in_again() {
    let system = renewing().await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    system.at_stand_in("name/alice/alicia", json!({})).await;
    if !grow_old(&system) {
        return;
    }
    wait_for("the end", async || is_refused(&api).await).await;
    system.proxy.prints("the identity provider calls them by another name now").await;
    let again = Person::new(&system.url);
    assert!(again.sign_in("alice", "alice").await.text().await.unwrap().contains("Signed in as alicia"));
    assert_eq!(Api::basic(&system.url, "alicia", &key).get("/v2/").await.status(), StatusCode::OK);
}

/// Everything that opens the registry, in one system.
struct Everything {
    system: System,
    alice: Person,
    key_id: String,
    /// By name.
    credentials: Vec<(&'static str, Api)>,
    certificate: Client,
    refresh_token: String,
    _ci: berth_tests::process::Process,
    files: tempfile::TempDir,
}

impl Everything {
    async fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let (server, clients) = (Authority::new(), Authority::new());
        let tls = Some(server.write(files.path()));
        fs::write(files.path().join("clients.pem"), &clients.pem).unwrap();
        let passwords = files.path().join("htpasswd");
        fs::write(&passwords, format!("dave:{}\n", bcrypt::hash("dave-s", 5).unwrap())).unwrap();
        let port = free_port();
        let ci = stand_in(files.path(), port, "http://localhost");
        let ci_issuer = format!("http://localhost:{port}/application/o/berth/");
        answers(&format!("{ci_issuer}.well-known/openid-configuration")).await;
        let rule = json!({"issuer": ci_issuer, "audiences": ["r"], "claimMapping": {"username": "'job'"}});
        let auth = json!({"bearer": {"oidc": [rule]}, "htpasswd": {"path": passwords}});
        let client_authorities = Some(files.path().join("clients.pem"));
        let system = System::start(Setup { tls, client_authorities, auth, ..Setup::default() }).await;

        let alice = system.signed_in("alice").await;
        let (key, key_id) = alice.make_key("a").await;
        let url = &system.url;
        let mut credentials = Vec::new();
        let jwt = access_token(&system.issuer, CLIENT_ID, "alice").await;
        let job = signed(&ci_issuer, json!({"aud": "r", "sub": "job"})).await;
        for (basic, of_it, api) in [
            ("key", "token of the key", Api::basic(url, "alice", &key)),
            ("app password", "token of the app password", Api::basic(url, "ci-robot", "ci-robot-app-password")),
            ("JWT", "token of the JWT", Api::new(url, Credential::Bearer(jwt))),
            ("password", "token of the password", Api::basic(url, "dave", "dave-s")),
            ("job", "token of the job", Api::new(url, Credential::Bearer(job.clone()))),
        ] {
            credentials.push((of_it, api.with_token(&[]).await));
            credentials.push((basic, api));
        }
        let job = Api::new(url, Credential::Bearer(job)).get("/zot/auth/token?service=x&offline_token=true").await;
        let refresh_token = job.json::<Value>().await.unwrap()["refresh_token"].as_str().unwrap().to_owned();
        let nobody = Api::new(url, Credential::None);
        let fields = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.as_str())];
        let answer = nobody.request(reqwest::Method::POST, "/zot/auth/token").form(&fields).send().await.unwrap();
        let token = answer.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
        credentials.push(("token of the refresh token", nobody.with(Credential::Bearer(token))));
        let (pem, private) = clients.certify(&[], "carol", None);
        let identity = Identity::from_pem(format!("{pem}{private}").as_bytes()).unwrap();
        let certificate = Client::builder().tls_danger_accept_invalid_certs(true).identity(identity).build().unwrap();
        let answer = certificate.get(format!("{url}/zot/auth/token?service=x")).send().await.unwrap();
        let token = answer.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
        credentials.push(("token of the certificate", nobody.with(Credential::Bearer(token))));
        let this = Self { system, alice, key_id, credentials, certificate, refresh_token, _ci: ci, files };
        assert_eq!(this.open().await, this.names(), "{}", this.system.proxy.printed());
        this
    }

    fn names(&self) -> Vec<&'static str> {
        let credentials = self.credentials.iter().map(|(name, _)| *name);
        let mut names: Vec<_> = credentials.chain(["session", "certificate", "refresh token"]).collect();
        names.sort_unstable();
        names
    }

    /// The credentials that open something: `/v2/`, the token service, a page, or a new key.
    async fn open(&self) -> Vec<&'static str> {
        let ok = |answer: &Response| answer.status().is_success();
        let mut open = Vec::new();
        for (name, api) in &self.credentials {
            let answer = api.get("/v2/").await;
            let is_token = name.starts_with("token");
            if ok(&answer) || !is_token && ok(&api.ask_token(&[]).await) {
                open.push(*name);
            }
        }
        let keys = self.alice.get("/zot/auth/apikey").await;
        let new_key = self.alice.http.post(format!("{}/zot/auth/apikey", self.system.url)).json(&json!({"label": "x"}));
        let new_key = new_key.send().await.unwrap();
        let v2 = self.alice.get("/v2/").await;
        if page(&self.alice).await.contains("Signed in as") || ok(&keys) || ok(&new_key) || ok(&v2) {
            open.push("session");
        }
        let get = async |path: &str| self.certificate.get(format!("{}{path}", self.system.url)).send().await;
        if get("/v2/").await.is_ok_and(|answer| ok(&answer))
            || get("/zot/auth/token").await.is_ok_and(|answer| ok(&answer))
        {
            open.push("certificate");
        }
        let fields = [("grant_type", "refresh_token"), ("refresh_token", self.refresh_token.as_str())];
        let nobody = Api::new(&self.system.url, Credential::None);
        let refreshed = nobody.request(reqwest::Method::POST, "/zot/auth/token").form(&fields).send().await.unwrap();
        if ok(&refreshed) {
            open.push("refresh token");
        }
        open.sort_unstable();
        open
    }

    /// Waits until these open nothing any more, which must be soon; the others go on.
    async fn only_these_end(&self, ended: &[&str]) {
        let began = Instant::now();
        let left: Vec<_> = self.names().into_iter().filter(|name| !ended.contains(name)).collect();
        loop {
            let took = began.elapsed();
            let open = self.open().await;
            if open == left {
                return;
            }
            assert!(took < SOON, "after {took:?}, {open:?} are open, and {left:?} should be");
        }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.files.path()).join(name)
    }

    /// Has the configuration read again, and waits until it was.
    async fn reconfigure(&self, change: impl FnOnce(&mut Value)) {
        let reads = || self.system.proxy.printed().matches("the configuration was read again").count();
        let before = reads();
        self.system.configure(change);
        wait_for("the new configuration", async || (reads() > before).then_some(())).await;
    }
}

/// What a provider that signs people in vouches for.
const OF_THE_PROVIDER: [&str; 7] =
    ["session", "key", "token of the key", "app password", "token of the app password", "JWT", "token of the JWT"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_vouched_is_withdrawn_and_everything_of_theirs_ends() {
    let all = Everything::new().await;
    // Another provider takes the place of the one that has vouched for them.
    all.reconfigure(|config| {
        let mut providers = config["http"]["auth"]["openid"]["providers"].take();
        providers["oidc"]["issuer"] = json!("http://localhost:1/application/o/another/");
        config["http"]["auth"]["openid"]["providers"] = json!({"another": providers["oidc"].take()});
    })
    .await;
    all.only_these_end(&OF_THE_PROVIDER).await;
    let mut ended = OF_THE_PROVIDER.to_vec();
    all.reconfigure(|config| drop(config["http"]["auth"].as_object_mut().unwrap().remove("htpasswd"))).await;
    ended.extend(["password", "token of the password"]);
    all.only_these_end(&ended).await;
    all.reconfigure(|config| drop(config["http"]["auth"].as_object_mut().unwrap().remove("bearer"))).await;
    ended.extend(["job", "token of the job", "refresh token", "token of the refresh token"]);
    all.only_these_end(&ended).await;
    // Also on the connection that was made with it.
    all.reconfigure(|config| drop(config["http"]["tls"].as_object_mut().unwrap().remove("cacert"))).await;
    ended.extend(["certificate", "token of the certificate"]);
    all.only_these_end(&ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_credential_ends_with_what_was_made_of_it_and_nothing_else() {
    let all = Everything::new().await;
    all.alice.revoke_key(&all.key_id).await;
    let mut ended = vec!["key", "token of the key"];
    all.only_these_end(&ended).await;
    let nobody = Api::new(&all.system.url, Credential::None);
    let revoked = nobody.request(reqwest::Method::POST, "/zot/auth/revoke").form(&[("token", &all.refresh_token)]);
    assert_eq!(revoked.send().await.unwrap().status(), StatusCode::OK);
    ended.extend(["refresh token", "token of the refresh token"]);
    all.only_these_end(&ended).await;
    all.reconfigure(|_| {
        fs::write(all.file("htpasswd"), format!("dave:{}\n", bcrypt::hash("new", 5).unwrap())).unwrap()
    })
    .await;
    ended.extend(["password", "token of the password"]);
    all.only_these_end(&ended).await;
    let (id, other) = (all.system.signed_in("alice").await, page(&all.alice).await);
    drop(other);
    // From another browser.
    let sessions = id.get("/sessions").await.text().await.unwrap();
    let hash = sessions.split("name=\"id\" value=\"").skip(1).filter_map(|rest| rest.split('"').next()).last().unwrap();
    let end = id.http.post(format!("{}/sessions/end", all.system.url)).form(&[("id", hash)]);
    let end = end.header("origin", &all.system.url).send().await.unwrap();
    assert!(end.status().is_success(), "{}", end.status());
    ended.push("session");
    all.only_these_end(&ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_suspended_has_nothing_that_opens_anything() {
    let all = Everything::new().await;
    let suspended = "suspended_at = strftime('%s', 'now') + 1, suspended_why = 'refused'";
    if !all.system.sql(&format!("UPDATE people SET {suspended} WHERE name = 'alice'")) {
        return;
    }
    all.only_these_end(&["session", "key", "token of the key", "JWT", "token of the JWT"]).await;
    // Who never came with a browser can be suspended too.
    all.system.sql(&format!("UPDATE people SET {suspended} WHERE name = 'ci-robot'"));
    all.only_these_end(&OF_THE_PROVIDER).await;
}
