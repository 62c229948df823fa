//! Doors that aren't: each test tries one, over a raw socket where a client library would be too polite.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    response::IntoResponse,
};
use berth_oci::Operation;
use berth_tests::{
    api::{Api, Credential, error_of, header_of},
    images::{Image, digest},
    person::Person,
    process::wait_for,
    system::{Setup, System, demonstration_rules},
};
use reqwest::{Client, StatusCode, header, redirect::Policy};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What comes back for some bytes, until the other side closes or is silent.
async fn exchange(system: &System, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(system.authority()).await.unwrap();
    // The other side may have had enough before the end.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

/// A request that a registry got: its method, its target, and the names of its headers.
#[derive(Clone, Debug)]
struct Seen {
    method: http::Method,
    uri: http::Uri,
    headers: Vec<String>,
}

type Requests = Arc<Mutex<Vec<Seen>>>;

/// A registry that writes down what it is asked, in the place of the system's.
async fn writing_down(system: &mut System) -> Requests {
    let requests = Requests::default();
    async fn write_down(State(requests): State<Requests>, request: Request) -> impl IntoResponse {
        let headers = request.headers().keys().map(ToString::to_string).collect();
        let seen = Seen { method: request.method().clone(), uri: request.uri().clone(), headers };
        requests.lock().unwrap().push(seen);
        ([("berth-push-conditions", "create, update")], "{}")
    }
    system.registry.kill();
    let address = system.upstream.trim_start_matches("http://").to_owned();
    let listener = wait_for("the port", async || TcpListener::bind(&address).await.ok()).await;
    let router = axum::Router::new().fallback(write_down).with_state(Arc::clone(&requests));
    tokio::spawn(async move { axum::serve(listener, router).await });
    requests
}

async fn alice(system: &System) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    format!("Basic {}", BASE64_STANDARD.encode(format!("alice:{key}")))
}

/// The requests that the registry got since it was last asked for them, without the proxy's own.
fn taken(requests: &Requests) -> Vec<Seen> {
    let mut taken = std::mem::take(&mut *requests.lock().unwrap());
    taken.retain(|seen| seen.uri.path() != "/v2/");
    taken
}

fn odd_targets() -> Vec<String> {
    let d = format!("sha256:{}", "0".repeat(64));
    let mut targets: Vec<String> = [
        "/v2/a/manifests/1",
        "//v2/a/manifests/1",
        "/v2//a/manifests/1",
        "/v2/./a/manifests/1",
        "/v2/a/../b/manifests/1",
        "/v2/a%2fb/manifests/1",
        "/v2/%61/manifests/1",
        "/v2/a/%6danifests/1",
        "/v2/a/manifests/%31",
        "/v2/a/manifests/1%00",
        "/v2/a/manifests/1%0d%0aX:y",
        "/v2/a/manifests/..%2f..%2fb",
        "/v2/a/manifests/%252e",
        "/v2/a;x=y/manifests/1",
        "/v2/a\\b/manifests/1",
        "/v2/a/manifests/1;x",
        "/v2/a/manifests/1?tag=2",
        "/v2/a/manifests/1?/../../b",
        "/v2/a/manifests/1??x",
        "/v2/a/manifests/1?x=%00",
        "/v2/a/tags/list?n=1&n=2",
        "/v2/a/tags/list?n=-1",
        "/v2/a/tags/list?n=1&last=%2e%2e%2f",
        "/v2/a/tags/list?last=%0d%0aX",
        "/v2/a/tags/list/",
        "/v2/a/blobs/uploads",
        "/v2/a/blobs/uploads/",
        "/v2/a/blobs/uploads/x?_state=a%26digest%3Db",
        "/v2/a/blobs/uploads/../../b",
        "/v2/manifests/manifests/manifests",
        "/v2/a/manifests/manifests/1",
        "/v2/_catalog?n=3",
        "/v2/_catalog/../a/tags/list",
        "/V2/a/manifests/1",
        "/v2/A/manifests/1",
        "http://other.example/v2/a/manifests/1",
        "http://localhost/v2/a/manifests/1",
        "https://u:p@h/v2/b/tags/list",
        "/v2/a/referrers/x",
        "*",
        "/",
        "/v2",
        "/v2/a/manifests/1#x",
        "/v2/a/manifests/1?x#/v2/b",
    ]
    .map(str::to_owned)
    .into();
    for more in ["", "?digest=x", "?mount=x&from=../b", "?from=b", "%20", "?x=y&x=z", "/", "/../1"] {
        targets.push(format!("/v2/a/blobs/{d}{more}"));
        targets.push(format!("/v2/a/manifests/{d}{more}"));
        targets.push(format!("/v2/a/referrers/{d}{more}"));
    }
    for query in ["mount", "digest"] {
        targets.push(format!("/v2/a/blobs/uploads/?{query}={d}&from=b"));
        targets.push(format!("/v2/a/blobs/uploads/?{query}={}&from=b%2f..%2fc", d.replace(':', "%3a")));
        targets.push(format!("/v2/a/blobs/uploads/x?{query}={d}&{query}={d}"));
    }
    targets.push(format!("/v2/{}/tags/list", "a/".repeat(200)));
    targets.push(format!("/v2/{}/tags/list", "a".repeat(300)));
    targets.push(format!("/v2/a/tags/list?last={}", "x".repeat(9000)));
    targets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_forwarded_the_registry_reads_as_what_was_authorized() {
    let mut system = System::start(Setup { unix_socket: false, ..Setup::default() }).await;
    let alice = alice(&system).await;
    let requests = writing_down(&mut system).await;
    let mut forwarded = 0;
    for target in odd_targets() {
        for method in ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "PROPFIND"] {
            let text = format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {alice}\r\nContent-Length: 0\r\n\
                 X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE\r\nX-Original-URL: /v2/b/tags/list\r\n\
                 X-Rewrite-URL: /v2/b/tags/list\r\nConnection: close\r\n\r\n"
            );
            let answer = exchange(&system, text.as_bytes()).await;
            let seen = taken(&requests);
            assert!(seen.len() <= 1, "{method} {target}: {seen:?}");
            let Some(seen) = seen.into_iter().next() else {
                let status = status(&answer);
                assert!(status == 0 || (200..500).contains(&status), "{method} {target}: {answer}");
                continue;
            };
            forwarded += 1;
            // What the client said, read as the proxy reads it.
            let said = Operation::parse(&method.parse().unwrap(), &target.parse().unwrap());
            let said = said.unwrap_or_else(|error| panic!("{method} {target} was forwarded though {error}: {seen:?}"));
            let read = Operation::parse(&seen.method, &seen.uri);
            let expected = match said {
                // The proxy asks for lists of repositories itself.
                Operation::ListRepositories(_) => {
                    assert!(matches!(read, Ok(Operation::ListRepositories(_))), "{read:?}");
                    continue;
                }
                said => said,
            };
            assert_eq!(read.as_ref(), Ok(&expected), "{method} {target}");
            assert_eq!(seen.uri.to_string(), expected.target());
        }
    }
    assert!(forwarded > 40, "{forwarded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_client_says_about_itself_reaches_the_registry() {
    let mut system = System::start(Setup { unix_socket: false, ..Setup::default() }).await;
    let alice = alice(&system).await;
    let requests = writing_down(&mut system).await;
    let spoofed = [
        "Cookie: berth_session=x",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "X-Forwarded-User: root",
        "X_Forwarded_User: root",
        "X-Forwarded-Email: root@x",
        "X-Auth-Request-User: root",
        "Remote-User: root",
        "X-Remote-Group: admin",
        "Forwarded: for=1.2.3.4;host=evil",
        "X-Real-IP: 1.2.3.4",
        "X-Forwarded-Uri: /v2/b/tags/list",
        "X-Original-URI: /v2/b/tags/list",
        "Via: 1.1 x",
        "Upgrade: websocket",
        "Proxy-Authorization: Basic eDp5",
        "X-authentik-username: root",
        "Te: trailers",
        "Referer: https://evil.example/",
        "User-Agent: ELB-HealthChecker/2.0",
        "Origin: null",
    ]
    .join("\r\n");
    let text = format!(
        "GET /v2/a/tags/list HTTP/1.1\r\nHost: evil.example\r\nAuthorization: {alice}\r\n{spoofed}\r\n\
         Connection: close, X-Real-IP\r\nAccept: a/b\r\n\r\n"
    );
    assert_eq!(status(&exchange(&system, text.as_bytes()).await), 200);
    let seen = taken(&requests);
    let names: HashSet<&str> = seen[0].headers.iter().map(String::as_str).collect();
    // The name of the request is ours.
    assert_eq!(names, HashSet::from(["host", "accept", "x-request-id"]), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_is_not_smuggled_in_with_the_first() {
    let mut system = System::start(Setup { unix_socket: false, ..Setup::default() }).await;
    let alice = alice(&system).await;
    let requests = writing_down(&mut system).await;
    let smuggled = "DELETE /v2/smuggled/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    let len = smuggled.len();
    let chunked = format!("0\r\n\r\n{smuggled}");
    for (name, headers, body) in [
        ("CL and TE", format!("Content-Length: {}\r\nTransfer-Encoding: chunked", chunked.len()), chunked.clone()),
        ("TE and CL", format!("Transfer-Encoding: chunked\r\nContent-Length: {}", chunked.len()), chunked.clone()),
        ("two CL", format!("Content-Length: 0\r\nContent-Length: {len}"), smuggled.to_owned()),
        ("a list of CL", format!("Content-Length: 0, {len}"), smuggled.to_owned()),
        ("a signed CL", format!("Content-Length: +0\r\nContent-Length: {len}"), smuggled.to_owned()),
        ("CL in hexadecimal", "Content-Length: 0x0".to_owned(), smuggled.to_owned()),
        ("TE that is none", format!("Transfer-Encoding: xchunked\r\nContent-Length: {len}"), smuggled.to_owned()),
        ("TE twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(), chunked.clone()),
        ("TE by a tab", format!("Transfer-Encoding:\tchunked\r\nContent-Length: {len}"), chunked.clone()),
        ("a space before the colon", format!("Transfer-Encoding : chunked\r\nContent-Length: {len}"), chunked.clone()),
        ("obs-fold", format!("X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: {len}"), smuggled.to_owned()),
        ("a bare LF", format!("X: y\nTransfer-Encoding: chunked\nContent-Length: {}", chunked.len()), chunked.clone()),
        ("a bare CR", format!("X: y\rTransfer-Encoding: chunked\r\nContent-Length: {len}"), smuggled.to_owned()),
        ("a chunk extension", "Transfer-Encoding: chunked".to_owned(), format!("0;x=\n{smuggled}\r\n\r\n")),
        ("a NUL", format!("X: \0\r\nContent-Length: {len}"), smuggled.to_owned()),
    ] {
        let text = format!(
            "PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nAuthorization: {alice}\r\n{headers}\r\n\r\n{body}"
        );
        let answer = exchange(&system, text.as_bytes()).await;
        let seen = taken(&requests);
        assert!(seen.iter().all(|seen| !seen.uri.path().contains("smuggled")), "{name}: {seen:?}");
        assert!(seen.len() <= 1, "{name}: {seen:?}");
        // A pipelined request that isn't smuggled shows no credential, and is told so.
        for answer in answer.split("HTTP/1.1 ").skip(2) {
            assert!(answer.starts_with("401") || answer.starts_with('4'), "{name}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_too_many_or_too_long_or_stand_twice_are_refused() {
    let system = System::start(Setup::default()).await;
    let alice = alice(&system).await;
    let request = |headers: &str| format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n\r\n");
    let authorized = format!("Authorization: {alice}");
    assert_eq!(status(&exchange(&system, request(&authorized).as_bytes()).await), 200);
    let twice = format!("{authorized}\r\nAuthorization: Bearer x");
    assert_eq!(status(&exchange(&system, request(&twice).as_bytes()).await), 400);
    for headers in [
        format!("X: {}", "y".repeat(3 * 1024 * 1024)),
        (0..2000).map(|i| format!("X-{i}: y\r\n")).collect::<String>().trim_end().to_owned(),
        format!("Cookie: {}", "a=b; ".repeat(500_000)),
        format!("{}: y", "X".repeat(2 * 1024 * 1024)),
    ] {
        let answer = exchange(&system, request(&format!("{headers}\r\n{authorized}")).as_bytes()).await;
        assert!(status(&answer) == 0 || (400..500).contains(&status(&answer)), "{}", &answer[..answer.len().min(200)]);
    }
    // Many cookies are no reason to fall over.
    let stuffed = format!("Cookie: {}", (0..500).map(|i| format!("c{i}=x; ")).collect::<String>());
    let answer = exchange(&system, request(&stuffed).as_bytes()).await;
    assert_eq!(status(&answer), 401);
    for nonsense in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let answer = exchange(&system, nonsense).await;
        assert!(status(&answer) == 0 || (400..=505).contains(&status(&answer)), "{answer}");
    }
    assert_eq!(status(&exchange(&system, request(&authorized).as_bytes()).await), 200);
}

#[tokio::test]
async fn every_address_that_is_given_out_begins_with_external_url() {
    let system = System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let http = Client::builder().redirect(Policy::none()).build().unwrap();
    let ask = async |path: &str, credential: Credential| {
        let request = api.with(credential).request(reqwest::Method::GET, path);
        let request = request.header("host", "evil.example").header("x-forwarded-host", "evil.example");
        let answer = request.header("x-forwarded-proto", "https").header("forwarded", "host=evil.example").send().await;
        answer.unwrap()
    };
    let challenge = header_of(&ask("/v2/", Credential::None).await, "www-authenticate");
    assert!(challenge.contains(&format!("realm=\"{}/zot/auth/token\"", system.url)), "{challenge}");
    let login = http.get(format!("{}/zot/auth/login", system.url)).header("host", "evil.example").send().await.unwrap();
    let location = header_of(&login, "location");
    assert!(location.starts_with(&system.provider_origin()) && !location.contains("evil"), "{location}");
    for answer in [login, ask("/", Credential::None).await, ask("/v2/x/tags/list", api.credential().clone()).await] {
        let headers = format!("{:?}", answer.headers());
        assert!(!headers.contains("evil") && !answer.text().await.unwrap().contains("evil"), "{headers}");
    }
    let begun = api.request(reqwest::Method::POST, "/v2/x/blobs/uploads/").header("host", "evil.example");
    let begun = begun.header("content-length", 0).send().await.unwrap();
    assert!(header_of(&begun, "location").starts_with("/v2/x/"));
}

#[tokio::test]
async fn line_breaks_in_parameters_make_no_headers() {
    let system = System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await;
    let alice = alice(&system).await;
    let evil = "%0d%0aX-Injected:%20yes%0d%0a%0d%0a<script>";
    for path in [
        format!("/zot/auth/login?provider=oidc&callback_ui=/{evil}"),
        format!("/zot/auth/login?provider={evil}"),
        format!("/zot/auth/callback/oidc?state={evil}&code={evil}&iss={evil}"),
        format!("/zot/auth/callback/{evil}?error={evil}&error_description={evil}"),
        format!("/zot/auth/token?service={evil}&scope=repository:{evil}:pull"),
        format!("/v2/a/tags/list?last={evil}&n=1"),
        format!("/v2/a/manifests/{evil}"),
        format!("/v2/_catalog?n=1&last={evil}"),
        format!("/v2/a/referrers/sha256:{}?artifactType={evil}", "0".repeat(64)),
        format!("/{evil}"),
    ] {
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {alice}\r\nConnection: close\r\n\
             Cookie: berth_sign_in_x={evil}\r\n\r\n"
        );
        let answer = exchange(&system, text.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(!head.to_lowercase().contains("\nx-injected"), "{path}: {head}");
        assert!(!body.contains("<script>") || !head.contains("text/html"), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_sign_in_is_for_the_browser_that_began_it_and_makes_a_session_of_its_own() {
    let system = System::start(Setup::default()).await;
    // Login CSRF: an attacker's own callback, opened by somebody else's browser.
    let attacker = Client::builder().redirect(Policy::none()).cookie_store(true).build().unwrap();
    let begun = attacker.get(format!("{}/zot/auth/login", system.url)).send().await.unwrap();
    let authorize = header_of(&begun, "location");
    let form = [("username", "bob"), ("password", "bob"), ("next", "/")];
    let flow = format!("{}/if/flow/default-authentication-flow/", system.provider_origin());
    attacker.post(flow).form(&form).send().await.unwrap();
    let callback = header_of(&attacker.get(authorize).send().await.unwrap(), "location");
    let victim = Client::builder().redirect(Policy::none()).cookie_store(true).build().unwrap();
    let answer = victim.get(&callback).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert!(answer.text().await.unwrap().contains("begun in another"));
    // The code is still the attacker's own; but a state that another sign-in of theirs had isn't.
    let other = attacker.get(format!("{}/zot/auth/login", system.url)).send().await.unwrap();
    let other = url::Url::parse(&header_of(&other, "location")).unwrap();
    let state = other.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    let code = url::Url::parse(&callback).unwrap();
    let code = code.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
    let mixed = format!("{}/zot/auth/callback/oidc?code={code}&state={state}", system.url);
    let asked_again = attacker.get(mixed).send().await.unwrap();
    assert!(header_of(&asked_again, "location").starts_with(&system.provider_origin()), "{asked_again:?}");
    let cookies = asked_again.headers().get_all(header::SET_COOKIE);
    assert!(cookies.iter().all(|cookie| !cookie.to_str().unwrap().starts_with("berth_session")), "{cookies:?}");

    // Session fixation: a session id that was there before is another one afterwards.
    let person = Person::new(&system.url);
    let fixed = "A".repeat(43);
    let planted = format!("berth_session={fixed}");
    let form =
        person.http.get(format!("{}/zot/auth/login", system.url)).header("cookie", &planted).send().await.unwrap();
    let next = form.url().query_pairs().find(|(name, _)| name == "next").unwrap().1.into_owned();
    let fields = [("username", "alice"), ("password", "alice"), ("next", &next)];
    person.http.post(form.url().clone()).form(&fields).send().await.unwrap();
    assert!(person.get("/").await.text().await.unwrap().contains("Signed in as alice"));
    let by_fixed = Client::new().get(&system.url).header("cookie", &planted).send().await.unwrap();
    assert!(!by_fixed.text().await.unwrap().contains("Signed in"));
}

#[tokio::test]
async fn another_site_s_page_signs_nobody_out_and_changes_nothing() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    for (path, body) in [
        ("/zot/auth/logout", ""),
        ("/zot/auth/apikey", r#"{"label":"x"}"#),
        ("/keys", "label=x&days=1"),
        ("/sessions/end", "id=x"),
        ("/v2/r/blobs/uploads/", ""),
    ] {
        for (name, value) in [("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site"), ("origin", "null")] {
            let request = alice.http.post(format!("{}{path}", system.url)).header(name, value);
            let request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(body);
            assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN, "{path} {name}: {value}");
        }
    }
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
    // A link changes nothing, whatever its parameters.
    for path in ["/?logout=1", "/zot/auth/logout", "/zot/auth/logout?x", "/v2/?oidc_callback=1", "/oauth2/sign_out"] {
        alice.get(path).await;
    }
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
}

#[tokio::test]
async fn two_providers_are_not_mixed_up() {
    let system = System::start(Setup::default()).await;
    system.configure(|config| {
        let providers = &mut config["http"]["auth"]["openid"]["providers"];
        providers["other"] = providers["oidc"].clone();
    });
    let page = wait_for("two buttons", async || {
        let page = reqwest::get(&system.url).await.ok()?.text().await.ok()?;
        page.contains("provider=other").then_some(page)
    })
    .await;
    assert_eq!(page.matches("SIGN IN WITH OIDC").count(), 2);
    let browser = Client::builder().redirect(Policy::none()).cookie_store(true).build().unwrap();
    let begun = browser.get(format!("{}/zot/auth/login?provider=oidc", system.url)).send().await.unwrap();
    let begun = url::Url::parse(&header_of(&begun, "location")).unwrap();
    let state = begun.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    // The state of the one at the callback of the other, and with the other's `iss` (RFC 9207).
    for callback in [
        format!("{}/zot/auth/callback/other?code=x&state={state}", system.url),
        format!("{}/zot/auth/callback/oidc?code=x&state={state}&iss=https://other.example/", system.url),
    ] {
        let answer = browser.get(callback).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn cookies_that_others_set_are_nobody_s_session() {
    let system = System::start(Setup::default()).await;
    let (alice, bob) = (system.signed_in("alice").await, system.signed_in("bob").await);
    let cookie_of = async |person: &Person| {
        // As the browser has it: the page shows no cookie.
        let request = person.http.get(&system.url).build().unwrap();
        drop(person.http.execute(request).await.unwrap());
    };
    cookie_of(&alice).await;
    cookie_of(&bob).await;
    for cookie in [
        "berth_session=",
        "berth_session=x",
        "berth_session=../../x",
        "berth_session=%00",
        "Berth_Session=x",
        "__Host-berth_session=x",
        "berth_session=\"x\"",
        "berth_session=x; berth_session=y",
        "=x",
        ";;;",
        "berth_session",
    ] {
        let answer = Client::new().get(&system.url).header("cookie", cookie).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{cookie}");
        assert!(answer.text().await.unwrap().contains("SIGN IN WITH OIDC"), "{cookie}");
        let answer = Client::new().get(format!("{}/v2/r/tags/list", system.url)).header("cookie", cookie).send().await;
        assert_eq!(answer.unwrap().status(), StatusCode::UNAUTHORIZED, "{cookie}");
    }
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_says_nothing_or_a_little_is_closed() {
    let system = System::start(Setup::default()).await;
    let began = Instant::now();
    let drip = |first: &'static [u8]| {
        let address = system.authority().to_owned();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(first).await.unwrap();
            let (mut read, mut write) = stream.split();
            let mut every = tokio::time::interval(Duration::from_secs(2));
            let mut buffer = [0; 1024];
            loop {
                tokio::select! {
                    got = read.read(&mut buffer) => match got {
                        Ok(0) | Err(_) => return,
                        Ok(_) => {}
                    },
                    _ = every.tick(), if !first.is_empty() => {
                        if write.write_all(b"x").await.is_err() {
                            return;
                        }
                    }
                }
            }
        })
    };
    let all = [
        drip(b""),
        drip(b"GET /v2/ HTTP/1.1\r\nX: "),
        drip(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nX: "),
        drip(b"POST /zot/auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"),
    ];
    for one in all {
        tokio::time::timeout(Duration::from_secs(110), one).await.expect("closed in time").unwrap();
    }
    assert!(began.elapsed() > Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_more_connections_than_there_is_room_for_room_is_made() {
    let mut system = System::start(Setup { descriptors: Some(240), ..Setup::default() }).await;
    let mut open = Vec::new();
    for _ in 0..150 {
        let mut stream = TcpStream::connect(system.authority()).await.unwrap();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nX-Slow:").await;
        open.push(stream);
    }
    system.proxy.prints("an idle connection was closed to make room").await;
    let answer = Client::new().get(format!("{}/livez", system.url)).send().await.unwrap();
    assert!(answer.status().is_success() && !system.proxy.has_ended());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_may_be_bounded_and_the_proxies_in_front_are_not() {
    for (trusted, is_bounded) in [("10.0.0.1", true), ("127.0.0.1", false)] {
        let sidecar = json!({"connectionsPerAddress": 8, "trustedProxies": [trusted]});
        let system = System::start(Setup { sidecar, ..Setup::default() }).await;
        let mut open = Vec::new();
        for _ in 0..12 {
            let mut stream = TcpStream::connect(system.authority()).await.unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nX-Slow:").await.unwrap();
            open.push(stream);
        }
        let first = open.remove(0);
        let mut byte = [0];
        let mut first = first;
        let closed = tokio::time::timeout(Duration::from_secs(3), first.read(&mut byte)).await;
        assert_eq!(closed.is_ok(), is_bounded, "{trusted}");
    }
}

#[tokio::test]
async fn no_credential_of_any_kind_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    std::fs::write(&path, format!("dave:{}\n", bcrypt::hash("the-password-of-dave", 4).unwrap())).unwrap();
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    let auth = json!({"htpasswd": {"path": path}});
    let system = System::start(Setup { auth, provider, ..Setup::default() }).await;
    system.configure(|config| config["log"]["level"] = json!("trace"));
    let mut system = system;
    system.restart_proxy().await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let jwt = berth_tests::stand_in::access_token(&system.issuer, berth_tests::system::CLIENT_ID, "alice").await;
    let mut secrets =
        vec![key.clone(), jwt.clone(), "the-password-of-dave".to_owned(), "ci-robot-app-password".to_owned()];
    for (user, password) in [
        ("alice", key.as_str()),
        ("x", &jwt),
        ("dave", "the-password-of-dave"),
        ("ci-robot", "ci-robot-app-password"),
        ("mallory", "a-guessed-password"),
        ("mallory", "zak_a-guessed-key"),
    ] {
        let api = Api::basic(&system.url, user, password);
        api.get("/v2/").await;
        let body: Value = api.get("/zot/auth/token?service=x&offline_token=true").await.json().await.unwrap();
        for name in ["token", "refresh_token"] {
            if let Some(secret) = body[name].as_str() {
                secrets.push(secret.to_owned());
                api.with(Credential::Bearer(secret.to_owned())).get("/v2/").await;
            }
        }
    }
    secrets.extend(["a-guessed-password".to_owned(), "zak_a-guessed-key".to_owned()]);
    secrets.push(berth_tests::system::CLIENT_SECRET.to_owned());
    system.proxy.terminate();
    system.registry.terminate();
    let printed = format!("{}{}", system.proxy.printed(), system.registry.printed());
    for secret in secrets {
        assert!(!printed.contains(&secret), "{secret}");
        // Nor a part of one.
        assert!(!printed.contains(&secret[secret.len() / 2..]), "the end of {secret}");
    }
}

#[tokio::test]
async fn every_page_has_the_headers_that_keep_browsers_from_doing_more() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    for path in ["/", "/nothing", "/zot/auth/callback/oidc", "/zot/auth/login?provider=none", "/static/berth.css"] {
        let answer = alice.get(path).await;
        let policy = header_of(&answer, "content-security-policy");
        assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(header_of(&answer, "x-content-type-options"), "nosniff");
        assert_eq!(header_of(&answer, "x-frame-options"), "DENY");
        // A script of ours, and none in the page.
        let page = answer.text().await.unwrap();
        assert_eq!(
            page.matches("<script").count(),
            page.matches("<script src=\"/static/berth.js\" defer></script>").count()
        );
        assert!(!page.contains("style=") && !page.contains("onclick="), "{page}");
    }
}

#[tokio::test]
async fn a_pull_writes_nothing_into_the_database() {
    let system = System::start(Setup::default()).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let image = Image::new(1, 100);
    api.must_push("r", "1", &image).await;
    let written = || {
        let metadata = |name: &str| std::fs::metadata(system.folder.join(name)).and_then(|m| m.modified()).ok();
        (metadata("proxy.db"), metadata("proxy.db-wal"))
    };
    // What was used is written down now and then: that has just been.
    let pushed = written();
    wait_for("uses to be written", async || (written() != pushed).then_some(())).await;
    let before = written();
    for _ in 0..100 {
        assert_eq!(api.get(&format!("/v2/r/blobs/{}", digest(&image.layer))).await.status(), StatusCode::OK);
    }
    assert_eq!(before, written());
    assert_eq!(error_of(api.get("/v2/r/manifests/none").await).await.0, 404);
}

#[tokio::test]
async fn a_form_that_never_comes_is_told_so() {
    let system = System::start(Setup::default()).await;
    let mut stream = TcpStream::connect(system.authority()).await.unwrap();
    let request = "POST /zot/auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_mins(1), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&answer)), 408);
}

#[tokio::test]
async fn strangers_learn_nothing_from_readyz() {
    let mut system = System::start(Setup::default()).await;
    system.registry.kill();
    let answer = reqwest::get(format!("{}/readyz", system.url)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = answer.text().await.unwrap();
    assert_eq!(text, "the registry does not answer; the log says why\n");
    system.proxy.prints(&system.upstream).await;
}

#[tokio::test]
async fn what_the_database_holds_is_its_owner_s_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mut system = System::start(Setup::default()).await;
    let rights = |name: &str| std::fs::metadata(system.folder.join(name)).map(|file| file.permissions().mode() & 0o777);
    for name in ["proxy.db", "proxy.db-wal", "proxy.db-shm", "proxy.key"] {
        assert_eq!(rights(name).unwrap(), 0o600, "{name}");
    }
    // Also one that was made with other rights before.
    let path = system.folder.join("proxy.db");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    system.restart_proxy().await;
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn no_line_of_the_log_moves_a_terminal_or_turns_its_text_around() {
    let system = System::start(Setup::default()).await;
    let provider = "%E2%80%AEtoor%C2%9B31m%1B%5B2J%0A";
    let url = format!("{}/zot/auth/backchannel-logout/{provider}", system.url);
    Client::new().post(url).form(&[("logout_token", "x")]).send().await.unwrap();
    system.proxy.prints("a logout token was refused").await;
    let printed = system.proxy.printed();
    assert!(printed.contains("toor"), "{printed}");
    let invisible = printed.chars().find(|c| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c));
    assert_eq!(invisible, None, "{printed}");
}
