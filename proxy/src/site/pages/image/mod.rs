//! One image, chart or artifact: how to pull it, what it is made of, how it runs, what is attached to it; and its end.

mod document;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use berth_oci::{Descriptor, Digest, Operation, Reference, Repository};
use maud::{Markup, html};
use serde::Deserialize;

pub use self::document::Artifact;
use self::document::{Config, Document, MAX_SHOWN, Part};
use super::{
    frame::{self, Page, Place, heading},
    viewer::{Viewer, nothing_here, registry_failed, sender},
    words::{ago, command, digest, link, plain, size},
};
use crate::{
    app::App,
    observe::Event,
    registry::{Deletion, RegistryError, StoredManifest},
    request::RequestInfo,
};

/// The longest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: usize = 1024 * 1024;

/// The images of an index, and what each is for.
fn platforms(document: &Document) -> impl Iterator<Item = (&Part, String)> {
    let images = document.manifests.iter().filter(|part| !part.is_attestation()).take(MAX_SHOWN);
    images.map(|part| {
        let name = part.platform.as_ref().map(document::Platform::name).filter(|name| !name.is_empty());
        (part, name.unwrap_or_else(|| "any platform".to_owned()))
    })
}

async fn read_config(app: &App, repository: &Repository, config: &Part) -> Result<Config, RegistryError> {
    let bytes = app.registry.small_blob(repository, &config.digest, MAX_CONFIG_BYTES).await?;
    Ok(Config::parse(&bytes.unwrap_or_default()))
}

/// `name:tag` or `name@digest`, as clients write it.
fn target(text: &str) -> Option<(Repository, Reference)> {
    let (name, reference) = match text.split_once('@') {
        Some((name, digest)) => (name, Reference::Digest(digest.parse().ok()?)),
        None => {
            let (name, tag) = text.rsplit_once(':')?;
            (name, Reference::Tag(tag.parse().ok()?))
        }
    };
    Some((name.parse().ok()?, reference))
}

/// As clients write it.
pub fn written(repository: &Repository, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{repository}:{tag}"),
        Reference::Digest(digest) => format!("{repository}@{digest}"),
    }
}

/// The folders that a repository is in, and itself.
pub fn crumbs(repository: &Repository) -> Markup {
    html! {
        p class="crumbs" {
            a href="/repositories" { "Repositories" } " / "
            @if let Some((folders, _)) = repository.as_str().rsplit_once('/') {
                @for folder in folders.split('/') { (folder) " / " }
            }
        }
    }
}

/// How to pull something, for this host.
pub fn commands(
    host: &str,
    repository: &Repository,
    reference: &Reference,
    artifact: Artifact,
    digest: Option<&Digest>,
) -> Markup {
    let image = format!("{host}/{}", written(repository, reference));
    let by_digest = digest.map(|digest| format!("{host}/{repository}@{digest}"));
    html! {
        @match artifact {
            Artifact::Image => {
                (command(&format!("docker pull {image}")))
                details {
                    summary { "Other ways" }
                    div class="stack" {
                        (command(&format!("podman pull {image}")))
                        (command(&format!("nerdctl pull {image}")))
                        @if let Some(by_digest) = by_digest { (command(&format!("docker pull {by_digest}"))) }
                    }
                }
            }
            Artifact::Chart => {
                @let version = match reference { Reference::Tag(tag) => format!(" --version {tag}"), Reference::Digest(_) => String::new() };
                (command(&format!("helm pull oci://{host}/{repository}{version}")))
                details {
                    summary { "Other ways" }
                    (command(&format!("helm install my-release oci://{host}/{repository}{version}")))
                }
            }
            _ => (command(&format!("oras pull {image}"))),
        }
    }
}

#[derive(Deserialize, Default)]
pub struct Choice {
    #[serde(default)]
    platform: Option<String>,
    #[serde(default)]
    raw: Option<String>,
}

/// `GET /image/<name>:<tag>` or `…@<digest>`, `?platform=<digest>`, `?raw`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(text): Path<String>,
    Query(choice): Query<Choice>,
) -> Response {
    let viewer = match Viewer::of(&app, &request, &headers, &format!("/image/{text}")).await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let Some((repository, reference)) = target(&text) else { return nothing_here(&viewer, "image") };
    let pull = Operation::PullManifest { repository: repository.clone(), reference: reference.clone() };
    if !viewer.may(&pull) {
        return nothing_here(&viewer, "image");
    }
    let found = match app.registry.manifest(&repository, &reference).await {
        Ok(Some(found)) => found,
        Ok(None) => return nothing_here(&viewer, "image"),
        Err(error) => return registry_failed(&error, &request),
    };
    if choice.raw.is_some() {
        return raw(&viewer, &repository, &reference, &found);
    }
    let page = Image::read(&app, repository, reference, found, choice.platform.as_deref()).await;
    match page {
        Ok(image) => image.page(&viewer).show(&viewer),
        Err(error) => registry_failed(&error, &request),
    }
}

/// The manifest, byte for byte, as far as a page goes.
fn raw(viewer: &Viewer, repository: &Repository, reference: &Reference, found: &StoredManifest) -> Response {
    const MAX_RAW_CHARS: usize = 40_000;
    let text = String::from_utf8_lossy(&found.bytes);
    let pretty = serde_json::from_str::<serde_json::Value>(&text).ok();
    let text = pretty.and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| text.into_owned());
    let is_long = text.chars().count() > MAX_RAW_CHARS;
    let lines = text.chars().take(MAX_RAW_CHARS).collect::<String>();
    let body = html! {
        (crumbs(repository))
        (heading(&written(repository, reference), &html! { "The manifest, " (size(found.bytes.len() as u64)) ", " (plain(&found.media_type)) }))
        section class="card" {
            div class="scroll" tabindex="0" { pre { @for line in lines.lines() { (plain(line)) "\n" } } }
            @if is_long { p class="soft" { "This is its beginning." } }
        }
        p { a href={ "/image/" (written(repository, reference)) } { "Back to the image" } }
    };
    Page::at(Place::Repositories, written(repository, reference), body).show(viewer)
}

/// What a page shows of an image.
struct Image {
    repository: Repository,
    reference: Reference,
    /// What the reference names.
    digest: Digest,
    document: Document,
    is_index: bool,
    /// Of an index, the one that is looked at: its digest, and what it is for.
    chosen: Option<Digest>,
    /// The manifest that has layers.
    inner: Document,
    config: Config,
    referrers: Vec<Descriptor>,
    pushed: (Option<i64>, Option<String>),
}

impl Image {
    async fn read(
        app: &App,
        repository: Repository,
        reference: Reference,
        found: StoredManifest,
        platform: Option<&str>,
    ) -> Result<Self, RegistryError> {
        let StoredManifest { digest, media_type, bytes, pushed_at, pushed_by } = found;
        let document = Document::parse(&bytes).unwrap_or_default();
        let is_index = document.is_index(&media_type);
        let chosen = is_index.then(|| {
            let mut all = platforms(&document);
            let first = document.manifests.iter().find(|part| !part.is_attestation());
            all.find(|(part, _)| platform == Some(&part.digest.to_string())).map(|(part, _)| part).or(first)
        });
        let chosen = chosen.flatten().map(|part| part.digest.clone());
        let inner = match &chosen {
            None => Document::parse(&bytes).unwrap_or_default(),
            Some(chosen) => {
                let found = app.registry.manifest(&repository, &Reference::Digest(chosen.clone())).await?;
                found.and_then(|found| Document::parse(&found.bytes)).unwrap_or_default()
            }
        };
        let config = match &inner.config {
            Some(config) => read_config(app, &repository, config).await?,
            None => Config::parse(b""),
        };
        let referrers = app.registry.referrers(&repository, &digest).await?;
        let pushed = (pushed_at, pushed_by);
        Ok(Self { repository, reference, digest, document, is_index, chosen, inner, config, referrers, pushed })
    }

    fn name(&self) -> String {
        written(&self.repository, &self.reference)
    }

    fn artifact(&self) -> Artifact {
        self.document.artifact()
    }

    fn page(&self, viewer: &Viewer) -> Page {
        let short = match &self.reference {
            Reference::Tag(tag) => tag.to_string(),
            Reference::Digest(digest) => format!("@{}", digest.hex().chars().take(12).collect::<String>()),
        };
        let last = self.repository.as_str().rsplit('/').next().unwrap_or_default();
        let title = format!("{last} : {short}");
        let artifact = self.artifact();
        let has_signature = self.referrers.iter().any(|referrer| kind_of(referrer) == Artifact::Signature);
        let sentence = html! {
            (artifact.name()) " · " (size(self.inner.size()))
            @if let (Some(at), by) = &self.pushed { " · " (pushed(*at, by.as_deref(), viewer)) }
            @if let Some(created) = self.config.created() { " · says that it was made " (created.get(..10).unwrap_or(&created)) }
            @if has_signature { " " span class="chip" { "has a signature" } }
        };
        let may_delete = viewer.may_delete(&self.repository, &self.reference);
        let body = html! {
            (crumbs_to(&self.repository))
            (heading(&title, &sentence))
            div class="columns" {
                div class="stack" {
                    section class="card" { (commands(&viewer.host, &self.repository, &self.reference, artifact, Some(&self.digest))) }
                    @if self.is_index { (self.platforms()) }
                    @if artifact == Artifact::Chart { (self.chart()) }
                    @if !self.inner.layers.is_empty() { (self.layers()) }
                    @if !self.referrers.is_empty() { (self.attached()) }
                }
                div class="stack" {
                    (self.facts())
                    @if artifact == Artifact::Image { (self.how_it_runs()) }
                    div class="actions" {
                        a class="button quiet" href={ "/image/" (self.name()) "?raw=1" } { "Manifest" }
                        @if may_delete { a class="button danger" href={ "/delete/" (self.name()) } { "Delete…" } }
                    }
                }
            }
        };
        Page::at(Place::Repositories, self.name(), body)
    }

    fn platforms(&self) -> Markup {
        html! {
            section class="card rows" {
                h2 class="folder" { "Platforms" }
                ul {
                    @for (part, name) in platforms(&self.document) {
                        li {
                            a class="name" href={ "/image/" (self.name()) "?platform=" (part.digest) } aria-current=[(self.chosen.as_ref() == Some(&part.digest)).then_some("true")] { (name) }
                            span class="soft" { (digest(&part.digest.to_string())) }
                        }
                    }
                }
            }
        }
    }

    /// Each with a bar beside the largest.
    fn layers(&self) -> Markup {
        let commands = self.config.commands();
        let largest = self.inner.layers.iter().map(|layer| layer.size).max().unwrap_or_default().max(1);
        let count = self.inner.layers.len();
        html! {
            section class="card" {
                h2 { "Layers " span class="soft" { "· " (count) " · " (size(self.inner.size())) } }
                ol class="layers" {
                    @for (i, layer) in self.inner.layers.iter().enumerate().take(MAX_SHOWN) {
                        li {
                            @match commands.get(i).filter(|command| !command.is_empty()) {
                                Some(command) => code { (command) },
                                None => code { (plain(&layer.media_type)) },
                            }
                            span class="number" { (size(layer.size)) }
                            meter min="0" max=(largest) value=(layer.size) aria-label={ "Size of layer " (i + 1) } {}
                        }
                    }
                }
                @if count > MAX_SHOWN { p class="soft" { "These are the first " (MAX_SHOWN) "." } }
            }
        }
    }

    fn attached(&self) -> Markup {
        html! {
            section class="card rows" {
                h2 class="folder" { "Attached to it" }
                ul {
                    @for referrer in self.referrers.iter().take(MAX_SHOWN) {
                        li {
                            div class="what" {
                                span class="chip" { (kind_of(referrer).name()) } " "
                                a class="name" href={ "/image/" (self.repository) "@" (referrer.digest) } {
                                    (plain(referrer.artifact_type.as_deref().unwrap_or(&referrer.media_type)))
                                }
                            }
                            span class="soft" { (digest(&referrer.digest.to_string())) }
                        }
                    }
                }
            }
        }
    }

    fn facts(&self) -> Markup {
        // What it says of itself: of the manifest, or of the configuration's labels.
        let labels = self.config.labels();
        let own = |key: &str| {
            let label = labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
            self.inner.annotations.get(key).or_else(|| self.document.annotations.get(key)).cloned().or(label)
        };
        let said = [
            ("Source", "org.opencontainers.image.source"),
            ("Revision", "org.opencontainers.image.revision"),
            ("Version", "org.opencontainers.image.version"),
            ("Licences", "org.opencontainers.image.licenses"),
            ("Documents", "org.opencontainers.image.documentation"),
        ];
        let more: Vec<(&String, &String)> = self.inner.annotations.iter().take(MAX_SHOWN).collect();
        html! {
            section class="card" {
                h2 { "What it is" }
                dl {
                    @if !self.is_index && self.artifact() == Artifact::Image { dt { "Platform" } dd { (self.config.platform()) } }
                    dt { "Digest" } dd { (digest(&self.digest.to_string())) }
                    @if let Some(subject) = &self.document.subject {
                        dt { "Attached to" } dd { a href={ "/image/" (self.repository) "@" (subject.digest) } { (digest(&subject.digest.to_string())) } }
                    }
                    @for (name, key) in said { @if let Some(value) = own(key) { dt { (name) } dd { (link(&value)) } } }
                }
                @if !more.is_empty() {
                    details {
                        summary { "Annotations" }
                        dl { @for (key, value) in more { dt { (plain(key)) } dd { (link(value)) } } }
                    }
                }
                p class="fine" { "Source, version and licences are what it says of itself." }
            }
        }
    }

    fn how_it_runs(&self) -> Markup {
        let rows = [
            ("Entrypoint", "Entrypoint"),
            ("Command", "Cmd"),
            ("User", "User"),
            ("Folder", "WorkingDir"),
            ("Ports", "ExposedPorts"),
            ("Volumes", "Volumes"),
            ("Environment", "Env"),
        ];
        let rows: Vec<_> = rows
            .map(|(name, key)| (name, self.config.texts(key)))
            .into_iter()
            .filter(|(_, all)| !all.is_empty())
            .collect();
        let labels = self.config.labels();
        html! {
            @if !rows.is_empty() || !labels.is_empty() {
                section class="card" {
                    h2 { "How it runs" }
                    dl { @for (name, all) in &rows { dt { (name) } dd { @for one in all { code { (one) } br; } } } }
                    @if !labels.is_empty() {
                        details {
                            summary { "Labels" }
                            dl { @for (key, value) in &labels { dt { (plain(key)) } dd { (link(value)) } } }
                        }
                    }
                }
            }
        }
    }

    fn chart(&self) -> Markup {
        let rows = [
            ("Chart", "name"),
            ("Version", "version"),
            ("Application", "appVersion"),
            ("Description", "description"),
            ("Home", "home"),
        ];
        let dependencies = self.config.dependencies();
        html! {
            section class="card" {
                h2 { "The chart" }
                dl { @for (name, key) in rows { @if let Some(text) = self.config.own(key) { dt { (name) } dd { (link(&text)) } } } }
                @if !dependencies.is_empty() {
                    h3 { "Needs" }
                    ul { @for (name, version, from) in &dependencies { li { (name) " " (version) " " span class="soft" { (from) } } } }
                }
            }
        }
    }
}

/// When a tag was set, and by whom: that is for who is signed in.
pub fn pushed(at: i64, by: Option<&str>, viewer: &Viewer) -> Markup {
    let by = by.filter(|_| viewer.owner.is_some());
    html! { "pushed " (ago(at)) @if let Some(by) = by { " by " strong { (plain(by)) } } }
}

fn crumbs_to(repository: &Repository) -> Markup {
    html! {
        p class="crumbs" {
            a href="/repositories" { "Repositories" } " / " a href={ "/repository/" (repository) } { (repository) } " /"
        }
    }
}

fn kind_of(referrer: &Descriptor) -> Artifact {
    match referrer.artifact_type.as_deref().map_or(Artifact::Other, Artifact::of_type) {
        Artifact::Image => Artifact::Other,
        other => other,
    }
}

/// `GET /delete/<name>:<tag>` or `…@<digest>`: says what goes, and asks.
pub async fn confirm_deletion(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(text): Path<String>,
) -> Response {
    let (viewer, _) = match Viewer::signed_in(&app, &request, &headers, &format!("/delete/{text}")).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    let found = match target(&text) {
        Some((repository, reference)) if viewer.may_delete(&repository, &reference) => {
            let found = app.registry.manifest(&repository, &reference).await;
            found.map(|found| found.map(|found| (repository, reference, found.digest)))
        }
        _ => Ok(None),
    };
    let (repository, reference, digest) = match found {
        Ok(Some(found)) => found,
        Ok(None) => return nothing_here(&viewer, "image that you may delete"),
        Err(error) => return registry_failed(&error, &request),
    };
    let referrers = app.registry.referrers(&repository, &digest).await.unwrap_or_default();
    let by_digest = Reference::Digest(digest.clone());
    let may_delete_all = viewer.may_delete(&repository, &by_digest);
    let question = |reference: &Reference, button: &str, words: Markup| {
        html! {
            form class="card" method="post" action={ "/delete/" (written(&repository, reference)) } {
                p { (words) }
                div class="actions" { button class="danger sure" { (button) } }
            }
        }
    };
    let body = html! {
        (crumbs_to(&repository))
        (heading(&format!("Delete {text}?"), &html! { "There is no way back but to push it again." }))
        @if let Reference::Tag(tag) = &reference {
            (question(&reference, "Delete the tag", html! {
                "Only the tag " strong { (tag) } " goes. The image stays under its other tags and its digest."
            }))
        }
        @if may_delete_all {
            (question(&by_digest, "Delete the image", html! {
                "The image itself goes, with every tag that points at it. "
                @match referrers.len() {
                    0 => {}
                    1 => "What is attached to it refers to nothing then.",
                    n => { (n) " things that are attached to it refer to nothing then." }
                }
            }))
        }
        p { a href={ "/image/" (text) } { "Keep it" } }
    };
    Page::at(Place::Repositories, format!("Delete {text}?"), body).show(&viewer)
}

/// `POST /delete/<name>:<tag>` or `…@<digest>`
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(text): Path<String>,
) -> Response {
    if let Err(response) = sender(&app, &headers, &request).await {
        return response;
    }
    let (viewer, owner) = match Viewer::signed_in(&app, &request, &headers, "/").await {
        Ok(known) => known,
        Err(response) => return response,
    };
    let Some((repository, reference)) = target(&text).filter(|(name, reference)| viewer.may_delete(name, reference))
    else {
        return nothing_here(&viewer, "image that you may delete");
    };
    match app.registry.delete(&repository, &reference).await {
        Ok(Deletion::Done) => {
            tracing::info!(request = request.id, user = owner.identity.user, target = text, "deleted from a page");
            let operation = Operation::DeleteManifest { repository: repository.clone(), reference: reference.clone() };
            app.audit.record(
                &request.origin(),
                &Event::Request {
                    event: "delete",
                    operation: operation.name(),
                    action: "DELETE",
                    object: &operation.target(),
                    repository: Some(repository.as_str()),
                    reference: Some(reference.to_string()),
                    tags: Vec::new(),
                    from: None,
                    status: StatusCode::ACCEPTED.as_u16(),
                    received: 0,
                    sent: 0,
                },
            );
            Redirect::to(&format!("/repository/{repository}")).into_response()
        }
        Ok(Deletion::NotFound) => nothing_here(&viewer, "image that you may delete"),
        Ok(Deletion::Refused(why)) => {
            frame::refusal(StatusCode::CONFLICT, "Nothing was deleted", &plain(&why), &request.id).into_response()
        }
        Err(error) => registry_failed(&error, &request),
    }
}
