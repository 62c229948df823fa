//! The documents: what they tell to type is typed, what they quote is said, where they lead there is something.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{
    api::{Api, Credential},
    images::Image,
    process::{Process, free_port, wait_for},
    system::{Setup, System, binary, serve_with},
    tools::{find, must},
};
use reqwest::StatusCode;
use serde_json::json;

use crate::authority::Authority;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The blocks of a document that are marked so.
fn blocks(document: &str, mark: &str) -> Vec<String> {
    let mark = format!("<!-- {mark} -->\n```");
    let marked = document.split(&mark).skip(1);
    marked.map(|rest| rest.split_once('\n').unwrap().1.split("\n```").next().unwrap().to_owned()).collect()
}

/// Runs what a document tells to type, in a folder; gives what was printed.
fn follow(folder: &Path, script: &str, environment: &[(&str, &Path)]) -> String {
    let programs = Path::new(binary("berth-proxy").to_str().unwrap()).parent().unwrap().to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("timeout");
    shell.args(["300", "bash", "-euo", "pipefail", "-c", script]).current_dir(folder).env("PATH", path);
    must(shell.envs(environment.iter().copied()))
}

#[test]
fn the_quick_start_leads_to_a_pushed_image() {
    let (Some(_), Some(_)) = (find("htpasswd"), find("skopeo")) else { return };
    let folder = tempfile::tempdir().unwrap();
    Image::new(1, 10_000).write_layout(&folder.path().join("image"), "1");
    let script = blocks(&document("quickstart.md"), "runs").join("\n");
    assert!(script.matches("berth-").count() > 6, "{script}");
    let upstream = format!("127.0.0.1:{}\"", free_port());
    let script = script.replace("8080", &free_port().to_string()).replace("127.0.0.1:5000\"", &upstream);
    let printed = follow(folder.path(), &format!("trap 'kill $(jobs -p); wait' EXIT\n{script}"), &[]);
    assert!(printed.contains("\"Tags\": [\n        \"1\"\n    ]"), "{printed}");
    assert!(printed.contains("yes: http.accessControl.repositories.**.policies[0]"), "{printed}");
}

#[tokio::test]
async fn another_registry_s_content_is_copied_and_everything_comes_out_again() {
    let (Some(_), Some(_), Some(_)) = (find("curl"), find("jq"), find("skopeo")) else { return };
    let Some(registry) = find("docker-registry") else { return };
    let access_control = json!({"repositories": {"**": {"policies": [
        {"users": ["alice"], "actions": ["read", "create", "update"]}]}}});
    let system = System::start(Setup { access_control, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = folder.path().join("old.yml");
    let storage = json!({"filesystem": {"rootdirectory": folder.path().join("old")}});
    let old = json!({"version": 0.1, "http": {"addr": format!("127.0.0.1:{port}")}, "storage": storage});
    fs::write(&config, old.to_string()).unwrap();
    let log = folder.path().join("old.log");
    let _old = Process::start(Command::new(registry).arg("serve").arg(&config), &log).unwrap();
    let (from, to) = (format!("localhost:{port}"), system.authority());
    let old = Api::new(&format!("http://{from}"), berth_tests::api::Credential::None);
    wait_for("the other registry", async || reqwest::get(format!("http://{from}/v2/")).await.ok()).await;
    let images =
        [("app", "1", Image::new(1, 1000)), ("app", "2", Image::new(2, 1000)), ("team/a/b", "x", Image::new(3, 1000))];
    for (repository, tag, image) in &images {
        old.must_push(repository, tag, image).await;
    }
    let insecure = |host: &str| format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    let registries = folder.path().join(".config/containers/registries.conf");
    fs::create_dir_all(registries.parent().unwrap()).unwrap();
    fs::write(&registries, [insecure(&from), insecure(to)].concat()).unwrap();
    let auth = folder.path().join("auth.json");
    let environment = [("HOME", folder.path()), ("REGISTRY_AUTH_FILE", auth.as_path())];
    follow(
        folder.path(),
        &format!("skopeo login --tls-verify=false --username alice --password {key} {to}"),
        &environment,
    );
    let scripts = blocks(&document("moving.md"), "runs");
    let copy = scripts[0].replace("old.company:5000", &from).replace("registry.company", to);
    follow(folder.path(), &copy, &environment);
    // Begun again, nothing is sent twice, and nothing breaks.
    follow(folder.path(), &copy, &environment);
    let api = Api::basic(&system.url, "alice", &key);
    for (repository, tag, image) in &images {
        let answer = api.get(&format!("/v2/{repository}/manifests/{tag}")).await;
        assert_eq!(answer.bytes().await.unwrap(), image.manifest, "{repository}:{tag}");
    }
    let export = scripts[4]
        .replace("/var/lib/berth/registry", system.folder.join("registry").to_str().unwrap())
        .replace("/etc/berth/config.json", system.config().to_str().unwrap());
    follow(folder.path(), &export, &environment);
    for (repository, tag, _) in &images {
        let inspected = format!("skopeo inspect --raw oci:export/{repository}:{tag}");
        assert!(follow(folder.path(), &inspected, &environment).contains("layers"), "{repository}:{tag}");
    }
}

#[tokio::test]
async fn a_registry_moves_to_another_machine() {
    let Some(_) = find("rsync") else { return };
    let mut system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    api.must_push("app", "1", &Image::new(1, 100_000)).await;
    // The machines are folders here, and the addresses stay.
    let there = system.folder.join("new-machine");
    let (old, config) = (system.folder.clone(), system.config());
    let state = there.join("var/lib/berth");
    for folder in [&state, &there.join("etc")] {
        fs::create_dir_all(folder).unwrap();
    }
    let adapt = |script: &str| {
        script
            .replace("new.company:", there.to_str().unwrap())
            .replace("/etc/berth/config.json", config.to_str().unwrap())
            .replace(" /var/lib/berth/", &format!(" {}/", old.display()))
            .replace("/etc/berth ", &format!("{} ", config.display()))
            .replace(&format!("{}/berth/", there.display()), &format!("{}/", there.display()))
    };
    let scripts = blocks(&document("moving.md"), "runs");
    let [blobs, rest, check] = &scripts[1..4] else { panic!("three steps") };
    follow(&old, &adapt(blobs), &[]);
    api.must_push("app", "2", &Image::new(2, 100_000)).await;
    system.proxy.terminate();
    system.registry.terminate();
    follow(&old, &adapt(rest), &[]);
    // The old machine is gone; what the new one serves is its own.
    for name in ["registry", "proxy.db", "proxy.key"] {
        let from = old.join(name);
        if from.is_dir() { fs::remove_dir_all(from).unwrap() } else { fs::remove_file(from).unwrap() }
    }
    system.configure(|config| {
        config["storage"]["rootDirectory"] = json!(state.join("registry"));
        config["sidecar"]["database"] = json!(format!("sqlite:{}", state.join("proxy.db").display()));
    });
    let _ = there.join("etc/config.json").metadata().expect("the configuration came along");
    follow(&old, &adapt(check), &[]);
    system.registry = serve_with("berth-registry", &config, &old.join("moved.log"));
    system.restart_proxy().await;
    for tag in ["1", "2"] {
        assert_eq!(api.get(&format!("/v2/app/manifests/{tag}")).await.status(), StatusCode::OK);
    }
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
}

/// A system behind a proxy of another kind, with TLS; the proxy's address, and a folder with its certificate.
async fn behind(proxy_port: u16) -> (System, Api, Authority, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.certify(&["localhost"], "localhost", None);
    fs::write(folder.path().join("registry.pem"), certificate).unwrap();
    fs::write(folder.path().join("registry.key"), key).unwrap();
    fs::write(folder.path().join("ca.crt"), &authority.pem).unwrap();
    let sidecar = json!({"trustedProxies": ["127.0.0.1"]});
    let mut system = System::start(Setup { sidecar, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    system.configure(|config| config["http"]["externalUrl"] = json!(format!("https://localhost:{proxy_port}")));
    system.restart_proxy().await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api, authority, folder)
}

/// Pushes and pulls through the proxy with a real client, and looks whose address Berth has seen.
async fn must_carry(system: &System, api: &Api, folder: &Path, port: u16) {
    let image = Image::new(5, 30_000_000);
    image.write_layout(&folder.join("image"), "1");
    let berth_tests::api::Credential::Basic(user, key) = api.credential() else { panic!("a key") };
    let certificates = folder.join("certs.d");
    fs::create_dir(&certificates).unwrap();
    fs::copy(folder.join("ca.crt"), certificates.join("ca.crt")).unwrap();
    let copy = |from: &str, to: &str, side: &str| {
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "copy",
            "--preserve-digests",
            &format!("--{side}-creds={user}:{key}"),
            &format!("--{side}-cert-dir"),
        ]);
        must(skopeo.arg(&certificates).args([from, to]));
    };
    let there = format!("docker://localhost:{port}/through/image:1");
    copy(&format!("oci:{}:1", folder.join("image").display()), &there, "dest");
    copy(&there, &format!("oci:{}:1", folder.join("back").display()), "src");
    assert_eq!(api.get("/v2/through/image/manifests/1").await.bytes().await.unwrap(), image.manifest);
    system.proxy.prints("path=\"/v2/through/image/manifests/1\"").await;
    let log = system.proxy.printed();
    let pushed = log.lines().find(|line| line.contains("operation=\"push_manifest\"")).unwrap();
    // The client of the other proxy, on the same machine; a proxy that says nothing would be seen by its own port.
    assert!(pushed.contains("client=127.0.0.1") || pushed.contains("client=::1"), "{pushed}");
}

#[tokio::test]
async fn nginx_in_front_carries_large_layers_and_says_whose_they_are() {
    let (Some(nginx), Some(_)) = (find("nginx"), find("skopeo")) else { return };
    let port = free_port();
    let (system, api, _authority, folder) = behind(port).await;
    let server = blocks(&document("proxies.md"), "nginx").remove(0);
    let here = folder.path().display();
    let server = server
        .replace("listen 443 ssl", &format!("listen {port} ssl"))
        .replace("registry.company", "localhost")
        .replace("/etc/nginx/", &format!("{here}/"))
        .replace("http://127.0.0.1:8080", &format!("http://127.0.0.1:{}", system.url.rsplit(':').next().unwrap()));
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths: String = paths.iter().map(|kind| format!("{kind}_temp_path {here}/{kind};\n")).collect();
    let config = folder.path().join("nginx.conf");
    let text = format!(
        "daemon off;\nmaster_process off;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{server}\n}}\n"
    );
    fs::write(&config, text).unwrap();
    let log = folder.path().join("nginx.log");
    let _nginx = Process::start(Command::new(nginx).arg("-c").arg(&config), &log).unwrap();
    answers(port).await;
    must_carry(&system, &api, folder.path(), port).await;
    // Nothing of a layer was written to nginx's own disk.
    let kept = fs::read_dir(folder.path().join("client_body")).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(kept, 0);
}

#[tokio::test]
async fn haproxy_in_front_carries_large_layers_and_says_whose_they_are() {
    let (Some(haproxy), Some(_)) = (find("haproxy"), find("skopeo")) else { return };
    let port = free_port();
    let (system, api, _authority, folder) = behind(port).await;
    let here = folder.path().display();
    let pem = ["registry.pem", "registry.key"].map(|name| fs::read_to_string(folder.path().join(name)).unwrap());
    fs::write(folder.path().join("both.pem"), pem.concat()).unwrap();
    let text = blocks(&document("proxies.md"), "haproxy").remove(0);
    let text = text
        .replace("bind :443", &format!("bind :::{port} v4v6"))
        .replace("/etc/haproxy/registry.pem", &format!("{here}/both.pem"))
        .replace("10.0.0.1:8080", &format!("127.0.0.1:{}", system.url.rsplit(':').next().unwrap()));
    let config = folder.path().join("haproxy.cfg");
    fs::write(&config, text + "\n").unwrap();
    let log = folder.path().join("haproxy.log");
    let _haproxy = Process::start(Command::new(haproxy).arg("-db").arg("-f").arg(&config), &log).unwrap();
    answers(port).await;
    must_carry(&system, &api, folder.path(), port).await;
}

#[tokio::test]
async fn caddy_in_front_carries_large_layers_and_says_whose_they_are() {
    let (Some(caddy), Some(_)) = (find("caddy"), find("skopeo")) else { return };
    let port = free_port();
    let (system, api, _authority, folder) = behind(port).await;
    let site = blocks(&document("proxies.md"), "caddy").remove(0);
    let site = site
        .replace("registry.company", &format!("https://localhost:{port}"))
        .replace("/etc/caddy/", &format!("{}/", folder.path().display()))
        .replace("127.0.0.1:8080", &format!("127.0.0.1:{}", system.url.rsplit(':').next().unwrap()))
        // The file's own names.
        .replace(&format!("https://localhost:{port}.pem"), "registry.pem")
        .replace(&format!("https://localhost:{port}.key"), "registry.key");
    let config = folder.path().join("Caddyfile");
    fs::write(&config, format!("{{\n    admin off\n    auto_https disable_redirects\n}}\n{site}\n")).unwrap();
    let mut command = Command::new(caddy);
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config).env("HOME", folder.path());
    let log = folder.path().join("caddy.log");
    let _caddy = Process::start(&mut command, &log).unwrap();
    answers(port).await;
    must_carry(&system, &api, folder.path(), port).await;
}

#[tokio::test]
async fn traefik_in_front_carries_large_layers_and_says_whose_they_are() {
    let (Some(traefik), Some(_)) = (find("traefik"), find("skopeo")) else { return };
    let port = free_port();
    let (system, api, _authority, folder) = behind(port).await;
    let adapt = |text: &str| {
        text.replace("/etc/traefik/", &format!("{}/", folder.path().display()))
            .replace("Host(`registry.company`)", "Host(`localhost`)")
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{}", system.url.rsplit(':').next().unwrap()))
            .replace("\":443\"", &format!("\":{port}\""))
    };
    let blocks = blocks(&document("proxies.md"), "traefik");
    fs::write(folder.path().join("berth.yml"), adapt(&blocks[0])).unwrap();
    let config = folder.path().join("traefik.yml");
    fs::write(
        &config,
        format!("{}\nglobal: {{ checkNewVersion: false, sendAnonymousUsage: false }}\n", adapt(&blocks[1])),
    )
    .unwrap();
    let log = folder.path().join("traefik.log");
    let mut command = Command::new(traefik);
    let _traefik = Process::start(command.arg(format!("--configFile={}", config.display())), &log).unwrap();
    answers(port).await;
    must_carry(&system, &api, folder.path(), port).await;
}

async fn answers(port: u16) {
    let client = berth_tests::process::trusting().build().unwrap();
    wait_for("the proxy in front", async || {
        let answer = client.get(format!("https://localhost:{port}/livez")).send().await.ok()?;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
}

/// All Rust source of the programs, with the line breaks of long texts taken out.
fn sources() -> String {
    fn read(folder: &Path, out: &mut String) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                read(&entry, out);
            } else if entry.extension().is_some_and(|end| end == "rs") {
                out.push_str(&fs::read_to_string(&entry).unwrap());
            }
        }
    }
    let mut text = String::new();
    for house in ["proxy/src", "registry/src", "config/src", "observe/src", "oci/src"] {
        read(&root().join(house), &mut text);
    }
    let mut joined = String::new();
    for line in text.lines() {
        match line.trim_start().strip_suffix('\\') {
            Some(text) => joined.push_str(text),
            None => joined.push_str(line.trim_start()),
        }
    }
    joined
}

#[test]
fn every_text_of_the_troubleshooting_is_one_that_the_programs_say() {
    let (sources, document) = (sources(), document("troubleshooting.md"));
    let mut quoted = 0;
    for row in document.lines().filter(|line| line.starts_with("| `")) {
        let text = row.trim_start_matches("| `").split("` |").next().unwrap().split("` from").next().unwrap();
        // docker's own words.
        if text == "no basic auth credentials" {
            continue;
        }
        quoted += 1;
        for part in text.split('…').map(str::trim).filter(|part| part.len() > 2) {
            // A key's path and its message stand apart in the source.
            let known = sources.contains(part)
                || part.split_once(": ").is_some_and(|(path, message)| {
                    sources.contains(path.rsplit('.').next().unwrap()) && sources.contains(message)
                });
            assert!(known, "nothing says {part:?} (of {text:?})");
        }
    }
    assert!(quoted > 25, "{quoted}");
}

/// The anchor that a heading has on the pages of code hosts.
fn anchor(heading: &str) -> String {
    let kept =
        heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-').collect::<String>();
    kept.trim().replace(' ', "-")
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut documents: Vec<PathBuf> = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    documents.extend(["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let mut named = BTreeSet::new();
    for path in &documents {
        let text = fs::read_to_string(path).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            // A folder and a picture have no headings.
            let found = fs::read_to_string(&target).unwrap_or_default();
            let headings = found.lines().filter_map(|line| line.strip_prefix('#'));
            let mut anchors = headings.map(|heading| anchor(heading.trim_start_matches('#')));
            assert!(fragment.is_empty() || anchors.any(|own| own == fragment), "{}: {link}", path.display());
            named.insert(target.canonicalize().unwrap());
        }
    }
    // Nobody finds what nothing leads to.
    for path in documents.iter().filter(|path| path.starts_with(root().join("docs"))) {
        assert!(named.contains(path), "nothing leads to {}", path.display());
    }
}

#[test]
fn the_helm_command_is_one_that_the_chart_takes() {
    let Some(_) = find("helm") else { return };
    let document = document("kubernetes.md");
    let block = document.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let install = block.split("helm install").nth(1).unwrap();
    let rendered = follow(&root(), &format!("helm template --kube-version 1.34 {}", install.trim()), &[]);
    assert!(rendered.contains("https://registry.company"), "{rendered}");
    assert!(rendered.contains("kind: Ingress") && rendered.contains("host: \"registry.company\""), "{rendered}");
}

#[test]
fn the_units_are_what_systemd_takes() {
    let Some(analyze) = find("systemd-analyze") else { return };
    let folder = tempfile::tempdir().unwrap();
    let units = ["berth-registry.service", "berth-proxy.service", "berth-mirror.service"].map(|name| {
        let text = fs::read_to_string(root().join("deploy/systemd").join(name)).unwrap();
        let path = folder.path().join(name);
        let text = ["berth-proxy", "berth-registry", "berth-mirror"].iter().fold(text, |text, program| {
            text.replace(&format!("/usr/bin/{program} "), &format!("{} ", binary(program).display()))
        });
        // The documents come with a package.
        let text = text.lines().filter(|line| !line.starts_with("Documentation=")).collect::<Vec<_>>().join("\n");
        fs::write(&path, text).unwrap();
        path
    });
    let printed = must(Command::new(&analyze).args(["verify", "--man=no", "--recursive-errors=no"]).args(&units));
    // What it says of other units of this machine isn't ours.
    let ours: Vec<_> = printed.lines().filter(|line| line.contains("berth")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    let mut verify = Command::new(binary("berth-registry"));
    let config = root().join("deploy/systemd/config.json");
    let outcome = berth_tests::tools::run(verify.arg("verify").arg(&config));
    let mut problems = outcome.printed.lines();
    assert!(
        outcome.success || problems.all(|line| line.starts_with("storage.rootDirectory: /var")),
        "{}",
        outcome.printed
    );
}

#[test]
fn the_reference_is_what_the_programs_know() {
    let printed = must(Command::new(binary("berth-proxy")).arg("reference"));
    assert!(printed == document("reference.md"), "print it anew: berth-proxy reference > docs/reference.md");
}

/// `./try.sh`, but for the building: what it prints and writes is enough to try everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trying_it_out_says_what_to_type_and_gives_another_shell_all_that_it_needs() {
    let script = include_str!("../../try.sh");
    // What it writes goes to target/try, which it empties first: its own programs must lie elsewhere.
    let profile = script.split("--profile ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(profile != "try" && script.contains(&format!("/{profile}/berth-try\"")), "{profile}");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = Command::new(binary("berth-try"));
    let mut process = Process::start(command.current_dir(folder.path()), &log).unwrap();
    let env = wait_for("its environment", async || fs::read_to_string(folder.path().join("target/try/env")).ok()).await;
    let value = |name: &str| {
        let line = env.lines().find_map(|line| line.strip_prefix(&format!("{name}='")));
        line.unwrap_or_else(|| panic!("{name}: {env}")).trim_end_matches('\'').to_owned()
    };
    let url = value("BERTH_URL");
    let by_key = Api::basic(&url, &value("BERTH_USER"), &value("BERTH_API_KEY"));
    let by_app_password = Api::basic(&url, &value("BERTH_APP_USER"), &value("BERTH_APP_PASSWORD"));
    let by_jwt = Api::new(&url, Credential::Bearer(value("BERTH_JWT")));
    for api in [&by_key, &by_app_password, &by_jwt] {
        assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    }
    let users =
        reqwest::Client::new().get(format!("{}/Users", value("BERTH_SCIM_URL"))).bearer_auth(value("BERTH_SCIM_TOKEN"));
    assert_eq!(users.send().await.unwrap().status(), StatusCode::OK);
    let printed = wait_for("what to type", async || {
        let printed = fs::read_to_string(&log).ok()?;
        printed.contains("Ctrl-C stops everything").then_some(printed)
    })
    .await;
    let host = url.trim_start_matches("http://");
    for part in ["SIGN IN WITH OIDC", "/people", &format!("docker-credential-berth login --configure {host}")] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    process.terminate();
    assert!(!folder.path().join("target/try/env").exists());
}
