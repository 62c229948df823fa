//! Which service, which bucket, with what credentials.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use object_store::{
    ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, multipart::MultipartStore, signer::Signer,
};

/// What a service is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Small things, and the beginning of large ones.
    Short,
    /// Copies, parts, and the joining of parts.
    Long,
}

impl Patience {
    /// How long a service may be silent in one attempt.
    fn silence(self) -> Duration {
        match self {
            Self::Short => Duration::from_secs(10),
            Self::Long => Duration::from_mins(5),
        }
    }

    /// How long it is tried again.
    fn retry(self) -> RetryConfig {
        RetryConfig { max_retries: 6, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() }
    }
}

/// `storage.storageDriver`. What isn't given is taken from the environment, as each service's own tools take it.
#[derive(Clone, PartialEq)]
pub struct Service {
    /// Which one.
    pub kind: Kind,
    /// The bucket, or Azure's container.
    pub bucket: String,
    /// The folder in it that is ours.
    pub folder: String,
    /// Whether clients are sent there for blobs.
    pub redirect: Option<Redirect>,
}

/// `storage.redirectBlobURL`: clients get an address of the service, signed and good for a short time, instead of the bytes.
#[derive(Clone, Default, PartialEq)]
pub struct Redirect {
    /// Where clients reach the service, if it isn't where we do.
    pub endpoint: Option<String>,
}

/// The services.
#[derive(Clone, PartialEq)]
pub enum Kind {
    /// S3, or something that speaks as it does.
    S3 {
        /// `us-east-1` if there is none.
        region: Option<String>,
        /// Its URL, unless it is Amazon's.
        endpoint: Option<String>,
        /// The id of the key, its secret, and the token of a temporary one.
        credentials: Option<(String, String, Option<String>)>,
        /// The bucket is in the path of a URL, and not in its host.
        path_style: bool,
        /// Its certificate isn't looked at.
        skip_verify: bool,
    },
    /// Google Cloud Storage.
    Gcs {
        /// The key of a service account, JSON.
        key_file: Option<PathBuf>,
    },
    /// Azure Blob Storage.
    Azure {
        /// The storage account.
        account: String,
        /// Its key.
        key: Option<String>,
    },
}

type Clients = (Arc<dyn ObjectStore>, Arc<dyn MultipartStore>);

impl Service {
    /// What signs addresses for clients, if they are sent there.
    pub(super) fn signer(&self) -> Result<Option<Arc<dyn Signer>>, String> {
        let Some(Redirect { endpoint }) = &self.redirect else { return Ok(None) };
        let failed = |error: object_store::Error| format!("storage.redirectBlobURL: {error}");
        let client = ClientOptions::new();
        Ok(Some(match &self.kind {
            Kind::S3 { .. } => {
                let mut builder = self.s3(client);
                if let Some(endpoint) = endpoint {
                    builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
                }
                Arc::new(builder.build().map_err(failed)?)
            }
            Kind::Gcs { key_file } => Arc::new(self.gcs(client, key_file.as_deref()).build().map_err(failed)?),
            Kind::Azure { account, key } => {
                Arc::new(self.azure(client, account, key.as_deref()).build().map_err(failed)?)
            }
        }))
    }

    /// Clients of it.
    pub(super) fn connect(&self, patience: Patience) -> Result<Clients, String> {
        // There is no limit on the whole: a layer may take hours.
        let client = ClientOptions::new().with_timeout_disabled().with_read_timeout(patience.silence());
        let client = client.with_connect_timeout(Duration::from_secs(5));
        let retry = patience.retry();
        match &self.kind {
            Kind::S3 { .. } => both(self.s3(client).with_retry(retry).build()),
            Kind::Gcs { key_file } => both(self.gcs(client, key_file.as_deref()).with_retry(retry).build()),
            Kind::Azure { account, key } => both(self.azure(client, account, key.as_deref()).with_retry(retry).build()),
        }
    }

    fn s3(&self, client: ClientOptions) -> AmazonS3Builder {
        let builder = AmazonS3Builder::from_env().with_bucket_name(&self.bucket);
        let Kind::S3 { region, endpoint, credentials, path_style, skip_verify } = &self.kind else { return builder };
        let mut builder = builder
            .with_client_options(client.with_allow_invalid_certificates(*skip_verify))
            .with_virtual_hosted_style_request(!path_style)
            .with_region(region.as_deref().unwrap_or("us-east-1"));
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some((id, secret, token)) = credentials {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
            if let Some(token) = token {
                builder = builder.with_token(token);
            }
        }
        builder
    }

    fn gcs(&self, client: ClientOptions, key_file: Option<&Path>) -> GoogleCloudStorageBuilder {
        let builder = GoogleCloudStorageBuilder::from_env().with_client_options(client).with_bucket_name(&self.bucket);
        match key_file {
            Some(path) => builder.with_service_account_path(path.to_string_lossy()),
            None => builder,
        }
    }

    fn azure(&self, client: ClientOptions, account: &str, key: Option<&str>) -> MicrosoftAzureBuilder {
        let builder = MicrosoftAzureBuilder::from_env()
            .with_client_options(client)
            .with_account(account)
            .with_container_name(&self.bucket);
        match key {
            Some(key) => builder.with_access_key(key),
            None => builder,
        }
    }
}

fn both<S: ObjectStore + MultipartStore>(built: object_store::Result<S>) -> Result<Clients, String> {
    let store = Arc::new(built.map_err(|e| format!("storage.storageDriver: {e}"))?);
    let objects: Arc<dyn ObjectStore> = Arc::<S>::clone(&store);
    Ok((objects, store))
}

#[cfg(test)]
impl super::Objects {
    /// A bucket of this test alone.
    pub fn in_memory(lease: Duration) -> Self {
        let (objects, parts) = both(Ok(object_store::memory::InMemory::new())).expect("a store");
        let patient = Arc::clone(&objects);
        Self::of_test(super::Inner::new(objects, patient, parts, "a/folder/".to_owned(), lease))
    }

    /// The same bucket as another process sees it.
    pub fn of_another_process(&self) -> Self {
        self.of_another_process_with(self.0.lease)
    }

    /// The same with another time for which garbage is kept.
    pub fn of_another_process_with(&self, lease: Duration) -> Self {
        let super::Inner { objects, patient, parts, prefix, .. } = &*self.0;
        let (objects, patient, parts) = (Arc::clone(objects), Arc::clone(patient), Arc::clone(parts));
        Self::of_test(super::Inner::new(objects, patient, parts, prefix.clone(), lease))
    }

    /// With less room, so that it is soon full.
    fn of_test(inner: super::Inner) -> Self {
        let [parts_ahead, reads_ahead] = [2, 1].map(|n| Arc::new(tokio::sync::Semaphore::new(n)));
        Self(Arc::new(super::Inner { parts_ahead, reads_ahead, ..inner }))
    }
}
