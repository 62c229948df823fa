//! Manifests: the JSON documents that name the parts of an image or artifact.
//!
//! The registry stores a manifest byte for byte; this reads from it only what the registry must know:
//! what it refers to, and what a referrers list says of it.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md>

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Digest, DigestError,
    bounded::{Count, List, Map},
};

/// The largest manifest that is accepted, in bytes (distribution specification, "Pushing Manifests").
pub const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;

/// How many descriptors a manifest may have, each of which is looked up, and how many annotations, those of its descriptors
/// too.
const MAX_ELEMENTS: usize = 10_000;

/// The kinds of manifest that clients push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    /// An OCI image, or an artifact in its shape.
    OciManifest,
    /// An OCI index, a list of manifests.
    OciIndex,
    /// Docker's image manifest, version 2 schema 2.
    DockerManifest,
    /// Docker's list of manifests.
    DockerList,
}

impl MediaType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OciManifest, Self::OciIndex, Self::DockerManifest, Self::DockerList];

    /// The media type as it is written in `Content-Type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn is_list(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

impl FromStr for MediaType {
    type Err = ManifestError;

    /// Reads a `Content-Type`; its parameters are ignored, as the specification says.
    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        Self::ALL
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(essence))
            .ok_or_else(|| ManifestError::MediaType(essence.chars().take(200).collect()))
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reference to content by digest (image specification, "Descriptors").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where else it can be had; a layer with such addresses need not be in the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// The kind of artifact, in a referrers list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free words of whoever made it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What the registry must know of a descriptor in a manifest. The rest of it, which may be long, isn't kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "PartDocument")]
pub struct Part {
    /// What the content is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// It can be had elsewhere, too, so it need not be in the registry.
    pub is_external: bool,
    annotations: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartDocument {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    urls: List<String, { usize::MAX }, Count>,
    #[serde(default)]
    annotations: Map<{ usize::MAX }, Count>,
}

impl From<PartDocument> for Part {
    fn from(part: PartDocument) -> Self {
        let PartDocument { media_type, digest, size, urls, annotations } = part;
        Self { media_type, digest, size, is_external: urls.0.0 > 0, annotations: annotations.0.0 }
    }
}

/// What the registry must know of a manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its kind.
    pub media_type: MediaType,
    /// The blobs that it names: configuration and layers.
    pub blobs: Vec<Part>,
    /// The manifests that must be in the repository before it.
    pub manifests: Vec<Part>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
    /// What a referrers list calls it: `artifactType`, or else the configuration's media type.
    pub artifact_type: Option<String>,
    /// Its annotations, repeated in a referrers list.
    pub annotations: BTreeMap<String, String>,
}

/// Why some bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A `Content-Type` or `mediaType` that is none of the four.
    #[error("'{0}' is not a manifest type: expected an OCI image manifest or index, or Docker's schema 2")]
    MediaType(String),
    /// `Content-Type` and `mediaType` disagree.
    #[error("Content-Type says {header}, the manifest's mediaType says {body}")]
    Disagree {
        /// `Content-Type`.
        header: MediaType,
        /// `mediaType`.
        body: MediaType,
    },
    /// Neither `Content-Type` nor the document says what it is.
    #[error("no Content-Type, and the manifest doesn't say what it is: send the Content-Type of the manifest")]
    Unknown,
    /// Not JSON, or not of the shape.
    #[error("the manifest is not of the shape that the image specification gives: {0}")]
    Shape(#[from] serde_json::Error),
    /// `schemaVersion` isn't 2.
    #[error("schemaVersion must be 2")]
    SchemaVersion,
    /// More than there may be of something.
    #[error("a manifest has at most {MAX_ELEMENTS} {what}, and this one has {count}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// An index and an image in one.
    #[error("a manifest names either manifests, or config and layers")]
    BothShapes,
    /// A digest that is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<const MAX: usize> {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Part>,
    layers: Option<List<Part, MAX>>,
    manifests: Option<List<Part, MAX>>,
    subject: Option<Part>,
    annotations: Option<Map<MAX>>,
}

impl<const MAX: usize> Document<MAX> {
    /// Each list is bounded while it is read; so is what they have together.
    fn must_be_bounded(&self) -> Result<(), ManifestError> {
        let lists = [&self.layers, &self.manifests].into_iter().flatten().flat_map(|list| &list.0);
        let parts: Vec<&Part> = lists.chain(&self.config).chain(&self.subject).collect();
        let of_parts: usize = parts.iter().map(|part| part.annotations).sum();
        let annotations = of_parts + self.annotations.as_ref().map_or(0, |own| own.0.len());
        for (what, count) in [("descriptors", parts.len()), ("annotations", annotations)] {
            if count > MAX {
                return Err(ManifestError::TooMany { what, count });
            }
        }
        Ok(())
    }
}

impl Manifest {
    /// Reads a manifest that was sent with `content_type`.
    ///
    /// # Errors
    /// [`ManifestError`] says what is wrong with it.
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::parse_bounded::<MAX_ELEMENTS>(content_type, bytes)
    }

    /// Reads a manifest that was stored, perhaps before there was a bound to what it may have.
    ///
    /// # Errors
    /// As [`Manifest::parse`].
    pub fn parse_stored(media_type: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::parse_bounded::<{ usize::MAX }>(Some(media_type), bytes)
    }

    fn parse_bounded<const MAX: usize>(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        // A list of its values would be taken for it, too.
        if bytes.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
            return Err(<serde_json::Error as serde::de::Error>::custom("a manifest is an object").into());
        }
        let document: Document<MAX> = serde_json::from_slice(bytes)?;
        document.must_be_bounded()?;
        if document.schema_version != 2 {
            return Err(ManifestError::SchemaVersion);
        }
        let in_body = document.media_type.as_deref().filter(|t| !t.is_empty()).map(MediaType::from_str).transpose()?;
        let media_type = match (content_type.map(MediaType::from_str).transpose()?, in_body) {
            (Some(header), Some(body)) if header != body => return Err(ManifestError::Disagree { header, body }),
            (Some(known), _) | (None, Some(known)) => known,
            (None, None) if document.manifests.is_some() => MediaType::OciIndex,
            (None, None) if document.config.is_some() => MediaType::OciManifest,
            (None, None) => return Err(ManifestError::Unknown),
        };
        // Read as an index by one and as an image by another, such a document would name different things.
        if document.manifests.is_some() && (document.config.is_some() || document.layers.is_some()) {
            return Err(ManifestError::BothShapes);
        }
        let given = document.artifact_type.filter(|t| !t.is_empty());
        let (blobs, manifests, artifact_type) = if media_type.is_list() {
            let missing = || <serde_json::Error as serde::de::Error>::missing_field("manifests");
            (Vec::new(), document.manifests.ok_or_else(missing)?.0, given)
        } else {
            let config =
                document.config.ok_or_else(|| <serde_json::Error as serde::de::Error>::missing_field("config"))?;
            let artifact_type = given.or_else(|| Some(config.media_type.clone()));
            let layers = document.layers.unwrap_or_default().0;
            (std::iter::once(config).chain(layers).collect(), Vec::new(), artifact_type)
        };
        Ok(Self {
            media_type,
            blobs,
            manifests,
            subject: document.subject.map(|subject| subject.digest),
            artifact_type,
            annotations: document.annotations.unwrap_or_default().0,
        })
    }

    /// The blobs that must be in the repository before it: all but the layers that can be had elsewhere.
    pub fn required_blobs(&self) -> impl Iterator<Item = &Part> {
        self.blobs.iter().filter(|blob| !blob.is_external)
    }

    /// How a referrers list describes this manifest, whose own bytes have `digest` and `size`.
    pub fn descriptor(&self, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: self.media_type.to_string(),
            digest,
            size,
            urls: Vec::new(),
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn an_artifact_is_called_by_its_type_or_its_configuration() {
        let plain = format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{D}","size":0}}}}"#);
        let named = plain.replacen('{', r#"{"artifactType":"c/d","#, 1);
        for (text, expected) in [(&plain, "a/b"), (&named, "c/d")] {
            let manifest = Manifest::parse(None, text.as_bytes()).expect(text);
            assert_eq!(manifest.media_type, MediaType::OciManifest);
            assert_eq!(manifest.artifact_type.as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_layer_that_is_kept_elsewhere_is_not_required() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{D}","size":0}},"layers":[{{"digest":"{D}","size":0,"urls":["https://x"]}}]}}"#
        );
        let manifest = Manifest::parse(None, text.as_bytes()).expect("a manifest");
        assert_eq!((manifest.blobs.len(), manifest.required_blobs().count()), (2, 1));
    }

    #[test]
    fn a_content_type_that_contradicts_the_document_is_refused() {
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, MediaType::OciIndex);
        let error = Manifest::parse(Some(MediaType::OciManifest.as_str()), text.as_bytes());
        assert!(matches!(error, Err(ManifestError::Disagree { .. })), "{error:?}");
    }

    #[test]
    fn what_has_too_many_parts_or_annotations_is_refused_wherever_they_are() {
        let part = |more: &str| format!(r#"{{"digest":"{D}","size":0{more}}}"#);
        let annotations = |count: usize| {
            let entries: Vec<_> = (0..count).map(|i| format!(r#""{i}":"-""#)).collect();
            format!(r#","annotations":{{{}}}"#, entries.join(","))
        };
        let parts = |count| vec![part(""); count].join(",");
        let half = annotations(MAX_ELEMENTS / 2);
        for (document, allowed) in [
            (format!(r#""config":{},"layers":[{}]"#, part(""), parts(MAX_ELEMENTS - 1)), true),
            (format!(r#""config":{},"layers":[{}]"#, part(""), parts(MAX_ELEMENTS)), false),
            (format!(r#""manifests":[{}]"#, parts(MAX_ELEMENTS + 1)), false),
            (format!(r#""manifests":[]{}"#, annotations(MAX_ELEMENTS)), true),
            (format!(r#""manifests":[]{}"#, annotations(MAX_ELEMENTS + 1)), false),
            (format!(r#""config":{}{half}"#, part(&half)), true),
            (format!(r#""config":{}{half}"#, part(&annotations(MAX_ELEMENTS / 2 + 1))), false),
        ] {
            let parsed = Manifest::parse(None, format!(r#"{{"schemaVersion":2,{document}}}"#).as_bytes());
            match parsed {
                Ok(_) => assert!(allowed),
                Err(error) => assert!(!allowed && error.to_string().contains("at most 10000"), "{error}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text in r#"\{"schemaVersion":2,("manifests":\[\]|"config":\{\}|"x":[0-9]|,){0,4}\}"#) {
            let _ = Manifest::parse(None, &bytes);
            let _ = Manifest::parse(None, text.as_bytes());
        }
    }
}
