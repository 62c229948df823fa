//! A registry with what people have in theirs.

use std::io::Write;

use berth_tests::{
    api::Api,
    images::{Image, MANIFEST, digest, tar},
    system::{Setup, System, demonstration_rules},
};
use flate2::{Compression, write::GzEncoder};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub async fn push(api: &Api, repository: &str, reference: &str, media_type: &str, manifest: &Value) -> String {
    let text = manifest.to_string();
    let put = api.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
    let answer = put.header(header::CONTENT_TYPE, media_type).body(text.clone()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
    digest(text.as_bytes())
}

pub async fn blob(api: &Api, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
    assert_eq!(api.push_blob(repository, bytes).await.unwrap().status(), StatusCode::CREATED);
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// An image as builders make it, for a platform.
async fn image(api: &Api, repository: &str, architecture: &str, version: &str) -> Value {
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-11-20T10:00:00Z",
        "config": {
            "Entrypoint": ["/usr/bin/api"], "Cmd": ["--listen", ":8080"], "User": "65532:65532", "WorkingDir": "/srv",
            "ExposedPorts": {"8080/tcp": {}}, "Env": ["RUST_LOG=info", "TZ=UTC"],
            "Labels": {"org.opencontainers.image.source": "https://git.company/team/api", "version": version},
        },
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [
            {"created_by": "FROM gcr.io/distroless/cc-debian13"}, {"created_by": "COPY app /usr/bin/api # buildkit"},
            {"created_by": "/bin/sh -c #(nop) USER 65532:65532", "empty_layer": true},
        ],
    });
    let config = blob(api, repository, CONFIG, config.to_string().as_bytes()).await;
    let base = blob(api, repository, LAYER, &Image::new(1, 210_000).layer).await;
    let app =
        blob(api, repository, LAYER, &Image::new(u64::from(version.as_bytes()[version.len() - 1]), 58_000).layer).await;
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [base, app],
        "annotations": {"org.opencontainers.image.revision": "3fe9a21", "org.opencontainers.image.version": version}})
}

/// A registry with what people have in theirs.
pub async fn furnished() -> (System, Api) {
    let mut access_control = demonstration_rules();
    access_control["groups"] = json!({"operators": {"users": ["alice"]}});
    access_control["adminPolicy"] = json!({"groups": ["operators"], "actions": ["read"]});
    let system = System::start(Setup { access_control, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("seed").await;
    let api = Api::basic(&system.url, "alice", &key);
    for name in ["team/web", "team/worker", "shared/base-images/python", "shared/hello", "public/docs"] {
        api.must_push(name, "1.0", &Image::new(name.len() as u64, 4000)).await;
    }
    for version in ["2.13.9", "2.14.0"] {
        let mut platforms = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let manifest = image(&api, "team/api", architecture, version).await;
            let digest = push(&api, "team/api", &digest(manifest.to_string().as_bytes()), MANIFEST, &manifest).await;
            platforms.push(json!({"mediaType": MANIFEST, "digest": digest, "size": manifest.to_string().len(),
                "platform": {"os": "linux", "architecture": architecture}}));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": platforms});
        let digest = push(&api, "team/api", version, INDEX, &index).await;
        let empty = blob(&api, "team/api", "application/vnd.oci.empty.v1+json", b"{}").await;
        let packages: Vec<Value> = (0..300)
            .map(|i| json!({"name": format!("lib{i:03}"), "versionInfo": format!("1.{i}"), "licenseDeclared": "MIT"}))
            .collect();
        let bom = json!({"spdxVersion": "SPDX-2.3", "packages": packages}).to_string();
        let provenance = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {"runDetails": {"builder": {"id": "https://ci.company/runner"}}, "buildDefinition": {
                "buildType": "https://ci.company/docker", "resolvedDependencies": [{"uri": "https://git.company/team/api"}]}}})
        .to_string();
        let attach = async |subject: &str, kind: &str, content: &str| {
            let layer = blob(&api, "team/api", kind, content.as_bytes()).await;
            let subject = json!({"mediaType": INDEX, "digest": subject, "size": index.to_string().len()});
            let attached = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": empty,
                "layers": [layer], "subject": subject});
            let reference = berth_tests::images::digest(attached.to_string().as_bytes());
            push(&api, "team/api", &reference, MANIFEST, &attached).await
        };
        let sigstore = "application/vnd.dev.sigstore.bundle.v0.3+json";
        attach(&digest, sigstore, "a signature").await;
        let bom = attach(&digest, "application/spdx+json", &bom).await;
        // Something is attached to what is attached.
        attach(&bom, sigstore, "a signature of the bill").await;
        attach(&digest, "application/vnd.in-toto+json", &provenance).await;
        // As older versions of cosign do it.
        let old = blob(&api, "team/api", "application/vnd.dev.cosign.simplesigning.v1+json", b"old").await;
        let old = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": [old]});
        push(&api, "team/api", &format!("{}.sig", digest.replace(':', "-")), MANIFEST, &old).await;
    }
    let chart = json!({"name": "platform", "version": "1.2.3", "appVersion": "9", "description": "All of it",
        "dependencies": [{"name": "postgresql", "version": "16", "repository": "oci://charts.company"}]});
    let config =
        blob(&api, "charts/platform", "application/vnd.cncf.helm.config.v1+json", chart.to_string().as_bytes()).await;
    let mut archive = GzEncoder::new(Vec::new(), Compression::fast());
    archive.write_all(&tar("platform/values.yaml", b"replicas: 2\nimage: team/api\n")).unwrap();
    let archive = archive.finish().unwrap();
    let content = blob(&api, "charts/platform", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", &archive).await;
    let chart = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [content]});
    push(&api, "charts/platform", "1.2.3", MANIFEST, &chart).await;
    (system, api)
}
