//! What a page of an image is about, as clients write it, and how to pull that.

use berth_oci::{Digest, Reference, Repository};
use maud::{Markup, html};

use super::{image::Artifact, words::command};

/// `name:tag` or `name@digest`, as clients write it.
pub fn target(text: &str) -> Option<(Repository, Reference)> {
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

/// The same for a title.
pub fn titled(repository: &Repository, reference: &Reference) -> String {
    let last = repository.as_str().rsplit('/').next().unwrap_or_default();
    match reference {
        Reference::Tag(tag) => format!("{last}:{tag}"),
        Reference::Digest(digest) => format!("{last}@{}", digest.hex().chars().take(12).collect::<String>()),
    }
}

/// The way to a repository: the folders that it is in.
pub fn crumbs(repository: &Repository) -> Markup {
    html! {
        nav class="crumbs" aria-label="Where this is" {
            a href="/repositories" { "Repositories" } " / "
            @if let Some((folders, _)) = repository.as_str().rsplit_once('/') {
                a href={ "/repositories?q=" (super::words::in_query(folders)) "%2F" } { (folders) } " /"
            }
        }
    }
}

/// The way to something in a repository.
pub fn crumbs_to(repository: &Repository) -> Markup {
    html! {
        nav class="crumbs" aria-label="Where this is" {
            a href="/repositories" { "Repositories" } " / " a href={ "/repository/" (repository) } { (repository) } " /"
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
                    summary { "podman, nerdctl, by digest" }
                    div class="stack" {
                        (command(&format!("podman pull {image}")))
                        (command(&format!("nerdctl pull {image}")))
                        @if let Some(by_digest) = by_digest {
                            p class="fine" { "Exactly this one, wherever the tag moves:" }
                            (command(&format!("docker pull {by_digest}")))
                        }
                    }
                }
            }
            Artifact::Chart => {
                @let version = match reference { Reference::Tag(tag) => format!(" --version {tag}"), Reference::Digest(_) => String::new() };
                (command(&format!("helm pull oci://{host}/{repository}{version}")))
                (command(&format!("helm install my-release oci://{host}/{repository}{version}")))
            }
            _ => (command(&format!("oras pull {image}"))),
        }
    }
}
