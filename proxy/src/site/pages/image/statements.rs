//! What a bill of materials or an attestation says, as a person reads it.

use maud::{Markup, html};
use tokio::sync::Semaphore;

use super::{
    super::words::{count, link, plain},
    document::Artifact,
    read::Image,
    statement::{MAX_DOCUMENT_BYTES, Package, Statement, statement},
};
use crate::{app::App, registry::RegistryError};

/// How many documents are read at once, for all who look.
static READING: Semaphore = Semaphore::const_new(2);

/// How many documents of one artifact are read, and how many packages a page shows.
const MAX_DOCUMENTS: usize = 4;
const MAX_PACKAGES_SHOWN: usize = 200;

/// The documents of an artifact that is one.
pub async fn of(app: &App, image: &Image) -> Result<Vec<Statement>, RegistryError> {
    let is_document = |media_type: &str| {
        matches!(Artifact::of_type(media_type), Artifact::Bom | Artifact::Attestation)
            || media_type.contains("dsse")
            || media_type.contains("sigstore.bundle")
    };
    let mut statements = Vec::new();
    let layers = image.inner.layers.iter().filter(|layer| is_document(&layer.media_type));
    for layer in layers.take(MAX_DOCUMENTS) {
        let Ok(_reading) = READING.acquire().await else { break };
        let bytes = app.registry.small_blob(&image.repository, &layer.digest, MAX_DOCUMENT_BYTES).await?;
        let read = tokio::task::spawn_blocking(move || statement(&bytes.unwrap_or_default())).await;
        statements.extend(read.ok().flatten());
    }
    Ok(statements)
}

/// Each in a card; of packages, those with `wanted` in their names.
pub fn cards(name: &str, statements: &[Statement], wanted: &str) -> Markup {
    html! {
        @for one in statements {
            @match one {
                Statement::Bom { format, packages } => (bom(name, format, packages, &plain(wanted.trim()))),
                Statement::Provenance { builder, build_type, sources } => (provenance(builder, build_type, sources)),
                Statement::Other { predicate_type } => section class="card" {
                    h2 { "What it says" }
                    dl { dt { "Kind" } dd { (link(predicate_type)) } }
                    (unverified())
                },
            }
        }
    }
}

fn unverified() -> Markup {
    html! { p class="fine" { "This is what its maker says. Nobody here has verified it." } }
}

fn bom(name: &str, format: &str, packages: &[Package], wanted: &str) -> Markup {
    let lower = wanted.to_lowercase();
    let found: Vec<&Package> = packages.iter().filter(|one| one.name.to_lowercase().contains(&lower)).collect();
    html! {
        section class="card" {
            h2 { "Packages " span class="soft" { "· " (count(packages.len() as u64)) " · " (format) } }
            form class="search" method="get" role="search" action={ "/image/" (name) } {
                input type="search" name="q" value=(wanted) aria-label="Search packages" placeholder="Search packages, such as openssl" data-search="#packages";
                button class="quiet" { "Search" }
            }
            div id="packages" aria-live="polite" {
                @if found.is_empty() { p class="soft" { "No package has that in its name." } } @else {
                    table {
                        thead { tr { th scope="col" { "Package" } th scope="col" { "Version" } th scope="col" { "Licence" } } }
                        tbody { @for one in found.iter().take(MAX_PACKAGES_SHOWN) {
                            tr { th scope="row" { (one.name) } td { (one.version) } td class="soft" { (one.licence) } }
                        } }
                    }
                }
                @if found.len() > MAX_PACKAGES_SHOWN { p class="soft" { "These are " (MAX_PACKAGES_SHOWN) " of " (count(found.len() as u64)) "; search for the others." } }
            }
            (unverified())
        }
    }
}

fn provenance(builder: &str, build_type: &str, sources: &[String]) -> Markup {
    html! {
        section class="card" {
            h2 { "How it was made" }
            dl {
                @for (name, value) in [("Builder", builder), ("Kind of build", build_type)] {
                    @if !value.is_empty() { dt { (name) } dd { (link(value)) } }
                }
                @if !sources.is_empty() { dt { "From" } dd { ul class="plain" { @for source in sources { li { (link(source)) } } } } }
            }
            (unverified())
        }
    }
}
