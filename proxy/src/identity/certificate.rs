//! Client certificates: whoever has proved in the TLS handshake that they hold one of `http.tls.cacert` is the user that
//! it names.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Name},
};

use super::{AuthMethod, Identity, Refusal, Rejection, Verifiers};

/// The certificate that a connection was made with, and those between it and its authority.
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// The fingerprint of the authorities that it was last checked with.
    checked_with: Mutex<Option<Arc<str>>>,
}

impl ClientCertificate {
    /// A chain as the client has shown it, its own certificate first.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain, checked_with: Mutex::default() }
    }

    /// The fingerprint of the authorities of now, if one of them vouches for it: they may have changed since the
    /// handshake, and a connection can live for long.
    fn check(&self, verifiers: &Verifiers) -> Option<Arc<str>> {
        let authorities = verifiers.client_authorities.as_ref()?;
        let mut checked_with = self.checked_with.lock().unwrap_or_else(PoisonError::into_inner);
        if *checked_with != Some(authorities.fingerprint()) {
            *checked_with = authorities.verify(&self.chain);
        }
        checked_with.clone()
    }
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate").finish_non_exhaustive()
    }
}

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

/// The holder of a certificate: named by the first of the attributes that it has.
pub fn holder(
    shown: &ClientCertificate,
    verifiers: &Verifiers,
    attributes: &[NameAttribute],
) -> Result<Arc<Identity>, Refusal> {
    let authorities = shown.check(verifiers).ok_or(Rejection::WithdrawnCertificate)?;
    let own = shown.chain.first().map(|own| X509Certificate::from_der(own));
    let Some(Ok((_, certificate))) = own else { return Err(Rejection::UnnamedCertificate.into()) };
    // A connection may outlive it.
    if !certificate.validity().is_valid() {
        return Err(Rejection::ExpiredCertificate.into());
    }
    let user = attributes.iter().find_map(|attribute| name(&certificate, *attribute));
    let user = user.filter(|user| !user.is_empty()).ok_or(Rejection::UnnamedCertificate)?;
    let claims = json!({"subject": certificate.subject().to_string(), "issuer": certificate.issuer().to_string()});
    let claims = claims.as_object().cloned().unwrap_or_else(Map::<String, Value>::new);
    let good_until = Some(certificate.validity().not_after.timestamp());
    let method = AuthMethod::Certificate(authorities.to_string());
    Ok(Arc::new(Identity { good_until, ..Identity::without_person(user, Vec::new(), claims, method) }))
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
