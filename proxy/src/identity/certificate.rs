//! Client certificates: whoever has proved in the TLS handshake that they hold one of `http.tls.cacert` is the user that
//! it names.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Name},
};

use super::{AuthMethod, Identity, Refusal};

/// Which part of a certificate is the user's name, in zot's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameAttribute {
    /// The subject's common name.
    CommonName,
    /// The whole subject.
    Subject,
    /// The first e-mail address among the alternative names.
    Email,
    /// The first DNS name among them.
    DnsName,
    /// The first URI among them.
    Uri,
}

impl NameAttribute {
    /// The attribute of this name, whatever its case.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "commonname" | "cn" => Self::CommonName,
            "subject" => Self::Subject,
            "email" | "rfc822name" => Self::Email,
            "dnsname" | "dns" => Self::DnsName,
            "uri" | "url" => Self::Uri,
            _ => return None,
        })
    }
}

/// The holder of a certificate (DER) that the handshake has checked: named by the first of the attributes that it has.
pub fn holder(der: &[u8], attributes: &[NameAttribute]) -> Result<Arc<Identity>, Refusal> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Refusal::UnnamedCertificate)?;
    let user = attributes.iter().find_map(|attribute| name(&certificate, *attribute));
    let user = user.filter(|user| !user.is_empty()).ok_or(Refusal::UnnamedCertificate)?;
    let claims = json!({"subject": certificate.subject().to_string(), "issuer": certificate.issuer().to_string()});
    let claims = claims.as_object().cloned().unwrap_or_else(Map::<String, Value>::new);
    let good_until = Some(certificate.validity().not_after.timestamp());
    let identity = Identity::without_provider(user, Vec::new(), claims, AuthMethod::Certificate);
    Ok(Arc::new(Identity { good_until, ..identity }))
}

fn name(certificate: &X509Certificate<'_>, attribute: NameAttribute) -> Option<String> {
    let alternative = |pick: fn(&GeneralName<'_>) -> Option<String>| {
        let names = certificate.subject_alternative_name().ok().flatten()?;
        names.value.general_names.iter().find_map(pick)
    };
    match attribute {
        NameAttribute::CommonName => common_name(certificate.subject()),
        NameAttribute::Subject => Some(certificate.subject().to_string()),
        NameAttribute::Email => alternative(|name| match name {
            GeneralName::RFC822Name(text) => Some((*text).to_owned()),
            _ => None,
        }),
        NameAttribute::DnsName => alternative(|name| match name {
            GeneralName::DNSName(text) => Some((*text).to_owned()),
            _ => None,
        }),
        NameAttribute::Uri => alternative(|name| match name {
            GeneralName::URI(text) => Some((*text).to_owned()),
            _ => None,
        }),
    }
}

/// The one common name; two would be two people.
fn common_name(subject: &X509Name<'_>) -> Option<String> {
    let mut names = subject.iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok().map(str::to_owned),
        _ => None,
    }
}
