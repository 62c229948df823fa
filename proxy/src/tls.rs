//! The certificate that we show, read again when its file changes.

use std::{
    fmt, fs,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use pingora::tls::{
    ClientHello, CryptoProvider, ResolvesServerCert, install_default_crypto_provider, load_certs_and_key_files,
    sign::CertifiedKey,
};

use crate::config::Tls;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

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

    /// Reads the files again whenever they change. A bad one is refused, and the old certificate stays.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut seen = self.changed_at();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.changed_at();
            if now == seen {
                continue;
            }
            seen = now;
            match load(&self.files) {
                Ok(key) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                    tracing::info!("the certificate was read again");
                }
                Err(error) => tracing::error!("{error}; the old certificate stays in use"),
            }
        }
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        [&self.files.certificate, &self.files.key].map(|path| fs::metadata(path).and_then(|m| m.modified()).ok())
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
