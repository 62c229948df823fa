//! What clients ask of a registry, each over a connection of its own.

use bytes::Bytes;
use http::{
    Method, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, LOCATION},
};
use url::Url;

use crate::{
    Error,
    client::{Asked, Body, Connection, Dialer, empty, full, target_of},
    content::{Image, MANIFEST, digest},
    credential::Credential,
};

/// One client with its connection.
pub struct Client<'a> {
    /// The connection.
    pub connection: Connection,
    url: &'a Url,
    repository: &'a str,
    shown: Option<(&'static str, String)>,
}

impl<'a> Client<'a> {
    /// A client that works in one repository.
    ///
    /// # Errors
    /// If there is no connection, or no token for the credential.
    pub async fn new(
        dialer: &Dialer,
        url: &'a Url,
        credential: &Credential,
        repository: &'a str,
    ) -> Result<Self, Error> {
        let shown = credential.header(dialer, url, repository).await?;
        Ok(Self { connection: dialer.connect(url).await?, url, repository, shown })
    }

    /// A request with the credential.
    pub fn shown(&self, mut asked: Asked) -> Asked {
        asked.headers.extend(self.shown.clone());
        asked
    }

    /// A request for a manifest (end-3, end-7, end-9).
    pub fn manifest(&self, method: Method, reference: &str) -> Asked {
        let asked = Asked::new(method, format!("/v2/{}/manifests/{reference}", self.repository));
        self.shown(asked.with(ACCEPT.as_str(), MANIFEST))
    }

    /// A request for a blob (end-2, end-10).
    pub fn blob(&self, method: Method, digest: &str) -> Asked {
        self.shown(Asked::new(method, format!("/v2/{}/blobs/{digest}", self.repository)))
    }

    /// Pushes an image: its blobs, and its manifest under a tag.
    ///
    /// # Errors
    /// If the registry doesn't take it.
    pub async fn push_image(&mut self, image: &Image, tag: &str) -> Result<(), Error> {
        for bytes in [&image.layer, &image.config] {
            self.push_blob(&digest(bytes), bytes.len() as u64, full(bytes.clone())).await?;
        }
        self.push_manifest(image, tag).await
    }

    /// Pushes a manifest under a tag.
    ///
    /// # Errors
    /// If the registry doesn't take it.
    pub async fn push_manifest(&mut self, image: &Image, tag: &str) -> Result<(), Error> {
        let asked = self.manifest(Method::PUT, tag).with(CONTENT_TYPE.as_str(), MANIFEST);
        self.connection.expect(&asked, full(image.manifest.clone()), &[StatusCode::CREATED]).await.map(drop)
    }

    /// Pushes a blob as docker does: POST, all bytes with one PATCH, and PUT (end-4a, end-5, end-6).
    ///
    /// # Errors
    /// If the registry doesn't take it.
    pub async fn push_blob(&mut self, digest: &str, len: u64, bytes: Body) -> Result<(), Error> {
        let begun = self.begin_upload().await?;
        let chunk = self.with_body(Method::PATCH, &begun, len);
        let sent = self.connection.expect(&chunk, bytes, &[StatusCode::ACCEPTED]).await?;
        let sent = self.location(&sent)?;
        self.finish_upload(sent, digest, 0, empty()).await
    }

    /// The same, as containerd does it, which says the digest before the bytes: POST, and all bytes with PUT (end-4a, end-6).
    ///
    /// # Errors
    /// If the registry doesn't take it.
    pub async fn push_blob_at_once(&mut self, digest: &str, len: u64, bytes: Body) -> Result<(), Error> {
        let begun = self.begin_upload().await?;
        self.finish_upload(begun, digest, len, bytes).await
    }

    /// Returns where it goes on.
    async fn begin_upload(&mut self) -> Result<Url, Error> {
        let begin = self.shown(Asked::new(Method::POST, format!("/v2/{}/blobs/uploads/", self.repository)));
        let begun = self.connection.expect(&begin, empty(), &[StatusCode::ACCEPTED]).await?;
        self.location(&begun)
    }

    async fn finish_upload(&mut self, mut at: Url, digest: &str, len: u64, bytes: Body) -> Result<(), Error> {
        at.query_pairs_mut().append_pair("digest", digest);
        let end = self.with_body(Method::PUT, &at, len);
        self.connection.expect(&end, bytes, &[StatusCode::CREATED]).await.map(drop)
    }

    fn with_body(&self, method: Method, at: &Url, len: u64) -> Asked {
        let asked = Asked::new(method, target_of(at)).with(CONTENT_TYPE.as_str(), "application/octet-stream");
        self.shown(asked.with("content-length", len.to_string()))
    }

    /// Deletes a blob, if that is allowed.
    pub async fn delete_blob(&mut self, digest: &str) {
        let asked = self.blob(Method::DELETE, digest);
        let _ = self.connection.expect(&asked, empty(), &[StatusCode::ACCEPTED]).await;
    }

    fn location(&self, answer: &Response<Bytes>) -> Result<Url, Error> {
        let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = self.url.join(location.ok_or("an upload without a location")?)?;
        if location.host() != self.url.host() {
            return Err("the registry sends uploads to another host, which isn't measured".into());
        }
        Ok(location)
    }
}
