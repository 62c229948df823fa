//! Signing in from a terminal: the credential helper, the page on which a code is confirmed, and what follows from it.

mod clients;
mod jobs;

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use berth_tests::{
    api::{Api, Credential},
    images::Image,
    person::Person,
    process::{Process, wait_for},
    system::{Setup, System, binary, demonstration_rules},
    tools::{self, Outcome, must},
};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Somebody's machine: a home folder, and the helper among its programs.
pub struct Machine {
    pub home: tempfile::TempDir,
    /// Where its programs talk to each other, and its keyring answers.
    bus: Option<Keyring>,
}

/// A session bus with a keyring that is unlocked.
struct Keyring {
    address: String,
    _processes: [Process; 2],
}

impl Keyring {
    /// Nothing, if they aren't installed.
    async fn start(home: &Path) -> Option<Self> {
        let (bus, keyring) = (tools::find("dbus-daemon")?, tools::find("gnome-keyring-daemon")?);
        let address = format!("unix:path={}", home.join("bus").display());
        let mut bus = Command::new(bus);
        let bus =
            Process::start(bus.args(["--session", "--nofork", "--address", &address]), &home.join("bus.log")).unwrap();
        wait_for("the bus", async || home.join("bus").exists().then_some(())).await;
        let mut command = Command::new("sh");
        let script = "printf password | exec \"$0\" --foreground --unlock --components=secrets";
        command.args(["-c", script]).arg(keyring).env("HOME", home).env("DBUS_SESSION_BUS_ADDRESS", &address);
        let keyring = Process::start(&mut command, &home.join("keyring.log")).unwrap();
        Some(Self { address, _processes: [keyring, bus] })
    }
}

impl Machine {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), bus: None }
    }

    /// One with a keyring; nothing, if there is none to be had.
    async fn with_keyring() -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let bus = Some(Keyring::start(home.path()).await?);
        Some(Self { home, bus })
    }

    /// A command with this home, and without what the tests' own environment has.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for name in ["XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"] {
            command.env_remove(name);
        }
        for name in ["DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY", "ACTIONS_ID_TOKEN_REQUEST_URL"] {
            command.env_remove(name);
        }
        if let Some(bus) = &self.bus {
            command.env("DBUS_SESSION_BUS_ADDRESS", &bus.address);
        }
        let helpers = binary("docker-credential-berth").parent().unwrap().to_owned();
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(helpers).chain(std::env::split_paths(&paths));
        command.env("HOME", self.home.path()).env("PATH", std::env::join_paths(paths).unwrap());
        command
    }

    pub fn helper(&self) -> Command {
        self.command(binary("docker-credential-berth"))
    }

    /// What the helper says to something on standard input.
    pub fn ask(&self, action: &str, input: &str) -> Outcome {
        asked(self.helper().arg(action), input)
    }

    /// The name and the secret for a registry.
    pub fn get(&self, registry: &str) -> (String, String) {
        let Outcome { success, printed } = self.ask("get", registry);
        assert!(success, "{printed}");
        let given: Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
        let text = |name: &str| given[name].as_str().unwrap().to_owned();
        (text("Username"), text("Secret"))
    }

    fn logins(&self) -> PathBuf {
        self.home.path().join(".local/state/berth/logins.json")
    }

    /// What the file has of a registry.
    fn kept(&self, registry: &str) -> Value {
        let all: Value = serde_json::from_slice(&std::fs::read(self.logins()).unwrap()).unwrap();
        all[registry]["file"].clone()
    }

    /// As if the last secret had ended.
    pub fn age(&self, registry: &str) {
        let mut all: Value = serde_json::from_slice(&std::fs::read(self.logins()).unwrap()).unwrap();
        all[registry]["file"]["goodUntil"] = json!(1);
        std::fs::write(self.logins(), all.to_string()).unwrap();
    }

    /// Begins to sign in; gives the address that it prints.
    pub fn begin(&self, registry: &str, more: &[&str]) -> Waiting {
        let mut command = self.helper();
        command.args(["login", "--name", "laptop-7", registry]).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = |begins: &str| {
            let mut text = String::new();
            lines.read_line(&mut text).unwrap();
            text.trim().strip_prefix(begins).unwrap_or_else(|| panic!("{text}")).trim().to_owned()
        };
        let (code, page) = (line("Confirm this code:"), line("at"));
        Waiting { child, code, page, _rest: lines }
    }

    /// Signs in, as somebody confirms it.
    pub async fn sign_in(&self, registry: &str, person: &Person, more: &[&str]) {
        let waiting = self.begin(registry, more);
        decide(person, registry, &waiting.code, "allow").await;
        waiting.end(true);
    }
}

/// What a program says to something on standard input.
pub fn asked(command: &mut Command, input: &str) -> Outcome {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    Outcome { success: output.status.success(), printed }
}

/// A terminal that waits to be let in.
pub struct Waiting {
    child: Child,
    pub code: String,
    pub page: String,
    _rest: BufReader<std::process::ChildStdout>,
}

impl Waiting {
    /// How it ended; what it said on standard error.
    pub fn end(self, success: bool) -> String {
        let output = self.child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), success, "{said}");
        said
    }
}

/// Decides about a code, as the page's form does.
pub async fn decide(person: &Person, registry: &str, code: &str, decision: &str) -> (StatusCode, String) {
    let form = [("user_code", code), ("decision", decision)];
    let request = person.http.post(format!("http://{registry}/device")).header("sec-fetch-site", "same-origin");
    let answer = request.form(&form).send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

/// A terminal begins to ask.
pub async fn begin(url: &str) -> Value {
    let form = [("client_id", "tests"), ("name", "laptop-7")];
    let asked = reqwest::Client::new().post(format!("{url}/zot/auth/device")).form(&form);
    asked.send().await.unwrap().json().await.unwrap()
}

/// Asks the token service.
pub async fn token(url: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
    let answer = reqwest::Client::new().post(format!("{url}/zot/auth/token")).form(form).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn renew(url: &str, refresh_token: &str) -> (StatusCode, Value) {
    token(url, &[("grant_type", "refresh_token"), ("refresh_token", refresh_token)]).await
}

async fn demonstration() -> System {
    System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_let_in_by_a_person_and_gets_secrets_until_its_token_is_used_twice() {
    let system = demonstration().await;
    let (host, machine) = (system.authority(), Machine::new());
    let bob = system.signed_in("bob").await;
    assert_eq!(machine.ask("get", host).printed, "credentials not found in native keychain");
    let waiting = machine.begin(host, &[]);
    // Who isn't signed in is led to sign in, and back; looking changes nothing.
    assert_eq!(waiting.page, format!("{}/device?user_code={}", system.url, waiting.code));
    let path = waiting.page.strip_prefix(&system.url).unwrap();
    let stranger = Person::new(&system.url).get(path).await.text().await.unwrap();
    assert!(stranger.contains("SIGN IN WITH OIDC") && !stranger.contains("laptop-7"), "{stranger}");
    let page = bob.get(path).await;
    assert_eq!(page.headers()["x-frame-options"], "DENY");
    let text = page.text().await.unwrap();
    for part in ["laptop-7", "127.0.0.1", &waiting.code, "bob", "just begun this yourself"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Another site's page decides nothing.
    let form = [("user_code", waiting.code.as_str()), ("decision", "allow")];
    let forged = bob.http.post(format!("{}/device", system.url)).header("origin", "https://evil").form(&form);
    assert_eq!(forged.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let (status, page) = decide(&bob, host, &waiting.code.to_lowercase(), "allow").await;
    assert!(status.is_success() && page.contains("Go back to your terminal"), "{page}");
    let said = waiting.end(true);
    assert!(said.contains("no keyring"), "{said}");
    // A code is used once.
    assert_eq!(decide(&bob, host, "BBBB-BBBB", "allow").await.0, StatusCode::NOT_FOUND);
    let (user, secret) = machine.get(host);
    assert_eq!((user.as_str(), machine.ask("list", "").printed), ("bob", json!({host: "bob"}).to_string()));
    let api = Api::basic(&system.url, &user, &secret);
    let image = Image::new(1, 1000);
    Api::basic(&system.url, "alice", &system.signed_in("alice").await.make_key("a").await.0)
        .must_push("shared/app", "1", &image)
        .await;
    let minted = api.with_token(&["repository:shared/app:pull,push"]).await;
    for one in [&api, &minted, &Api::new(&system.url, Credential::Bearer(secret.clone()))] {
        assert_eq!(one.get("/v2/shared/app/manifests/1").await.status(), StatusCode::OK);
    }
    // A secret is kept as long as it is good for a while, whatever docker writes down of it; then there is another.
    let stored = json!({"ServerURL": host, "Username": user, "Secret": secret});
    assert!(machine.ask("store", &stored.to_string()).success);
    assert_eq!(machine.get(host).1, secret);
    let first = machine.kept(host)["refreshToken"].as_str().unwrap().to_owned();
    machine.age(host);
    let (_, another) = machine.get(host);
    let second = machine.kept(host)["refreshToken"].as_str().unwrap().to_owned();
    assert!(another.starts_with("bls_") && first != second);
    // An answer that didn't come is asked for again, by whoever has asked the first time.
    let ask_again = [("grant_type", "refresh_token"), ("refresh_token", second.as_str()), ("retry", "random")];
    let third = token(&system.url, &ask_again).await.1["refresh_token"].clone();
    assert_eq!(
        (token(&system.url, &ask_again).await.1["refresh_token"].clone(), third.is_string()),
        (third.clone(), true)
    );
    let second = third.as_str().unwrap().to_owned();
    // A refresh token opens nothing itself.
    for wrong in [Api::basic(&system.url, "bob", &second), Api::new(&system.url, Credential::Bearer(second.clone()))] {
        assert_eq!(wrong.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    }
    // Nor makes a secret another one.
    let exchange = "urn:ietf:params:oauth:grant-type:token-exchange";
    let kind = "urn:ietf:params:oauth:token-type:jwt";
    let form = [("grant_type", exchange), ("subject_token", another.as_str()), ("subject_token_type", kind)];
    assert_eq!(token(&system.url, &form).await.0, StatusCode::BAD_REQUEST);
    let terminals = bob.get("/sessions").await.text().await.unwrap();
    assert!(terminals.contains("Terminal on laptop-7"), "{terminals}");
    // Somebody has the first one, too.
    let (status, body) = renew(&system.url, &first).await;
    assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_grant")));
    assert_eq!(renew(&system.url, &second).await.0, StatusCode::BAD_REQUEST);
    for one in [&api, &minted] {
        assert_eq!(one.get("/v2/shared/app/manifests/1").await.status(), StatusCode::UNAUTHORIZED);
    }
    machine.age(host);
    let told = machine.ask("get", host);
    assert!(!told.success && told.printed.contains(&format!("login {host}")), "{}", told.printed);
    assert_eq!(machine.ask("get", host).printed, "credentials not found in native keychain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_goes_no_further_than_it_asked_and_ends_at_a_button_and_at_its_logout() {
    let system = demonstration().await;
    let (host, machine) = (system.authority(), Machine::new());
    let alice = system.signed_in("alice").await;
    // What is refused gets nothing.
    let waiting = machine.begin(host, &[]);
    decide(&alice, host, &waiting.code, "deny").await;
    let said = waiting.end(false);
    assert!(said.contains("was refused on the registry's page"), "{said}");
    machine.sign_in(host, &alice, &["--read-only", "--repository", "shared/**"]).await;
    let (user, secret) = machine.get(host);
    let key = Api::basic(&system.url, "alice", &alice.make_key("a").await.0);
    for repository in ["shared/app", "public/app"] {
        key.must_push(repository, "1", &Image::new(1, 1000)).await;
    }
    let status = async |api: &Api, target: &str| api.get(target).await.status();
    let api = Api::basic(&system.url, &user, &secret);
    let everything = ["repository:shared/app:pull,push", "repository:private/app:pull"];
    for one in [&api, &api.with_token(&everything).await] {
        assert_eq!(status(one, "/v2/shared/app/manifests/1").await, StatusCode::OK);
        let pushed = one.push_blob("shared/app", b"more").await;
        assert!(pushed.is_err() || !pushed.unwrap().status().is_success());
    }
    // The rest of what alice may, it may not: not even what the token service would grant her.
    assert_eq!(status(&api, "/v2/alice/app/tags/list").await, StatusCode::FORBIDDEN);
    // A button ends it, and only one's own.
    let page = alice.get("/sessions").await.text().await.unwrap();
    let id = page.split("value=\"terminal\"").nth(1).unwrap().split("value=\"").nth(1).unwrap();
    let id = id.split('"').next().unwrap().to_owned();
    let end = async |person: &Person| {
        let request = person.http.post(format!("{}/sessions/end", system.url)).header("sec-fetch-site", "same-origin");
        request.form(&[("id", id.as_str()), ("kind", "terminal")]).send().await.unwrap().status()
    };
    end(&system.signed_in("bob").await).await;
    assert_eq!(status(&api, "/v2/").await, StatusCode::OK);
    end(&alice).await;
    assert_eq!(status(&api, "/v2/").await, StatusCode::UNAUTHORIZED);
    // A logout ends it at the registry, too.
    machine.sign_in(host, &alice, &["--configure"]).await;
    for file in [".docker/config.json", ".config/containers/auth.json"] {
        let config = std::fs::read(machine.home.path().join(file)).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&config).unwrap()["credHelpers"][host], json!("berth"), "{file}");
    }
    let (user, secret) = machine.get(host);
    let api = Api::basic(&system.url, &user, &secret);
    assert_eq!(status(&api, "/v2/").await, StatusCode::OK);
    must(machine.helper().args(["logout", host]));
    assert_eq!(status(&api, "/v2/").await, StatusCode::UNAUTHORIZED);
    let config = std::fs::read_to_string(machine.home.path().join(".docker/config.json")).unwrap();
    assert!(!config.contains(host), "{config}");
    assert_eq!(machine.ask("list", "").printed, "{}");
    // Unused for thirty days it has ended.
    machine.sign_in(host, &alice, &[]).await;
    let (user, secret) = machine.get(host);
    let api = Api::basic(&system.url, &user, &secret);
    assert_eq!(status(&api, "/v2/").await, StatusCode::OK);
    if system.sql("UPDATE terminals SET used_at = used_at - 30 * 24 * 3600 - 1") {
        wait_for("its end", async || (status(&api, "/v2/").await == StatusCode::UNAUTHORIZED).then_some(())).await;
        machine.age(host);
        assert!(!machine.ask("get", host).success);
    }
    // Whoever tries out codes waits, as for passwords; whoever looks at their own pages doesn't.
    let mut tried = 0;
    while alice.get("/device?user_code=BBBB-BBBB").await.status() != StatusCode::TOO_MANY_REQUESTS {
        tried += 1;
        assert!(tried < 100);
    }
    assert_eq!(alice.get("/sessions").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_is_a_keyring_no_file_has_a_secret() {
    let Some(machine) = Machine::with_keyring().await else { return };
    let system = demonstration().await;
    let (host, bob) = (system.authority(), system.signed_in("bob").await);
    // The keyring comes to the bus when it does.
    let stored = json!({"ServerURL": "registry.company", "Username": "bob", "Secret": "a-password"}).to_string();
    wait_for("the keyring", async || {
        let kept = machine.ask("store", &stored).success && machine.kept("registry.company").is_null();
        kept.then_some(())
    })
    .await;
    assert_eq!(machine.get("registry.company"), ("bob".to_owned(), "a-password".to_owned()));
    let waiting = machine.begin(host, &[]);
    decide(&bob, host, &waiting.code, "allow").await;
    assert_eq!(waiting.end(true), "");
    let (_, secret) = machine.get(host);
    assert_eq!(Api::basic(&system.url, "bob", &secret).get("/v2/").await.status(), StatusCode::OK);
    let file = std::fs::read_to_string(machine.logins()).unwrap();
    assert!(
        file.contains(host) && !file.contains("btr_") && !file.contains("bls_") && !file.contains("password"),
        "{file}"
    );
    must(machine.helper().args(["logout", host]));
    assert_eq!(machine.ask("get", host).printed, "credentials not found in native keychain");
}
