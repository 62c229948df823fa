//! A Helm chart: its metadata, what it needs, and its values, which lie in its archive.
//! <https://helm.sh/docs/topics/charts/>

use std::io::Read;

use berth_oci::Repository;
use flate2::read::GzDecoder;
use maud::{Markup, html};

use super::{
    super::words::{link, plain},
    document::{Config, Document},
};
use crate::{app::App, registry::RegistryError};

/// The longest archive that is read, in bytes, and how much of what is in it.
const MAX_ARCHIVE_BYTES: usize = 1024 * 1024;
const MAX_UNPACKED_BYTES: u64 = 16 * 1024 * 1024;

/// How much of the values a page shows.
const MAX_VALUES_BYTES: u64 = 24_000;

/// The default values of a chart, if they can be read.
pub async fn values(app: &App, repository: &Repository, document: &Document) -> Result<Option<String>, RegistryError> {
    let archive = document.layers.iter().find(|layer| layer.media_type.contains("helm.chart.content"));
    let Some(archive) = archive else { return Ok(None) };
    let Some(bytes) = app.registry.small_blob(repository, &archive.digest, MAX_ARCHIVE_BYTES).await? else {
        return Ok(None);
    };
    let read = tokio::task::spawn_blocking(move || values_in(&bytes)).await;
    Ok(read.ok().flatten())
}

/// `<chart>/values.yaml` of the chart itself, and not of one that it brings along.
fn values_in(archive: &[u8]) -> Option<String> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive).take(MAX_UNPACKED_BYTES));
    for entry in archive.entries().ok()? {
        let entry = entry.ok()?;
        let path = entry.path().ok()?.into_owned();
        if path.components().count() == 2 && path.ends_with("values.yaml") {
            let mut text = Vec::new();
            entry.take(MAX_VALUES_BYTES).read_to_end(&mut text).ok()?;
            return Some(String::from_utf8_lossy(&text).into_owned());
        }
    }
    None
}

/// What a chart says of itself.
pub fn card(config: &Config, values: Option<&str>) -> Markup {
    let rows = [
        ("Chart", "name"),
        ("Version", "version"),
        ("App version", "appVersion"),
        ("Description", "description"),
        ("Home", "home"),
    ];
    let dependencies = config.dependencies();
    html! {
        section class="card" {
            h2 { "The chart" }
            dl { @for (name, key) in rows { @if let Some(text) = config.own(key) { dt { (name) } dd { (link(&text)) } } } }
            @if !dependencies.is_empty() {
                h3 { "Dependencies" }
                ul { @for (name, version, from) in &dependencies { li { (name) " " (version) " " span class="soft" { (from) } } } }
            }
        }
        @if let Some(values) = values {
            section class="card" {
                h2 { "Values" }
                div class="scroll tall" tabindex="0" role="region" aria-label="Values" { pre { @for line in values.lines() { (plain(line)) "\n" } } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *content).expect("appended");
        }
        tar.into_inner().and_then(GzEncoder::finish).expect("an archive")
    }

    #[test]
    fn the_values_of_the_chart_itself_are_found_and_bounded() {
        let chart = archive(&[
            ("app/charts/db/values.yaml", b"no: 1"),
            ("app/Chart.yaml", b""),
            ("app/values.yaml", b"replicas: 2"),
        ]);
        assert_eq!(values_in(&chart).as_deref(), Some("replicas: 2"));
        let long = vec![b'a'; 1_000_000];
        let found = values_in(&archive(&[("app/values.yaml", &long)])).expect("values");
        assert_eq!(found.len() as u64, MAX_VALUES_BYTES);
        for none in [&b""[..], b"not an archive", &archive(&[])] {
            assert_eq!(values_in(none), None);
        }
        // A bomb ends where what is read ends.
        let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
        bomb.write_all(&vec![0; 64 * 1024 * 1024]).expect("written");
        assert_eq!(values_in(&bomb.finish().expect("a bomb")), None);
    }
}
