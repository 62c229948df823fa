//! The certificate that we show, read again when its file changes; and those that clients show.

use std::{
    any::Any,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use pingora::{
    listeners::{TlsAccept, tls::TlsSettings},
    protocols::tls::TlsRef,
    tls::{
        CertificateDer, ClientCertVerified, ClientCertVerifier, ClientHello, CryptoProvider, DigitallySignedStruct,
        HandshakeSignatureValid, ResolvesServerCert, RootCertStore, RusTlsError as TlsError, SignatureScheme, UnixTime,
        WebPkiClientVerifier, install_default_crypto_provider, load_ca_file_into_store, load_certs_and_key_files,
        sign::CertifiedKey,
    },
};

use rustls::DistinguishedName;

use crate::config::Tls;

/// The certificate in use.
pub struct Certificate {
    files: Tls,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// A sentence with the key's path and the mend.
    pub fn read(files: &Tls) -> Result<Self, String> {
        let current = load(files)?;
        Ok(Self { files: files.clone(), current: RwLock::new(Arc::new(current)) })
    }

    /// Reads the files again. Bad ones are refused, and the old certificate stays.
    pub fn read_again(&self) {
        match load(&self.files) {
            Ok(key) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                tracing::info!("the certificate was read again");
            }
            Err(error) => tracing::error!("{error}; the old certificate stays in use"),
        }
    }
}

fn load(files: &Tls) -> Result<CertifiedKey, String> {
    let problem =
        |what: String| format!("http.tls: {what}; expected a PEM certificate chain in cert and its key in key");
    install_default_crypto_provider();
    let provider = CryptoProvider::get_default().ok_or_else(|| problem("no cryptography".to_owned()))?;
    let (certificate, key) = (files.certificate.to_string_lossy(), files.key.to_string_lossy());
    let loaded = load_certs_and_key_files(&certificate, &key).map_err(|e| problem(e.to_string()))?;
    let (chain, key) = loaded.ok_or_else(|| problem("a certificate or a key is missing in the files".to_owned()))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| problem(e.to_string()))
}

/// How a listener of ours shakes hands. A client may show a certificate; it need not, since browsers and others come
/// with something else.
///
/// # Errors
/// A sentence with the key's path, if the authorities of clients can't be read.
pub fn settings(certificate: Arc<Certificate>, clients: Option<Arc<ClientAuthorities>>) -> Result<TlsSettings, String> {
    let mut settings = TlsSettings::with_callbacks(Box::new(RememberClient)).map_err(|e| e.to_string())?;
    settings.set_cert_resolver(certificate);
    settings.enable_h2();
    if let Some(clients) = clients {
        settings.set_client_cert_verifier(clients);
    }
    Ok(settings)
}

/// The authorities of client certificates, read again when their file changes.
pub struct ClientAuthorities {
    path: PathBuf,
    current: RwLock<Arc<dyn ClientCertVerifier>>,
}

impl ClientAuthorities {
    /// Reads the file.
    ///
    /// # Errors
    /// A sentence with the key's path and the mend.
    pub fn read(path: &Path) -> Result<Self, String> {
        let current = client_verifier(path)?;
        Ok(Self { path: path.to_owned(), current: RwLock::new(current) })
    }

    /// Reads the file again. A bad one is refused, and the old authorities stay.
    pub fn read_again(&self) {
        match client_verifier(&self.path) {
            Ok(verifier) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = verifier;
                tracing::info!("the authorities of client certificates were read again");
            }
            Err(error) => tracing::error!("{error}; the old authorities stay trusted"),
        }
    }

    fn current(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
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
    ) -> Result<ClientCertVerified, TlsError> {
        self.current().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.current().verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.current().verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().supported_verify_schemes()
    }
}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuthorities").finish_non_exhaustive()
    }
}

/// Takes the certificates of the authorities in a file.
///
/// # Errors
/// A sentence with the key's path and the mend.
fn client_verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let problem = |what: &dyn fmt::Display| {
        format!("http.tls.cacert: {}: {what}; expected PEM certificates of the authorities of clients", path.display())
    };
    fs::metadata(path).map_err(|e| problem(&e))?;
    install_default_crypto_provider();
    let text = path.to_string_lossy().into_owned();
    let mut roots = RootCertStore::empty();
    load_ca_file_into_store(&text, &mut roots).map_err(|e| problem(&e))?;
    if roots.is_empty() {
        return Err(problem(&"holds no certificate"));
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated();
    verifier.build().map_err(|e| problem(&e))
}

/// The certificate that a client has shown, in DER, as the connection remembers it.
pub struct ClientCertificate(pub Vec<u8>);

struct RememberClient;

#[async_trait]
impl TlsAccept for RememberClient {
    async fn handshake_complete_callback(&self, tls: &TlsRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let der = tls.peer_certificate_der()?.to_vec();
        Some(Arc::new(ClientCertificate(der)))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}
