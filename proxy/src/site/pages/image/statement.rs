//! What is in a bill of materials or an attestation: SPDX and CycloneDX documents, and in-toto statements, bare or in the envelopes
//! that cosign and sigstore put around them. Strangers have written them: what isn't of the shape is left out, and all of it is
//! bounded.
//!
//! <https://spdx.github.io/spdx-spec/v2.3/>, <https://cyclonedx.org/docs/1.6/json/>,
//! <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::super::words::plain;

/// The longest document that is read, in bytes, and how many packages of it.
pub const MAX_DOCUMENT_BYTES: usize = 8 * 1024 * 1024;
const MAX_PACKAGES: usize = 50_000;

/// How many envelopes may lie in another.
const MAX_ENVELOPES: usize = 3;

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

/// Reads a document; nothing, if it is none of these.
pub fn statement(bytes: &[u8]) -> Option<Statement> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    for _ in 0..MAX_ENVELOPES {
        // A sigstore bundle has an envelope, and an envelope (DSSE) a payload.
        if let Some(envelope) = value.get_mut("dsseEnvelope") {
            value = envelope.take();
        }
        match value.get("payload").and_then(Value::as_str) {
            Some(payload) => value = serde_json::from_slice(&STANDARD.decode(payload).ok()?).ok()?,
            None => break,
        }
    }
    let predicate_type = value["predicateType"].as_str().map(plain);
    let Some(predicate_type) = predicate_type else { return bom(&value) };
    let predicate = &value["predicate"];
    // Older versions of cosign put the document a level deeper.
    let predicate = predicate.get("Data").unwrap_or(predicate);
    Some(bom(predicate).or_else(|| provenance(predicate)).unwrap_or(Statement::Other { predicate_type }))
}

fn text(value: &Value, key: &str) -> String {
    plain(value[key].as_str().unwrap_or_default())
}

fn bom(value: &Value) -> Option<Statement> {
    let (format, key): (_, _) = if value["spdxVersion"].is_string() {
        ("SPDX", "packages")
    } else if value["bomFormat"] == "CycloneDX" {
        ("CycloneDX", "components")
    } else {
        return None;
    };
    let listed = value[key].as_array().into_iter().flatten().take(MAX_PACKAGES);
    let packages = listed.map(|one| match format {
        "SPDX" => Package { name: text(one, "name"), version: text(one, "versionInfo"), licence: spdx_licence(one) },
        _ => Package { name: text(one, "name"), version: text(one, "version"), licence: cyclonedx_licence(one) },
    });
    let mut packages: Vec<Package> = packages.filter(|package| !package.name.is_empty()).collect();
    packages.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    Some(Statement::Bom { format, packages })
}

fn spdx_licence(package: &Value) -> String {
    let said = ["licenseConcluded", "licenseDeclared"].map(|key| text(package, key));
    said.into_iter().find(|licence| !matches!(licence.as_str(), "" | "NOASSERTION" | "NONE")).unwrap_or_default()
}

fn cyclonedx_licence(component: &Value) -> String {
    let licences = component["licenses"].as_array().into_iter().flatten().take(8).map(|one| {
        let licence = &one["license"];
        [text(one, "expression"), text(licence, "id"), text(licence, "name")].into_iter().find(|it| !it.is_empty())
    });
    licences.flatten().collect::<Vec<_>>().join(", ")
}

/// SLSA's, versions 0.2 and 1. <https://slsa.dev/spec/v1.0/provenance>
fn provenance(predicate: &Value) -> Option<Statement> {
    let definition = &predicate["buildDefinition"];
    let (builder, build_type, materials) = if definition.is_object() {
        let builder = text(&predicate["runDetails"]["builder"], "id");
        (builder, text(definition, "buildType"), &definition["resolvedDependencies"])
    } else if predicate["builder"].is_object() {
        (text(&predicate["builder"], "id"), text(predicate, "buildType"), &predicate["materials"])
    } else {
        return None;
    };
    let sources = materials.as_array().into_iter().flatten().map(|one| text(one, "uri"));
    let sources = sources.filter(|uri| !uri.is_empty()).take(50).collect();
    Some(Statement::Provenance { builder, build_type, sources })
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

    proptest! {
        #[test]
        fn no_document_panics(text in r#"\{("(payload|predicate|predicateType|spdxVersion|packages|components|bomFormat|builder)":(5|"CycloneDX"|\[1\]|\{\}|"e30="),?){0,4}\}"#) {
            let _ = statement(text.as_bytes());
        }
    }
}
