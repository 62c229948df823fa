//! The authorities of client certificates (`http.tls.cacert`), read again when their file changes.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::secrets;

/// The authorities in use.
pub struct ClientAuthorities {
    path: RwLock<PathBuf>,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    verifier: Arc<dyn ClientCertVerifier>,
    fingerprint: Arc<str>,
}

impl ClientAuthorities {
    /// Reads the file.
    ///
    /// # Errors
    /// A sentence with the key's path and the mend.
    pub fn read(path: &Path) -> Result<Self, String> {
        let current = RwLock::new(load(path)?);
        Ok(Self { path: RwLock::new(path.to_owned()), current })
    }

    /// Reads another file from now on.
    ///
    /// # Errors
    /// As [`ClientAuthorities::read`]; then the old one stays.
    pub fn follow(&self, path: &Path) -> Result<(), String> {
        if *self.path.read().unwrap_or_else(PoisonError::into_inner) == path {
            return Ok(());
        }
        let next = load(path)?;
        path.clone_into(&mut self.path.write().unwrap_or_else(PoisonError::into_inner));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Reads the file again. A bad one is refused, and the old authorities stay.
    pub fn read_again(&self) {
        let path = self.path.read().unwrap_or_else(PoisonError::into_inner).clone();
        match load(&path) {
            Ok(next) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
                tracing::info!("the authorities of client certificates were read again");
            }
            Err(error) => tracing::error!("{error}; the old authorities stay trusted"),
        }
    }

    /// Changes when the file's text does: whatever was checked before is checked again.
    pub fn fingerprint(&self) -> Arc<str> {
        self.current().fingerprint
    }

    /// The fingerprint of the authorities of now, if one of them has signed this chain (DER, the holder's own first).
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Option<Arc<str>> {
        let Current { verifier, fingerprint } = self.current();
        let (own, intermediates) = chain.split_first()?;
        verifier.verify_client_cert(own, intermediates, UnixTime::now()).ok().map(|_| fingerprint)
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes the certificates of the authorities in a file.
fn load(path: &Path) -> Result<Current, String> {
    let problem = |what: &dyn fmt::Display| {
        format!("http.tls.cacert: {}: {what}; expected PEM certificates of the authorities of clients", path.display())
    };
    let pem = fs::read(path).map_err(|e| problem(&e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|e| problem(&e))?).map_err(|e| problem(&e))?;
    }
    if roots.is_empty() {
        return Err(problem(&"holds no certificate"));
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
    let verifier = verifier.allow_unauthenticated().build().map_err(|e| problem(&e))?;
    Ok(Current { verifier, fingerprint: secrets::hash(&String::from_utf8_lossy(&pem)).into() })
}

impl ClientCertVerifier for ClientAuthorities {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: they may change, and a client with several certificates chooses by itself.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.current().verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().verifier.supported_verify_schemes()
    }
}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuthorities").finish_non_exhaustive()
    }
}
