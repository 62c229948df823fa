//! What is in a bill of materials or an attestation: SPDX and CycloneDX documents, and in-toto statements, bare or in the envelopes
//! that cosign and sigstore put around them. Strangers have written them: what isn't of the shape is left out, and all of it is
//! bounded.
//!
//! <https://spdx.github.io/spdx-spec/v2.3/>, <https://cyclonedx.org/docs/1.6/json/>,
//! <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::Error};

use super::lenient::{Object, Objects, Text};

/// The longest document that is read, in bytes, and how many packages of it.
pub const MAX_DOCUMENT_BYTES: usize = 8 * 1024 * 1024;
const MAX_PACKAGES: usize = 50_000;

/// How many envelopes may lie in another, and how many materials and licences are shown.
const MAX_ENVELOPES: usize = 3;
const MAX_SOURCES: usize = 50;
const MAX_LICENCES: usize = 8;

/// A package of a bill of materials.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub licence: String,
}

/// What a document is.
#[derive(Debug, PartialEq, Eq)]
pub enum Statement {
    /// Packages, as a format calls itself.
    Bom { format: &'static str, packages: Vec<Package> },
    /// What somebody says of how it was made: names and values.
    Provenance { builder: String, build_type: String, sources: Vec<String> },
    /// Another statement: what kind it is.
    Other { predicate_type: String },
}

/// All that is looked for in a document, whichever it is.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    // A sigstore bundle has an envelope, an envelope (DSSE) a payload, a statement a predicate.
    dsse_envelope: Object<Envelope>,
    payload: Payload,
    predicate_type: Text,
    predicate: Object<Box<Document>>,
    /// Older versions of cosign put the document a level deeper.
    #[serde(rename = "Data")]
    data: Object<Box<Document>>,
    // SPDX
    spdx_version: Text,
    packages: Objects<SpdxPackage, MAX_PACKAGES>,
    // CycloneDX
    bom_format: Text,
    components: Objects<Component, MAX_PACKAGES>,
    // SLSA provenance, versions 0.2 and 1. <https://slsa.dev/spec/v1.0/provenance>
    builder: Object<Builder>,
    build_type: Text,
    materials: Objects<Material, MAX_SOURCES>,
    run_details: Object<RunDetails>,
    build_definition: Object<BuildDefinition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Envelope {
    payload: Payload,
}

/// A document in Base64, as long as it is.
#[derive(Default)]
struct Payload(Option<String>);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Some(text))).map_err(|_| D::Error::custom("no payload"))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpdxPackage {
    name: Text,
    version_info: Text,
    license_concluded: Text,
    license_declared: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Component {
    name: Text,
    version: Text,
    licenses: Objects<LicenceChoice, MAX_LICENCES>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LicenceChoice {
    expression: Text,
    license: Object<Licence>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Licence {
    id: Text,
    name: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Builder {
    id: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Material {
    uri: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RunDetails {
    builder: Object<Builder>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BuildDefinition {
    build_type: Text,
    resolved_dependencies: Objects<Material, MAX_SOURCES>,
}

/// Reads a document; nothing, if it is none of these.
pub fn statement(bytes: &[u8]) -> Option<Statement> {
    let mut document: Document = serde_json::from_slice(bytes).ok()?;
    for _ in 0..MAX_ENVELOPES {
        let payload = document.dsse_envelope.0.take().map_or(document.payload.0.take(), |envelope| envelope.payload.0);
        let Some(payload) = payload else { break };
        document = serde_json::from_slice(&STANDARD.decode(payload).ok()?).ok()?;
    }
    let Text(predicate_type) = std::mem::take(&mut document.predicate_type);
    if predicate_type.is_empty() {
        return bom(document);
    }
    let other = Statement::Other { predicate_type };
    let Some(predicate) = document.predicate.0 else { return Some(other) };
    let predicate = match *predicate {
        Document { data: Object(Some(data)), .. } => *data,
        predicate => predicate,
    };
    Some(match provenance(&predicate) {
        Some(provenance) => provenance,
        None => bom(predicate).unwrap_or(other),
    })
}

fn bom(document: Document) -> Option<Statement> {
    let (format, mut packages): (_, Vec<Package>) = if !document.spdx_version.0.is_empty() {
        ("SPDX", document.packages.0.into_iter().map(Package::from).collect())
    } else if document.bom_format.0 == "CycloneDX" {
        ("CycloneDX", document.components.0.into_iter().map(Package::from).collect())
    } else {
        return None;
    };
    packages.retain(|package| !package.name.is_empty());
    packages.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    Some(Statement::Bom { format, packages })
}

impl From<SpdxPackage> for Package {
    fn from(package: SpdxPackage) -> Self {
        let said = [package.license_concluded.0, package.license_declared.0];
        let licence = said.into_iter().find(|licence| !matches!(licence.as_str(), "" | "NOASSERTION" | "NONE"));
        Self { name: package.name.0, version: package.version_info.0, licence: licence.unwrap_or_default() }
    }
}

impl From<Component> for Package {
    fn from(component: Component) -> Self {
        let licences = component.licenses.0.into_iter().filter_map(|choice| {
            let licence = choice.license.0.unwrap_or_default();
            [choice.expression.0, licence.id.0, licence.name.0].into_iter().find(|text| !text.is_empty())
        });
        let licence = licences.collect::<Vec<_>>().join(", ");
        Self { name: component.name.0, version: component.version.0, licence }
    }
}

fn provenance(predicate: &Document) -> Option<Statement> {
    let id = |builder: &Object<Builder>| builder.0.as_ref().map(|builder| builder.id.0.clone()).unwrap_or_default();
    let (builder, build_type, materials) = match (&predicate.build_definition.0, &predicate.builder) {
        (Some(definition), _) => {
            let builder = predicate.run_details.0.as_ref().map(|details| id(&details.builder)).unwrap_or_default();
            (builder, &definition.build_type, &definition.resolved_dependencies)
        }
        (None, builder @ Object(Some(_))) => (id(builder), &predicate.build_type, &predicate.materials),
        (None, Object(None)) => return None,
    };
    let sources = materials.0.iter().map(|material| material.uri.0.clone()).filter(|uri| !uri.is_empty()).collect();
    Some(Statement::Provenance { builder, build_type: build_type.0.clone(), sources })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn package(name: &str, version: &str, licence: &str) -> Package {
        Package { name: name.to_owned(), version: version.to_owned(), licence: licence.to_owned() }
    }

    #[test]
    fn both_formats_are_read_bare_and_in_envelopes() {
        let spdx = json!({"spdxVersion": "SPDX-2.3", "packages": [
            {"name": "zlib", "versionInfo": "1.3", "licenseConcluded": "NOASSERTION", "licenseDeclared": "Zlib"},
            {"name": "bash", "versionInfo": "5.2", "licenseConcluded": "GPL-3.0-or-later"}, {"versionInfo": "nameless"}, 7]});
        let expected = Statement::Bom {
            format: "SPDX",
            packages: vec![package("bash", "5.2", "GPL-3.0-or-later"), package("zlib", "1.3", "Zlib")],
        };
        assert_eq!(statement(spdx.to_string().as_bytes()), Some(expected));
        let cyclonedx = json!({"bomFormat": "CycloneDX", "components": [
            {"name": "a", "version": "1", "licenses": [{"license": {"id": "MIT"}}, {"license": {"name": "Own"}}]},
            {"name": "b", "licenses": [{"expression": "MIT OR Apache-2.0"}]}]});
        let expected = || {
            let packages = vec![package("a", "1", "MIT, Own"), package("b", "", "MIT OR Apache-2.0")];
            Some(Statement::Bom { format: "CycloneDX", packages })
        };
        assert_eq!(statement(cyclonedx.to_string().as_bytes()), expected());
        let in_toto = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://cyclonedx.org/bom", "predicate": cyclonedx});
        let envelope =
            json!({"payload": STANDARD.encode(in_toto.to_string()), "payloadType": "application/vnd.in-toto+json"});
        let bundle = json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope});
        for document in [in_toto, envelope, bundle] {
            assert_eq!(statement(document.to_string().as_bytes()), expected(), "{document}");
        }
    }

    #[test]
    fn provenance_says_who_built_it_from_what() {
        let old = json!({"predicateType": "https://slsa.dev/provenance/v0.2", "predicate": {"builder": {"id": "b"}, "buildType": "t",
            "materials": [{"uri": "git+https://git.company/x"}]}});
        let new = json!({"predicateType": "https://slsa.dev/provenance/v1", "predicate": {"runDetails": {"builder": {"id": "b"}},
            "buildDefinition": {"buildType": "t", "resolvedDependencies": [{"uri": "git+https://git.company/x"}, 5]}}});
        for document in [old, new] {
            let Some(Statement::Provenance { builder, build_type, sources }) =
                statement(document.to_string().as_bytes())
            else {
                panic!("{document}")
            };
            assert_eq!(
                (builder.as_str(), build_type.as_str(), sources),
                ("b", "t", vec!["git+https://git.company/x".to_owned()])
            );
        }
        let other = json!({"predicateType": "https://company/reviewed", "predicate": 5});
        let expected = Statement::Other { predicate_type: "https://company/reviewed".to_owned() };
        assert_eq!(statement(other.to_string().as_bytes()), Some(expected));
        for none in ["", "5", "{}", "[]", r#"{"payload": "%%"}"#, r#"{"payload": 5}"#] {
            assert_eq!(statement(none.as_bytes()), None, "{none}");
        }
    }

    /// Of what isn't looked for nothing is kept, however much there is.
    #[test]
    fn a_long_list_is_cut_and_what_is_beside_it_is_passed_over() {
        let noise = format!("[{}]", vec![r#"{"a":[{}]}"#; 100_000].join(","));
        let package = r#"{"name":"p","versionInfo":{"x":[1]},"licenseDeclared":7}"#;
        let packages = vec![package; MAX_PACKAGES + 1000].join(",");
        let document = format!(r#"{{"z":{noise},"spdxVersion":"SPDX-2.3","packages":[5,[{noise}],{packages}]}}"#);
        let Some(Statement::Bom { packages, .. }) = statement(document.as_bytes()) else { panic!("no packages") };
        assert!((MAX_PACKAGES - 2..=MAX_PACKAGES).contains(&packages.len()), "{}", packages.len());
        assert_eq!(packages[0], super::tests::package("p", "", ""));
    }

    proptest! {
        #[test]
        fn no_document_panics(text in r#"\{("(payload|predicate|predicateType|spdxVersion|packages|components|bomFormat|builder)":(5|"CycloneDX"|\[1\]|\{\}|"e30="),?){0,4}\}"#) {
            let _ = statement(text.as_bytes());
        }
    }
}
