//! What is attached to an image: signatures, bills of materials, attestations, and what is attached to those.
//!
//! Nothing of it is verified here, and so nothing is called signed: it *has a signature*.

use berth_oci::{Descriptor, Digest, Page as ListPage, Repository, Search, TagSelection};
use futures_util::{StreamExt, TryStreamExt, stream};
use maud::{Markup, html};

use super::{
    super::words::{digest as short, plain},
    document::{Artifact, Document, MAX_SHOWN},
};
use crate::{app::App, registry::RegistryError};

/// Of how many things it is asked what is attached to them, and how many are asked about at once.
const MAX_ASKED: usize = 20;
const ASK_CONCURRENCY: usize = 8;

/// Something that is attached to something else.
pub struct Attached {
    /// Where a page of it is, in the repository: `@<digest>` or `:<tag>`.
    address: String,
    digest: Digest,
    kind: Artifact,
    /// What it says that it is.
    name: String,
    children: Vec<Self>,
}

impl Attached {
    fn new(descriptor: &Descriptor) -> Self {
        let artifact_type = descriptor.artifact_type.as_deref();
        let kind = match artifact_type.map_or(Artifact::Other, Artifact::of_type) {
            Artifact::Image => Artifact::Other,
            kind => kind,
        };
        Self {
            address: format!("@{}", descriptor.digest),
            digest: descriptor.digest.clone(),
            kind,
            name: plain(artifact_type.unwrap_or(&descriptor.media_type)),
            children: Vec::new(),
        }
    }

    /// Whether it is a signature of what it is attached to.
    pub fn is_signature(&self) -> bool {
        self.kind == Artifact::Signature
    }
}

/// All that is attached to a manifest: its referrers and theirs, the attestations that buildx puts into an index, and what older
/// versions of cosign keep under tags.
pub async fn attached_to(
    app: &App,
    repository: &Repository,
    digest: &Digest,
    document: &Document,
) -> Result<Vec<Attached>, RegistryError> {
    let referrers = app.registry.referrers(repository, digest).await?;
    let mut all: Vec<Attached> = referrers.iter().take(MAX_SHOWN).map(Attached::new).collect();
    let children = all.iter().take(MAX_ASKED).map(|one| one.digest.clone()).collect::<Vec<_>>();
    let asked = stream::iter(children).map(async |subject| app.registry.referrers(repository, &subject).await);
    let children: Vec<Vec<Descriptor>> = asked.buffered(ASK_CONCURRENCY).try_collect().await?;
    for (one, children) in all.iter_mut().zip(children) {
        one.children = children.iter().take(MAX_ASKED).map(Attached::new).collect();
    }
    let attestations = document.manifests.iter().filter(|part| part.is_attestation()).take(MAX_SHOWN);
    all.extend(attestations.map(|part| Attached {
        address: format!("@{}", part.digest),
        digest: part.digest.clone(),
        kind: Artifact::Attestation,
        name: "of the build".to_owned(),
        children: Vec::new(),
    }));
    all.extend(under_tags(app, repository, digest).await?);
    Ok(all)
}

/// `sha256-<hex>.sig`, `.att` and `.sbom`, as cosign before version 3 names them.
async fn under_tags(app: &App, repository: &Repository, digest: &Digest) -> Result<Vec<Attached>, RegistryError> {
    let prefix = format!("{}-{}.", digest.algorithm(), digest.hex());
    let search = Search { q: Some(prefix.clone()), page: ListPage { n: Some(MAX_ASKED), last: None } };
    let selection = TagSelection { search, ..TagSelection::default() };
    let tags = app.registry.describe_tags(repository, selection).await?;
    let found = tags.into_iter().flat_map(|list| list.tags).filter_map(|tag| {
        let (kind, name) = match tag.tag.strip_prefix(&prefix)? {
            "sig" => (Artifact::Signature, "cosign's, under a tag"),
            "att" => (Artifact::Attestation, "cosign's, under a tag"),
            "sbom" => (Artifact::Bom, "cosign's, under a tag"),
            _ => return None,
        };
        let (address, digest) = (format!(":{}", tag.tag), tag.digest);
        Some(Attached { address, digest, kind, name: name.to_owned(), children: Vec::new() })
    });
    Ok(found.collect())
}

/// Them as a tree.
pub fn tree(repository: &Repository, attached: &[Attached]) -> Markup {
    html! {
        section class="card rows" {
            h2 class="folder" { "Attached to it" }
            (branch(repository, attached))
        }
    }
}

fn branch(repository: &Repository, attached: &[Attached]) -> Markup {
    html! {
        ul class="tree" {
            @for one in attached {
                li {
                    div class="what" {
                        span class="chip" { (one.kind.name()) } " "
                        a class="name" href={ "/image/" (repository) (one.address) } { (one.name) }
                    }
                    span class="soft" { (short(&one.digest.to_string())) }
                    @if !one.children.is_empty() { (branch(repository, &one.children)) }
                }
            }
        }
    }
}
