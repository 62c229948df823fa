//! What pages read from manifests and configurations. All of it was written by strangers: whatever isn't of the shape that one
//! expects is left out, and nothing is believed.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md>

use std::collections::BTreeMap;

use berth_oci::{Digest, MediaType};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::words::plain;

/// How many of anything a page shows.
pub const MAX_SHOWN: usize = 200;

/// What of a configuration says how an image runs, and what pages call it.
pub const SETTINGS: [(&str, &str); 7] = [
    ("Entrypoint", "Entrypoint"),
    ("Command", "Cmd"),
    ("User", "User"),
    ("Working dir", "WorkingDir"),
    ("Ports", "ExposedPorts"),
    ("Volumes", "Volumes"),
    ("Environment", "Env"),
];

/// A manifest, as far as pages show it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default)]
    pub config: Option<Part>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub layers: Vec<Part>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub manifests: Vec<Part>,
    #[serde(default)]
    pub subject: Option<Part>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub annotations: BTreeMap<String, String>,
}

/// A descriptor, as far as pages show it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub annotations: BTreeMap<String, String>,
}

/// Go writes `null` for a list or map without elements.
fn or_nothing<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Part {
    /// buildx attaches its attestations to an index as images for no platform.
    pub fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
    }
}

/// What an image runs on.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Platform {
    /// `linux/arm64/v8`
    pub fn name(&self) -> String {
        let parts = [&self.os, &self.architecture, &self.variant].map(|part| plain(part));
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// Something to run.
    Image,
    /// A Helm chart.
    Chart,
    /// A signature, which nobody here has verified.
    Signature,
    /// A bill of materials.
    Bom,
    /// What somebody says of how it was made.
    Attestation,
    /// Anything else.
    Other,
}

impl Artifact {
    /// By the types that tools give what they push.
    pub fn of_type(artifact_type: &str) -> Self {
        let is = |words: &[&str]| words.iter().any(|word| artifact_type.contains(word));
        match artifact_type {
            "" => Self::Image,
            _ if is(&["container.image", "oci.image.config", "oci.image.index", "oci.image.manifest"]) => Self::Image,
            _ if is(&["helm.config"]) => Self::Chart,
            _ if is(&["cosign", "signature", "sigstore", "notary"]) => Self::Signature,
            _ if is(&["spdx", "cyclonedx", "sbom", "syft"]) => Self::Bom,
            _ if is(&["in-toto", "intoto", "slsa", "provenance", "attestation"]) => Self::Attestation,
            _ => Self::Other,
        }
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Chart => "Helm chart",
            Self::Signature => "signature",
            Self::Bom => "SBOM",
            Self::Attestation => "attestation",
            Self::Other => "artifact",
        }
    }
}

impl Document {
    /// Reads a manifest.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Whether it is a list of manifests.
    pub fn is_index(&self, media_type: &str) -> bool {
        media_type == MediaType::OciIndex.as_str() || media_type == MediaType::DockerList.as_str()
    }

    /// What it is.
    pub fn artifact(&self) -> Artifact {
        let config_type = self.config.as_ref().map_or("", |config| config.media_type.as_str());
        Artifact::of_type(self.artifact_type.as_deref().unwrap_or(config_type))
    }

    /// What its blobs weigh.
    pub fn size(&self) -> u64 {
        let parts = self.layers.iter().chain(&self.config);
        parts.fold(0, |sum: u64, part| sum.saturating_add(part.size))
    }
}

/// The configuration of an image, as far as pages show it.
pub struct Config {
    value: Value,
}

impl Config {
    /// Reads a configuration; an empty one, if it is none.
    pub fn parse(bytes: &[u8]) -> Self {
        Self { value: serde_json::from_slice(bytes).unwrap_or_default() }
    }

    /// What it runs on.
    pub fn platform(&self) -> String {
        serde_json::from_value::<Platform>(self.value.clone()).unwrap_or_default().name()
    }

    /// When it was made, as it says itself.
    pub fn created(&self) -> Option<String> {
        self.value["created"].as_str().map(plain)
    }

    /// A text, or the texts of a list, of `config`.
    pub fn texts(&self, key: &str) -> Vec<String> {
        match &self.value["config"][key] {
            Value::String(text) if !text.is_empty() => vec![plain(text)],
            Value::Array(many) => many.iter().take(MAX_SHOWN).filter_map(Value::as_str).map(plain).collect(),
            // A set, as ports and volumes are written.
            Value::Object(set) => set.keys().take(MAX_SHOWN).map(|key| plain(key)).collect(),
            _ => Vec::new(),
        }
    }

    /// The labels.
    pub fn labels(&self) -> Vec<(String, String)> {
        let labels = self.value["config"]["Labels"].as_object().into_iter().flatten().take(MAX_SHOWN);
        labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    }

    /// The command that made each layer, in their order; those that made none are left out.
    pub fn commands(&self) -> Vec<String> {
        let history = self.value["history"].as_array().into_iter().flatten();
        let made_layers = history.filter(|step| step["empty_layer"] != Value::Bool(true));
        made_layers.take(MAX_SHOWN).map(|step| readable(step["created_by"].as_str().unwrap_or_default())).collect()
    }

    /// A text of the document itself, such as a chart has.
    pub fn own(&self, key: &str) -> Option<String> {
        self.value[key].as_str().map(plain)
    }

    /// What a chart depends on: name, version, where it is from.
    pub fn dependencies(&self) -> Vec<(String, String, String)> {
        let all = self.value["dependencies"].as_array().into_iter().flatten().take(MAX_SHOWN);
        let text = |value: &Value, key: &str| plain(value[key].as_str().unwrap_or_default());
        all.map(|one| (text(one, "name"), text(one, "version"), text(one, "repository"))).collect()
    }
}

/// A step of a build without what builders put before it.
fn readable(step: &str) -> String {
    let step = plain(step);
    let step = step.strip_prefix("/bin/sh -c ").unwrap_or(&step);
    let step = step.strip_prefix("#(nop) ").unwrap_or(step).trim();
    step.strip_suffix("# buildkit").unwrap_or(step).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn artifacts_are_called_what_they_are() {
        for (artifact_type, expected) in [
            ("application/vnd.oci.image.config.v1+json", Artifact::Image),
            ("application/vnd.docker.container.image.v1+json", Artifact::Image),
            ("application/vnd.cncf.helm.config.v1+json", Artifact::Chart),
            ("application/vnd.dev.cosign.simplesigning.v1+json", Artifact::Signature),
            ("application/vnd.dev.sigstore.bundle.v0.3+json", Artifact::Signature),
            ("application/spdx+json", Artifact::Bom),
            ("application/vnd.cyclonedx+json", Artifact::Bom),
            ("application/vnd.in-toto+json", Artifact::Attestation),
            ("application/x.anything", Artifact::Other),
        ] {
            assert_eq!(Artifact::of_type(artifact_type), expected, "{artifact_type}");
        }
    }

    #[test]
    fn a_step_is_shown_as_it_was_written() {
        assert_eq!(readable("/bin/sh -c #(nop)  CMD [\"sh\"]"), "CMD [\"sh\"]");
        assert_eq!(readable("COPY app /usr/bin/app # buildkit"), "COPY app /usr/bin/app");
        assert_eq!(readable("/bin/sh -c apt-get update"), "apt-get update");
    }

    proptest! {
        #[test]
        fn no_configuration_panics(text in r#"\{("config":(\{("Env":\[1,"a"\]|"Labels":\{"a":1\}|"User":\[\]),?\}|5),?|"history":(\[\{"created_by":7\}\]|"x"),?|"os":(1|"linux"),?){0,3}\}"#) {
            let config = Config::parse(text.as_bytes());
            let _ = (config.platform(), config.texts("Env"), config.labels(), config.commands(), config.dependencies());
        }
    }
}
