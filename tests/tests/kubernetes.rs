//! The manifests for Kubernetes: valid, and run as a kubelet would run them.
//!
//! No cluster runs here. What kustomize and helm render is validated strictly against Kubernetes' own schemas
//! (`kubernetes-validate`), and the rendered pod's containers are run by docker: in one network namespace, with the
//! volumes, users, capabilities and probes that the manifest gives them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use berth_tests::{
    api::{Api, Credential, location},
    images::{Image, digest},
    process::wait_for,
    tools::{self, must, run},
};
use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::deployment::{berth_image, checkout, import};

const KUSTOMIZATIONS: [&str; 2] = ["deploy/kubernetes/base", "deploy/kubernetes/replicas"];

/// What a program of Kubernetes' renders.
fn rendered(program: &Path, arguments: &[&str]) -> String {
    must(Command::new(program).args(arguments).current_dir(checkout()))
}

fn helm<'a>(more: &'a [&'a str]) -> Vec<&'a str> {
    [&["template", "berth", "deploy/helm/berth", "--kube-version", "1.34.0"][..], more].concat()
}

#[test]
fn what_is_rendered_is_valid_by_kubernetes_own_schemas() {
    let programs = ["kustomize", "helm", "kubernetes-validate"].map(tools::find);
    let [Some(kustomize), Some(helm_program), Some(validate)] = programs else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut all: Vec<String> = KUSTOMIZATIONS.iter().map(|path| rendered(&kustomize, &["build", path])).collect();
    all.push(rendered(&helm_program, &helm(&["--set", "ingress.enabled=true"])));
    let several = "replicas=3,persistence.enabled=false,bucketSecretName=bucket";
    all.push(rendered(&helm_program, &helm(&["--set", several])));
    let check = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        run(Command::new(&validate).args(["--strict", "--quiet", "-k", "1.34"]).arg(path))
    };
    for (i, text) in all.iter().enumerate() {
        let checked = check(&format!("{i}.yaml"), text);
        assert!(checked.success, "{}", checked.printed);
        assert!(text.contains("kind: Deployment") && text.contains("kind: NetworkPolicy"), "{text}");
    }
    // What is wrong is found.
    assert!(!check("wrong.yaml", &all[0].replace("readOnlyRootFilesystem", "readOnlyRootFileSystem")).success);
    // Several replicas on one volume are refused.
    let refused = run(Command::new(&helm_program).args(helm(&["--set", "replicas=3"])).current_dir(checkout()));
    assert!(!refused.success && refused.printed.contains("needs PostgreSQL"), "{}", refused.printed);
    must(Command::new(&helm_program).args(["lint", "--strict", "deploy/helm/berth"]).current_dir(checkout()));
}

/// A pod of the base, on docker; it goes when this is dropped.
struct Pod {
    docker: PathBuf,
    spec: Value,
    volumes: PathBuf,
    name: String,
    images: [String; 2],
}

impl Pod {
    fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.docker);
        command.args(arguments);
        command
    }

    fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    /// One of the two, as the manifest describes it.
    fn spec_of(&self, name: &str) -> &Value {
        let all =
            self.spec["initContainers"].as_array().unwrap().iter().chain(self.spec["containers"].as_array().unwrap());
        all.into_iter().find(|container| container["name"] == name).unwrap()
    }

    /// Starts a container with what the kubelet would give it.
    fn start(&self, name: &str) {
        let (spec, pod) = (self.spec_of(name), &self.spec["securityContext"]);
        let security = &spec["securityContext"];
        assert_eq!((&pod["runAsNonRoot"], &pod["seccompProfile"]["type"]), (&json!(true), &json!("RuntimeDefault")));
        assert_eq!(security["allowPrivilegeEscalation"], false);
        let mut command = self.docker(&["run", "--detach", "--name", &self.container(name)]);
        command.args(["--network", &format!("container:{}", self.container("pause"))]);
        command.args(["--user", &format!("{}:{}", pod["runAsUser"], pod["runAsGroup"])]);
        command.args(["--security-opt", "no-new-privileges"]);
        if security["readOnlyRootFilesystem"] == true {
            command.arg("--read-only");
        }
        for capability in security["capabilities"]["drop"].as_array().unwrap() {
            command.args(["--cap-drop", capability.as_str().unwrap()]);
        }
        let memory = spec["resources"]["limits"]["memory"].as_str().unwrap();
        command.args(["--memory", &memory.replace("Mi", "m")]);
        for mount in spec["volumeMounts"].as_array().unwrap() {
            let path = self.volumes.join(mount["name"].as_str().unwrap());
            let path = path.join(mount["subPath"].as_str().unwrap_or_default());
            let only = if mount["readOnly"] == true { ":ro" } else { "" };
            command.args(["--volume", &format!("{}:{}{only}", path.display(), mount["mountPath"].as_str().unwrap())]);
        }
        command.arg(&self.images[0]);
        command.args(spec["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()));
        must(&mut command);
    }

    /// Waits until the container's startup probe succeeds.
    async fn started(&self, name: &str) {
        let probe = &self.spec_of(name)["startupProbe"];
        wait_for(&format!("the startup probe of {name}"), async || self.probe(name, probe).await.then_some(())).await;
    }

    async fn probe(&self, name: &str, probe: &Value) -> bool {
        match probe["exec"]["command"].as_array() {
            Some(words) => {
                let mut command = self.docker(&["exec", &self.container(name)]);
                run(command.args(words.iter().map(|word| word.as_str().unwrap()))).success
            }
            None => {
                let url = format!("{}{}", self.url(), probe["httpGet"]["path"].as_str().unwrap());
                reqwest::get(url).await.is_ok_and(|answer| answer.status().is_success())
            }
        }
    }

    /// The address of the pod.
    fn url(&self) -> String {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = must(&mut self.docker(&["inspect", "--format", format, &self.container("pause")]));
        format!("http://{}:8080", address.trim())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for name in ["proxy", "registry", "pause"] {
            run(&mut self.docker(&["rm", "--force", &self.container(name)]));
        }
        self.images.iter().for_each(|image| drop(run(&mut self.docker(&["rmi", "--force", image]))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rendered_pod_serves_restarts_and_drains() {
    let [Some(kustomize), Some(docker), Some(busybox)] = ["kustomize", "docker", "busybox"].map(tools::find) else {
        return;
    };
    if !run(Command::new(&docker).arg("info")).success {
        return tools::skip("no docker engine runs");
    }
    let folder = tempfile::tempdir().unwrap();
    let (work, id) = (folder.path(), std::process::id());
    let images = [format!("berth-pod-{id}"), format!("berth-pause-{id}")];
    berth_image(&docker, work, &images[0]);
    let root = work.join("pause");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(busybox, root.join("bin/sleep")).unwrap();
    import(&docker, &root, &images[1], "65532:65532");

    let text = rendered(&kustomize, &["build", KUSTOMIZATIONS[0]]);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap();
    let spec = of_kind("Deployment")["spec"]["template"]["spec"].clone();
    // The configuration as it is, but for who signs people in: nobody can be asked here.
    let config = of_kind("ConfigMap")["data"]["config.json"].as_str().unwrap();
    let mut config: Value = serde_json::from_str(config).unwrap();
    config["http"]["auth"]["htpasswd"] = json!({"path": "/etc/berth/secret/htpasswd"});
    config["http"]["accessControl"]["adminPolicy"] =
        json!({"users": ["dave"], "actions": ["read", "create", "update"]});
    let volumes = work.join("volumes");
    for name in ["config", "secret", "socket", "data/registry", "data/proxy"] {
        fs::create_dir_all(volumes.join(name)).unwrap();
    }
    fs::write(volumes.join("config/config.json"), config.to_string()).unwrap();
    fs::write(volumes.join("secret/oidc-credentials.json"), r#"{"clientid": "a", "clientsecret": "b"}"#).unwrap();
    let password = bcrypt::hash("dave-s", 4).unwrap();
    fs::write(volumes.join("secret/htpasswd"), format!("dave:{password}\n")).unwrap();
    // fsGroup: what the pod's volumes hold is its group's.
    let group = spec["securityContext"]["fsGroup"].to_string();
    must(Command::new("chown").args(["-R", &format!("root:{group}")]).arg(&volumes));
    must(Command::new("chmod").args(["-R", "u=rwX,g=rwX,o="]).arg(&volumes));
    must(Command::new("chmod").arg("a+rx").arg(work));

    let pod = Pod { docker, spec, volumes, name: format!("berth-pod-{id}"), images };
    must(&mut pod.docker(&["run", "--detach", "--name", &pod.container("pause"), &pod.images[1], "sleep", "100000"]));
    // A native sidecar: started, and up, before the other.
    for name in ["registry", "proxy"] {
        pod.start(name);
        pod.started(name).await;
    }
    let ready = pod.spec_of("proxy")["readinessProbe"].clone();
    assert!(pod.probe("proxy", &ready).await);
    let dave = Api::new(&pod.url(), Credential::Basic("dave".to_owned(), "dave-s".to_owned()));
    dave.must_push("team/app", "1", &Image::new(1, 100_000)).await;
    // Either is restarted without the other.
    for name in ["registry", "proxy"] {
        must(&mut pod.docker(&["restart", "--time", "30", &pod.container(name)]));
        pod.started(name).await;
        wait_for("the image", async || {
            let answer = dave.request(Method::GET, "/v2/team/app/manifests/1").send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    // Told to stop with a push in flight: not ready at once, the push ends well, then the process does.
    let layer = vec![7; 300_000];
    let begun = dave.post("/v2/team/app/blobs/uploads/").await;
    let mut chunks = layer.chunks(100_000).map(<[u8]>::to_vec);
    let (feed, fed) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let fed = futures_util::stream::unfold(fed, |mut fed| async { Some((fed.recv().await?, fed)) });
    let target = format!("{}?digest={}", location(&begun), digest(&layer));
    let target = if location(&begun).contains('?') { target.replacen("?digest", "&digest", 1) } else { target };
    let put = dave.request(Method::PUT, &target).header("content-length", layer.len());
    let put = put.body(reqwest::Body::wrap_stream(fed.map(Ok::<_, std::io::Error>)));
    let put = tokio::spawn(put.send());
    feed.send(chunks.next().unwrap()).await.unwrap();
    feed.send(chunks.next().unwrap()).await.unwrap();
    must(&mut pod.docker(&["kill", "--signal", "TERM", &pod.container("proxy")]));
    wait_for("it not to be ready", async || (!pod.probe("proxy", &ready).await).then_some(())).await;
    assert!(!put.is_finished());
    feed.send(chunks.next().unwrap()).await.unwrap();
    drop(feed);
    let pushed = tokio::time::timeout(Duration::from_secs(30), put).await.unwrap().unwrap().unwrap();
    assert_eq!(pushed.status(), StatusCode::CREATED);
    assert_eq!(must(&mut pod.docker(&["wait", &pod.container("proxy")])).trim(), "0");
    // The registry after it, as the kubelet ends sidecars.
    must(&mut pod.docker(&["stop", "--time", "30", &pod.container("registry")]));
    assert_eq!(must(&mut pod.docker(&["wait", &pod.container("registry")])).trim(), "0");
}
