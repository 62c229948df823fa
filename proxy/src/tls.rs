//! The certificate that we show, read again when its file changes, and how we shake hands.

use std::{
    any::Any,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use pingora::{
    listeners::{
        TlsAccept,
        tls::{Acceptor, TlsSettings},
    },
    protocols::tls::TlsRef,
    tls::{
        ClientHello, CryptoProvider, ResolvesServerCert, TlsAcceptor, install_default_crypto_provider,
        load_certs_and_key_files, sign::CertifiedKey,
    },
};

use rustls::server::{NoServerSessionStorage, ServerConfig};

use crate::{
    client_authorities::ClientAuthorities, config::Tls, identity::certificate::ClientCertificate, tickets::Tickets,
};

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

/// How we shake hands. A client may show a certificate; it need not, since browsers and others come with something else.
///
/// # Errors
/// A sentence, if the library can't.
pub fn acceptor(
    certificate: Arc<Certificate>,
    clients: Option<Arc<ClientAuthorities>>,
    tickets: Arc<Tickets>,
) -> Result<Acceptor, String> {
    let mut settings = TlsSettings::with_callbacks(Box::new(RememberClient)).map_err(|e| e.to_string())?;
    settings.set_cert_resolver(certificate);
    settings.enable_h2();
    let shows_certificates = clients.is_some();
    if let Some(clients) = clients {
        settings.set_client_cert_verifier(clients);
    }
    let mut acceptor = settings.build();
    let mut config = ServerConfig::clone(acceptor.acceptor.config());
    if shows_certificates {
        // A resumed connection would be trusted for a certificate that nobody has looked at again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = tickets;
    }
    acceptor.acceptor = TlsAcceptor::from(Arc::new(config));
    Ok(acceptor)
}

/// Keeps the certificate that a client has shown with its connection.
struct RememberClient;

#[async_trait]
impl TlsAccept for RememberClient {
    async fn handshake_complete_callback(&self, tls: &TlsRef) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Arc::new(ClientCertificate::new(tls.peer_cert_chain_der()?.to_vec()))))
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
