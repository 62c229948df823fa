//! What pages know of an image: its manifest, that of the platform that is looked at, and the configuration.

use berth_oci::{Digest, Push, Reference, Repository};

use super::document::{Artifact, Config, Document, MAX_SHOWN, Part, Platform};
use crate::{
    app::App,
    registry::{RegistryError, StoredManifest},
};

/// The longest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: usize = 256 * 1024;

/// An image, as pages show it.
pub struct Image {
    pub repository: Repository,
    pub reference: Reference,
    /// What the reference names.
    pub digest: Digest,
    pub document: Document,
    pub is_index: bool,
    /// Of an index, the one that is looked at.
    pub chosen: Option<Digest>,
    /// The manifest that has layers: that one, or the document itself.
    pub inner: Document,
    pub config: Config,
    pub pushed: Option<Push>,
}

/// The images of an index, and what each is for.
pub fn platforms(document: &Document) -> impl Iterator<Item = (&Part, String)> {
    let images = document.manifests.iter().filter(|part| !part.is_attestation()).take(MAX_SHOWN);
    images.map(|part| {
        let name = part.platform.as_ref().map(Platform::name).filter(|name| !name.is_empty());
        (part, name.unwrap_or_else(|| "any platform".to_owned()))
    })
}

impl Image {
    /// Reads what the pages show of a manifest; of an index, the image for `platform`: its digest, or its name.
    pub async fn read(
        app: &App,
        repository: Repository,
        reference: Reference,
        found: StoredManifest,
        platform: Option<&str>,
    ) -> Result<Self, RegistryError> {
        let document = Document::parse(&found.bytes).unwrap_or_default();
        let is_index = document.is_index(&found.media_type);
        let chosen = is_index.then(|| {
            let is_wanted =
                |part: &Part, name: &str| platform == Some(name) || platform == Some(&part.digest.to_string());
            let wanted = platforms(&document).find(|(part, name)| is_wanted(part, name));
            wanted.or_else(|| platforms(&document).next()).map(|(part, _)| part.digest.clone())
        });
        let chosen = chosen.flatten();
        let inner = match &chosen {
            None => document.clone(),
            Some(chosen) => {
                let found = app.registry.manifest(&repository, &Reference::Digest(chosen.clone())).await?;
                found.and_then(|found| Document::parse(&found.bytes)).unwrap_or_default()
            }
        };
        let config = match &inner.config {
            Some(config) => app.registry.small_blob(&repository, &config.digest, MAX_CONFIG_BYTES).await?,
            None => None,
        };
        let config = Config::parse(&config.unwrap_or_default());
        let StoredManifest { digest, pushed, .. } = found;
        Ok(Self { repository, reference, digest, document, is_index, chosen, inner, config, pushed })
    }

    /// What it is.
    pub fn artifact(&self) -> Artifact {
        self.document.artifact()
    }

    /// What the one that is looked at runs on.
    pub fn platform(&self) -> String {
        let listed = platforms(&self.document).find(|(part, _)| self.chosen.as_ref() == Some(&part.digest));
        listed.map_or_else(|| self.config.platform(), |(_, name)| name)
    }
}
