//! What a manifest is, read from it and from its configuration. All of it was written by strangers: whatever isn't of the shape
//! that one expects is left out, and texts are bounded.

use std::io;

use berth_oci::{ContentOverview, Digest, Repository};
use serde::Deserialize;

use super::{super::Content, record::Description};
use crate::storage::keys;

/// The longest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// The longest text that is kept, in characters, and how many platforms are.
const MAX_TEXT_CHARS: usize = 120;
const MAX_PLATFORMS: usize = 16;

/// The longest part of a platform's name, such as `arm64`, in characters.
const MAX_PLATFORM_CHARS: usize = 24;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    artifact_type: Option<String>,
    config: Option<Part>,
    // Go writes `null` for a list without elements.
    layers: Option<Vec<Part>>,
    manifests: Option<Vec<Part>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(default, rename = "vnd.docker.reference.type")]
    reference_type: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// `linux/arm64/v8`
    fn name(&self) -> String {
        let parts = [&self.os, &self.architecture, &self.variant]
            .map(|part| part.chars().filter(char::is_ascii_graphic).take(MAX_PLATFORM_CHARS).collect::<String>());
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }
}

fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT_CHARS).collect()
}

impl Content {
    /// What a manifest is that a repository holds; nothing, if it doesn't.
    pub(super) async fn describe(&self, repository: &Repository, digest: &Digest) -> io::Result<Option<Description>> {
        if !self.storage.exists(&keys::manifest(repository, digest)).await? {
            return Ok(None);
        }
        // Of what is damaged only that is known that it is there.
        let Some(bytes) = self.storage.read(&keys::blob(digest)).await? else {
            return Ok(Some(Description::default()));
        };
        let len = bytes.len() as u64;
        let Ok(document) = serde_json::from_slice::<Document>(&bytes) else {
            return Ok(Some(Description { len, ..Description::default() }));
        };
        let is_image = |part: &&Part| {
            part.annotations.as_ref().and_then(|all| all.reference_type.as_deref()) != Some("attestation-manifest")
        };
        let images = document.manifests.iter().flatten().filter(is_image).take(MAX_PLATFORMS);
        let mut platforms: Vec<String> =
            images.clone().filter_map(|part| part.platform.as_ref()).map(Platform::name).collect();
        let images = images.map(|part| part.digest.clone()).collect();
        let config_type = document.config.as_ref().map_or("", |config| config.media_type.as_str());
        if let Some(config) = &document.config
            && ["oci.image.config", "container.image"].iter().any(|kind| config_type.contains(kind))
        {
            platforms.push(self.platform(&config.digest).await?);
        }
        platforms.retain(|platform| !platform.is_empty());
        let artifact_type = bounded(document.artifact_type.as_deref().filter(|t| !t.is_empty()).unwrap_or(config_type));
        let size = document
            .layers
            .iter()
            .flatten()
            .chain(&document.config)
            .fold(0, |sum: u64, part| sum.saturating_add(part.size));
        Ok(Some(Description { content: Some(ContentOverview { artifact_type, size, platforms }), images, len }))
    }

    /// What an image runs on, by its configuration.
    async fn platform(&self, config: &Digest) -> io::Result<String> {
        if self.storage.blob_len(config).await?.is_none_or(|len| len > MAX_CONFIG_BYTES) {
            return Ok(String::new());
        }
        let bytes = self.storage.read(&keys::blob(config)).await?.unwrap_or_default();
        Ok(serde_json::from_slice::<Platform>(&bytes).unwrap_or_default().name())
    }
}
