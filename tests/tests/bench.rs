//! `berth-bench`, as its users run it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use berth_tests::{
    api::Api,
    system::{Setup, System, binary, demonstration_rules},
};

fn bench(arguments: &[&str]) -> Output {
    Command::new(binary("berth-bench")).args(arguments).output().expect("berth-bench")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_measured_with_any_credential_and_two_runs_are_compared() {
    let system = System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("bench").await;
    let file = |name: &str, text: &str| {
        let path = system.folder.join(name);
        fs::write(&path, text).expect("a file");
        path
    };
    let (key_file, wrong) = (file("key", &format!("{key}\n")), file("wrong", "not it"));
    let alice = Api::basic(&system.url, "alice", &key);
    let asked = alice.ask_token(&["repository:app/bench:pull,push,delete"]).await;
    let token: serde_json::Value = asked.json().await.expect("a token");
    let token_file = file("token", token["token"].as_str().expect("a token"));
    let few = ["--repository", "app/bench", "--seconds", "1", "--rounds", "1", "--large", "3", "--connections", "2"];
    let pids = format!("{},{}", system.proxy.id(), system.registry.id());
    let with = |credential: &[&str], run: &Path| {
        let written = ["--pid", &pids, "--json", text(run)];
        bench(&[&[system.url.as_str()][..], credential, &few, &written].concat())
    };

    let runs: Vec<_> = ["a", "b", "c"].map(|name| system.folder.join(format!("{name}.json"))).into();
    let credentials: [&[&str]; 3] = [
        &["--user", "alice", "--password-file", text(&key_file)],
        &["--user", "alice", "--password-file", text(&key_file), "--basic"],
        &["--token-file", text(&token_file)],
    ];
    for (credential, run) in credentials.iter().zip(&runs) {
        let output = with(credential, run);
        let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{errors}");
        for work in ["push of a large blob", "HEAD of a manifest by tag", "cold pulls of a small image"] {
            assert!(table.contains(&format!("| {work} | ")), "{table}");
        }
        let written = fs::read_to_string(run).expect("the run");
        for shown in [&*table, &*errors, &written] {
            assert!(!shown.contains(&key), "{shown}");
        }
    }
    let compared = bench(&["compare", text(&runs[0]), text(&runs[1])]);
    let table = String::from_utf8_lossy(&compared.stdout);
    assert!(compared.status.success() && table.contains("| work | before | after | after/before |"), "{table}");
    // Nothing of it stays that a tag names.
    let tags = alice.get("/v2/app/bench/tags/list").await;
    assert!(!tags.status().is_success() || !tags.text().await.expect("a list").contains("bench-"));

    for (arguments, reason) in [
        (vec![&system.url[..], "--user", "alice", "--password-file", text(&wrong)], "401 Unauthorized"),
        (vec![&system.url[..]], "401 Unauthorized"),
        (vec!["http://127.0.0.1:1"], "127.0.0.1:1: "),
        (vec!["compare", text(&wrong), text(&runs[0])], "no run of --json"),
        (vec!["http://alice:secret@localhost"], "no name and password in it"),
        (vec![&system.url[..], "--connections", "100000000000"], "--connections is at most"),
        (vec![&system.url[..], "--pid", "999999999"], "there is no process"),
        (vec![&system.url[..], "--json", "/nonexistent/x"], "/nonexistent/x: "),
    ] {
        let output = bench(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(reason), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}
