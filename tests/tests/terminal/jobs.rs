//! Jobs and pods that are somebody by themselves: the helper shows the token that their platform signs.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::{Query, State},
    http::HeaderMap,
    routing::get,
};
use berth_tests::{
    api::{Api, Credential},
    images::Image,
    process::{Process, free_port, wait_for},
    stand_in::signed,
    system::{Setup, System, answers, binary, stand_in},
    tools::{self, run},
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Machine, asked};

/// Where a CI service or a cluster signs tokens, and a registry that takes them.
struct Platform {
    system: System,
    issuer: String,
    folder: tempfile::TempDir,
    _service: Process,
}

impl Platform {
    async fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let service = stand_in(folder.path(), port, "http://localhost");
        let issuer = format!("http://localhost:{port}/application/o/berth/");
        answers(&format!("{issuer}.well-known/openid-configuration")).await;
        let registry = free_port();
        let rule = json!({"issuer": issuer, "audiences": [format!("localhost:{registry}")], "claimMapping": {
            "username": "'job:' + claims.repository", "groups": "['ci', 'k8s:' + claims.namespace]"}});
        let access_control = json!({"repositories": {
            "team/**": {"policies": [{"groups": ["ci"], "actions": ["read", "create", "update"]}]},
            "public/**": {"anonymousPolicy": ["read"]}}});
        let auth = json!({"bearer": {"oidc": [rule]}});
        let setup = Setup { auth, access_control, ..Setup::default() };
        let own = folder.path().join("system");
        std::fs::create_dir(&own).unwrap();
        let system = System::start_in(&own, registry, setup).await;
        Self { system, issuer, folder, _service: service }
    }

    async fn token(&self, audience: &str) -> String {
        let claims = json!({"aud": audience, "sub": "job", "repository": "team/app", "namespace": "shop"});
        signed(&self.issuer, claims).await
    }
}

/// What GitHub gives a job: an address and a token for it, which gives a token for an audience.
async fn actions(token: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    type Shared = (String, Arc<Mutex<Vec<String>>>);
    async fn give(State((token, asked)): State<Shared>, Query(query): Query<Value>, headers: HeaderMap) -> String {
        assert_eq!(headers["authorization"], "Bearer of-the-job");
        asked.lock().unwrap().push(query["audience"].as_str().unwrap().to_owned());
        json!({"value": token}).to_string()
    }
    let router = Router::new().route("/token", get(give)).with_state((token, Arc::clone(&asked)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token?api-version=2.0", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_s_own_identity_is_found_wherever_its_platform_puts_it_and_shown_to_nobody_else() {
    let platform = Platform::start().await;
    let host = platform.system.authority();
    let token = platform.token(host).await;
    let file = platform.folder.path().join("token");
    std::fs::write(&file, &token).unwrap();
    let (url, asked_for) = actions(token.clone()).await;
    let machine = Machine::new();
    let places: [(&str, Vec<(&str, &str)>); 4] = [
        ("a variable", vec![("BERTH_ID_TOKEN", &token)]),
        ("another variable", vec![("MINE", &token), ("BERTH_ID_TOKEN_VARIABLE", "MINE")]),
        ("a file", vec![("BERTH_ID_TOKEN_FILE", file.to_str().unwrap())]),
        ("GitHub", vec![("ACTIONS_ID_TOKEN_REQUEST_URL", &url), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-the-job")]),
    ];
    for (place, variables) in &places {
        let given = asked(machine.helper().arg("get").envs(variables.iter().copied()), host);
        assert!(given.success, "{place}: {}", given.printed);
        let given: Value = serde_json::from_str(&given.printed).unwrap();
        let secret = given["Secret"].as_str().unwrap();
        // A colon in a name would end it (RFC 7617).
        assert!(secret.starts_with("bls_") && given["Username"] == "token", "{place}");
        let api = Api::basic(&platform.system.url, "token", secret);
        let tag = place.replace(' ', "-");
        api.must_push("team/app", &tag, &Image::new(1, 1000)).await;
        assert_eq!(api.start_upload_status("elsewhere/app").await, StatusCode::FORBIDDEN);
        // It makes no refresh token, which would outlive it.
        let form =
            [("grant_type", "password"), ("username", "token"), ("password", secret), ("access_type", "offline")];
        let minted = reqwest::Client::new().post(format!("{}/zot/auth/token", platform.system.url)).form(&form);
        let minted: Value = minted.send().await.unwrap().json().await.unwrap();
        assert!(minted["token"].is_string() && minted["refresh_token"].is_null(), "{minted}");
    }
    assert_eq!(asked_for.lock().unwrap().as_slice(), [host]);
    // A token for somebody else is shown to nobody, and a job without one is nobody.
    let strangers = platform.token("registry.example").await;
    let other = asked(machine.helper().arg("get").env("BERTH_ID_TOKEN", &strangers), host);
    assert_eq!((other.success, other.printed.as_str()), (false, "credentials not found in native keychain"));
    // A token of ours, which goes less far, makes no secret that goes further.
    let exchange = async |token: &str, scope: &str| {
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("scope", scope),
        ];
        let asked = reqwest::Client::new().post(format!("{}/zot/auth/token", platform.system.url)).form(&form);
        let answer = asked.send().await.unwrap();
        (answer.status(), answer.json::<Value>().await.unwrap())
    };
    let narrow = Api::basic(&platform.system.url, "job", &token).with_token(&["repository:team/app:pull"]).await;
    let Credential::Bearer(narrow) = narrow.credential() else { panic!("no token") };
    assert_eq!(exchange(narrow, "").await.0, StatusCode::BAD_REQUEST);
    // A repository that is called as an action is a repository.
    for name in ["push", "read", "delete"] {
        let (_, given) = exchange(&token, &format!("repository:{name}:pull")).await;
        let secret = Api::basic(&platform.system.url, "job", given["access_token"].as_str().unwrap());
        assert_eq!(secret.start_upload_status("team/app").await, StatusCode::FORBIDDEN, "{given}");
        assert_eq!(secret.get("/v2/team/app/tags/list").await.status(), StatusCode::FORBIDDEN, "{given}");
    }
    // What a rule refuses is told with the claim that missed.
    let wrong = signed(&platform.issuer, json!({"aud": host, "sub": "job", "repository": "team/app"})).await;
    let refused = asked(machine.helper().arg("get").env("BERTH_ID_TOKEN", &wrong), host);
    assert!(!refused.success && refused.printed.contains("no rule takes this token"), "{}", refused.printed);
    // All that a pipeline configures is the helper's name: for one registry, or, with most clients, for all.
    Image::new(3, 1000).write_layout(&platform.folder.path().join("layout"), "1");
    let helpers = json!({"credHelpers": {host: "berth"}});
    for (client, config, script) in [
        ("skopeo", &helpers, "skopeo copy --dest-tls-verify=false oci:layout:1 docker://$TO"),
        ("crane", &json!({"credsStore": "berth"}), "crane push --insecure layout $TO"),
    ] {
        if tools::find(client).is_none() {
            continue;
        }
        std::fs::create_dir_all(machine.home.path().join(".docker")).unwrap();
        std::fs::write(machine.home.path().join(".docker/config.json"), config.to_string()).unwrap();
        let mut command = machine.command("sh");
        command
            .args(["-ec", script])
            .current_dir(platform.folder.path())
            .env("TO", format!("{host}/team/by-{client}:1"));
        let copied = run(command.envs(places[3].1.iter().copied()));
        assert!(copied.success, "{client}: {}", copied.printed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_gets_a_secret_of_the_pod_for_one_repository_and_containerd_pulls_with_it() {
    let platform = Platform::start().await;
    let (host, machine) = (platform.system.authority(), Machine::new());
    let token = platform.token(host).await;
    let job = Api::basic(&platform.system.url, "job", &token);
    for repository in ["team/shop/api", "team/other"] {
        job.must_push(repository, "1", &Image::new(1, 1000)).await;
    }
    // The same program, under the name that the kubelet is told.
    let provider = platform.folder.path().join("berth-credential-provider");
    std::fs::copy(binary("docker-credential-berth"), &provider).unwrap();
    let ask = |image: &str, token: Option<&str>| {
        let request = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
            "image": image, "serviceAccountToken": token, "serviceAccountAnnotations": {}});
        asked(&mut machine.command(&provider), &request.to_string())
    };
    let image = format!("{host}/team/shop/api:1");
    let given = ask(&image, Some(&token));
    assert!(given.success, "{}", given.printed);
    let given: Value = serde_json::from_str(&given.printed).unwrap();
    let expected = ("credentialprovider.kubelet.k8s.io/v1", "CredentialProviderResponse", "Image");
    let text = |name: &str| given[name].as_str().unwrap();
    assert_eq!((text("apiVersion"), text("kind"), text("cacheKeyType")), expected);
    let auth = &given["auth"][format!("{host}/team/shop/api")];
    let (user, secret) = (auth["username"].as_str().unwrap(), auth["password"].as_str().unwrap());
    // Good for that repository, to pull, and nothing else that the pod may.
    let api = Api::basic(&platform.system.url, user, secret);
    assert_eq!(api.get("/v2/team/shop/api/manifests/1").await.status(), StatusCode::OK);
    assert_eq!(api.get("/v2/team/other/manifests/1").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(api.start_upload_status("team/shop/api").await, StatusCode::FORBIDDEN);
    let minted = api.with_token(&["repository:team/shop/api:pull,push", "repository:team/other:pull"]).await;
    assert_eq!(minted.get("/v2/team/shop/api/manifests/1").await.status(), StatusCode::OK);
    assert_eq!(minted.get("/v2/team/other/manifests/1").await.status(), StatusCode::FORBIDDEN);
    // Without a token a pod is nobody; with one that no rule takes, the kubelet is told.
    let nobody: Value = serde_json::from_str(&ask(&image, None).printed).unwrap();
    assert_eq!(nobody["auth"], json!({}));
    assert!(!ask(&image, Some("a.b.c")).success);
    // An image may be anybody's, and the pod's token is shown to nobody but the registry that it is for.
    let (stranger, asked_for) = actions(String::new()).await;
    let elsewhere = stranger.trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let refused = ask(&format!("{elsewhere}/team/app:1"), Some(&token));
    assert!(!refused.success && asked_for.lock().unwrap().is_empty());
    pulls_with_containerd(&platform, &image, user, secret).await;
}

/// containerd as the kubelet uses it, with a state of its own.
async fn pulls_with_containerd(platform: &Platform, image: &str, user: &str, secret: &str) {
    let (Some(containerd), Some(ctr)) = (tools::find("containerd"), tools::find("ctr")) else { return };
    let folder = platform.folder.path().join("containerd");
    std::fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("sock");
    let mut daemon = std::process::Command::new(containerd);
    daemon
        .arg("--address")
        .arg(&socket)
        .arg("--root")
        .arg(folder.join("root"))
        .arg("--state")
        .arg(folder.join("state"));
    let config = folder.join("config.toml");
    std::fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n").unwrap();
    let _daemon = Process::start(daemon.arg("--config").arg(config), &folder.join("log")).unwrap();
    let ctr = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&ctr);
        run(command.arg("--address").arg(&socket).args(arguments))
    };
    wait_for("containerd", async || ctr(&["version"]).success.then_some(())).await;
    let credentials = format!("{user}:{secret}");
    let pull = |image: &str, user: &str| ctr(&["content", "fetch", "--plain-http", "--user", user, image]);
    let pulled = pull(image, &credentials);
    assert!(pulled.success, "{}", pulled.printed);
    let other = image.replace("team/shop/api", "team/other");
    assert!(!pull(&other, &credentials).success);
}
