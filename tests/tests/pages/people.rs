//! What whom `adminPolicy` names sees of others and may end; and the form of the sign-in page for passwords.

use std::fs;

use berth_tests::{
    api::Api,
    person::Person,
    process::{free_port, wait_for},
    stand_in::signed,
    system::{Setup, System, answers, demonstration_rules, stand_in},
};
use futures_util::future::join_all;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

async fn text(answer: Response) -> String {
    answer.text().await.unwrap()
}

/// The value of a hidden field in the form that has another.
fn hidden(page: &str, name: &str) -> Vec<String> {
    let mark = format!("name=\"{name}\" value=\"");
    page.split(&mark).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn who_looks_after_the_registry_sees_everybody_s_and_ends_it_and_others_see_nothing() {
    let mut access_control = demonstration_rules();
    access_control["adminPolicy"] = json!({"users": ["alice"], "actions": ["read"]});
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let _ci = stand_in(folder.path(), port, "http://localhost");
    let ci = format!("http://localhost:{port}/application/o/berth/");
    answers(&format!("{ci}.well-known/openid-configuration")).await;
    let bearer = json!({"oidc": [{"issuer": ci, "audiences": ["ci"], "claimMapping": {
        "username": "'job-' + claims.repository", "validations": [{"expression": "claims.repository == 'app'"}]}}]});
    let system = System::start(Setup { access_control, auth: json!({"bearer": bearer}), ..Setup::default() }).await;
    let alice = system.signed_in("alice").await;
    let bob = system.signed_in("bob").await;
    let (key, _) = bob.make_key("bob's laptop").await;
    let by_key = Api::basic(&system.url, "bob", &key);
    assert_eq!(by_key.get("/v2/").await.status(), StatusCode::OK);
    // To others there is no such page, and no such form.
    let nobody = Person::new(&system.url);
    for path in ["/people", "/people/one?provider=oidc&subject=x", "/people/jobs"] {
        assert_eq!(bob.get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
        assert!(text(nobody.get(path).await).await.contains("Sign in"), "{path}");
    }
    assert!(!text(bob.get("/access?repository=r&user=alice").await).await.contains("alice"));
    assert!(!text(bob.get("/repositories").await).await.contains("/people"));

    let people = text(alice.get("/people").await).await;
    assert!(people.contains("bob") && people.contains("1 session · 1 key"), "{people}");
    assert!(!text(alice.get("/people?q=BO").await).await.contains("/people/one?provider=oidc&amp;subject=2bd806"));
    for hostile in ["%25", "_", "%5C", "'%20OR%201=1", "<script>"] {
        let found = text(alice.get(&format!("/people?q={hostile}")).await).await;
        assert!(found.contains("Nobody has that") && !found.contains("<script>"), "{hostile}: {found}");
    }
    let address = people.split("href=\"").find(|rest| rest.contains(">bob<")).unwrap().split('"').next().unwrap();
    let address = address.replace("&amp;", "&");
    let bobs = text(alice.get(&address).await).await;
    assert!(bobs.contains("bob&#39;s laptop") || bobs.contains("bob's laptop"), "{bobs}");
    let (kinds, objects) = (hidden(&bobs, "kind"), hidden(&bobs, "object"));
    let (provider, subject) = (hidden(&bobs, "provider").remove(0), hidden(&bobs, "subject").remove(0));
    let end = async |person: &Person, kind: &str, object: &str, site: &str| {
        let fields = [("kind", kind), ("object", object), ("provider", &provider), ("subject", &subject)];
        let form = person.http.post(format!("{}/people/end", system.url)).header("sec-fetch-site", site);
        form.form(&fields).send().await.unwrap().status()
    };
    for (kind, object) in kinds.iter().zip(&objects) {
        assert_eq!(end(&bob, kind, object, "same-origin").await, StatusCode::NOT_FOUND);
        assert_eq!(end(&alice, kind, object, "cross-site").await, StatusCode::FORBIDDEN);
    }
    assert_eq!(by_key.get("/v2/").await.status(), StatusCode::OK);
    for (kind, object) in kinds.iter().zip(&objects) {
        assert_eq!(end(&alice, kind, object, "same-origin").await, StatusCode::OK);
    }
    assert_eq!(by_key.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    assert!(text(bob.get("/keys").await).await.contains("SIGN IN WITH"));
    // A key that was used says when, and from where.
    let (key, _) = alice.make_key("mine").await;
    Api::basic(&system.url, "alice", &key).get("/v2/").await;
    wait_for("the use to be written", async || {
        let keys = text(alice.get("/keys").await).await;
        keys.contains("</time> from 127.0.0.1").then_some(())
    })
    .await;
    // What the rules say of others, also of who has never been here.
    let access = text(alice.get("/access?repository=shared/x&user=bob").await).await;
    assert!(access.contains("Access of bob") && access.contains("What bob may do"), "{access}");
    assert_eq!((access.matches(">yes<").count(), access.matches(">no<").count()), (1, 3), "{access}");
    assert!(text(alice.get("/access?repository=r&user=carol&groups=dev,ops").await).await.contains("ops"));
    // Refresh tokens of jobs.
    let job = signed(&ci, json!({"aud": "ci", "sub": "repo:team/app", "repository": "app"})).await;
    let job = Api::basic(&system.url, "x", &job);
    let given: Value = job.get("/zot/auth/token?service=x&offline_token=true").await.json().await.unwrap();
    let refresh = given["refresh_token"].as_str().unwrap_or_else(|| panic!("{given}")).to_owned();
    let jobs = text(alice.get("/people/jobs").await).await;
    assert!(jobs.contains("repo:team/app"), "{jobs}");
    assert_eq!(end(&alice, "refresh_token", &hidden(&jobs, "object")[0], "same-origin").await, StatusCode::OK);
    let fields = [("grant_type", "refresh_token"), ("refresh_token", &refresh), ("service", "x"), ("client_id", "x")];
    let again = nobody.http.post(format!("{}/zot/auth/token", system.url)).form(&fields).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);
    system.proxy.prints("ended by an admin").await;
}

#[tokio::test]
async fn a_password_of_the_file_signs_in_on_the_page_until_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    let write = |password: &str| {
        let line = |user: &str| format!("{user}:{}\n", bcrypt::hash(password, 5).unwrap());
        fs::write(&path, [line("dave"), line("alice")].concat()).unwrap();
    };
    write("one");
    let auth = json!({"htpasswd": {"path": path}});
    let mut access_control = demonstration_rules();
    access_control["groups"] = json!({"dev": {"users": ["dave"]}});
    let system = System::start(Setup { auth, access_control, ..Setup::default() }).await;
    let sign_in = async |person: &Person, name: &str, password: &str, back: &str| {
        let fields = [("name", name), ("password", password), ("callback_ui", back)];
        let form = person.http.post(format!("{}/zot/auth/login", system.url)).header("sec-fetch-site", "same-origin");
        form.form(&fields).send().await.unwrap()
    };
    let dave = Person::new(&system.url);
    let page = text(dave.get("/image/public/x:1?raw=1").await).await;
    assert!(text(dave.get("/keys").await).await.contains("name=\"password\" type=\"password\""), "{page}");
    // Wrong: back on the page, with the reason and no word on who exists.
    let wrong = sign_in(&dave, "dave", "two", "/keys").await;
    assert_eq!(wrong.status(), StatusCode::FORBIDDEN);
    let wrong = text(wrong).await;
    assert!(wrong.contains("the name or the password is wrong") && wrong.contains("Request "), "{wrong}");
    assert!(wrong.contains("SIGN IN WITH") && wrong.contains("value=\"/keys\""), "{wrong}");
    let without_ids = |text: &str| text.split("Request ").next().unwrap().to_owned();
    let stranger = text(sign_in(&dave, "nobody", "two", "/keys").await).await;
    assert_eq!(without_ids(&stranger), without_ids(&wrong));
    // Nowhere else, and not from elsewhere.
    let elsewhere = sign_in(&dave, "dave", "one", "https://evil.example/").await;
    assert_eq!(elsewhere.status(), StatusCode::BAD_REQUEST);
    let fields = [("name", "dave"), ("password", "one")];
    let other_site = dave.http.post(format!("{}/zot/auth/login", system.url)).header("sec-fetch-site", "cross-site");
    assert_eq!(other_site.form(&fields).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    assert!(text(dave.get("/keys").await).await.contains("type=\"password\""));
    // Right.
    let right = sign_in(&dave, "dave", "one", "/keys").await;
    assert_eq!((right.status(), right.url().path().to_owned()), (StatusCode::OK, "/keys".to_owned()));
    let keys = text(right).await;
    assert!(keys.contains("Signed in as dave") && keys.contains("Your groups: dev"), "{keys}");
    let (key, _) = dave.make_key("laptop").await;
    let by_key = Api::basic(&system.url, "dave", &key);
    assert_eq!(by_key.get("/v2/").await.status(), StatusCode::OK);
    assert!(text(dave.get("/sessions").await).await.contains("this one"));
    // An API key isn't typed into a page.
    let other = Person::new(&system.url);
    assert_eq!(sign_in(&other, "dave", &key, "/").await.status(), StatusCode::FORBIDDEN);
    // One name is one person's: whoever came first.
    system.signed_in("alice").await;
    let taken = sign_in(&other, "alice", "one", "/").await;
    assert_eq!(taken.status(), StatusCode::FORBIDDEN);
    assert!(text(taken).await.contains("people CONFIG release"));
    // A new password ends what the old one has opened, and a new sign-in brings nothing of it back.
    let session_of_before = Person::new(&system.url);
    assert_eq!(sign_in(&session_of_before, "dave", "one", "/").await.status(), StatusCode::OK);
    let minted = by_key.with_token(&[]).await;
    write("two");
    wait_for("the end of the session", async || {
        text(dave.get("/keys").await).await.contains("type=\"password\"").then_some(())
    })
    .await;
    wait_for("the end of the key", async || {
        (by_key.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(sign_in(&dave, "dave", "two", "/").await.status(), StatusCode::OK);
    for of_before in [&by_key, &minted] {
        assert_eq!(of_before.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    }
    assert!(text(session_of_before.get("/keys").await).await.contains("type=\"password\""));
    dave.http.post(format!("{}/zot/auth/logout", system.url)).send().await.unwrap();
    assert!(text(dave.get("/keys").await).await.contains("type=\"password\""));
    // Guessing is slowed down: each wrong one takes its time, and after enough of them nobody looks.
    let mut answers: Vec<Response> = Vec::new();
    while !answers.iter().any(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS) {
        assert!(answers.len() < 200, "nobody slows down");
        answers.extend(join_all((0..16).map(|_| sign_in(&other, "dave", "guess", "/"))).await);
    }
    let answer = answers.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    assert!(text(answer).await.contains("too many failed sign-ins"));
}
