//! A certificate authority of the tests' own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use reqwest::{Certificate, Client, redirect::Policy};

/// The authority, and its certificate.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its key, in PEM, for a server that makes certificates itself.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate and its key, in PEM.
    pub fn certify(&self, names: &[&str], common_name: &str, email: Option<&str>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        if !common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        if let Some(email) = email {
            params.subject_alt_names.push(SanType::Rfc822Name(email.try_into().unwrap()));
        }
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A certificate for this name, and its key, that ended in 2021.
    pub fn expired(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes a certificate for localhost, its key and the authority's own certificate; gives the first two.
    pub fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.certify(&["localhost"], "localhost", None);
        let paths = (folder.join("cert.pem"), folder.join("key.pem"));
        fs::write(&paths.1, key).unwrap();
        fs::write(&paths.0, certificate).unwrap();
        fs::write(folder.join("ca.pem"), &self.pem).unwrap();
        paths
    }

    /// A client that trusts this authority alone.
    pub fn client(&self) -> Client {
        let certificate = Certificate::from_pem(self.pem.as_bytes()).unwrap();
        Client::builder().tls_certs_only([certificate]).redirect(Policy::none()).build().unwrap()
    }
}
