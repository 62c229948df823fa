//! Storage in a bucket of S3, Google Cloud Storage or Azure, which several registries may share.
//!
//! The same keys as in a directory. A write is durable when the service has acknowledged it; conditional writes decide
//! between two registries that write the same name, and [`gc_leases`] between one that pushes and one that collects.

mod errors;
mod gc_leases;
mod service;
mod small_blobs;
mod upload;

use std::{
    future::{self, Future},
    io,
    ops::Range,
    path::{self, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use berth_oci::{Algorithm, Digest, Repository, UploadId};
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http::Method;
use object_store::{
    Error, GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    UpdateVersion, WriteMultipart, multipart::MultipartStore, path::Path, signer::Signer,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::AbortHandle,
};

pub use self::service::{Kind, Redirect, Service};
use self::{
    errors::{REQUEST_TIMEOUT, failed, found, in_time, time_for, within},
    gc_leases::KnownLeases,
    small_blobs::{BlobInMemory, MAX_BLOB_BYTES, SmallBlobs},
};
use super::{Blob, Condition, Space, Storage, StoredBlob, Upload, UploadError, first_line, keys};

/// How large the parts are in which a blob is sent: the same for all but the last, as some services demand, and large
/// enough for 10,000 of them to make 80 GB.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// How many parts all uploads together send ahead: 128 MiB.
const ALL_PARTS_AHEAD: usize = 16;

/// How much of an object is asked for with the question whether it is there.
const OPENED_BYTES: u64 = 256 * 1024;

/// A large object is read in pieces of as many bytes.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// How many of them are asked for at once, for how many readers: 64 MiB in all. Other readers get the whole with one request.
const PIECES_AHEAD: usize = 4;
const MAX_READERS_AHEAD: usize = 4;

/// How many parts are on their way at once when a file is sent.
const PART_CONCURRENCY: usize = 2;

/// What is longer may take a while to be sent.
const MAX_SMALL_BYTES: usize = 64 * 1024;

/// How many small objects are written or removed at once for one request.
const KEY_CONCURRENCY: usize = 16;

/// How long a bucket may take to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the address of a blob is good that a client gets: to begin with it.
const ADDRESS_LIFETIME: Duration = Duration::from_mins(5);

/// The most that services copy in one request: 5 GB at S3.
const MAX_COPY_BYTES: u64 = 5_000_000_000;

/// A bucket, or a folder of it.
#[derive(Clone)]
pub struct Objects(Arc<Inner>);

struct Inner {
    objects: Arc<dyn ObjectStore>,
    /// The same for what takes long: copies, and the parts of large objects.
    patient: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    /// Whether parts belong to an upload. At Azure they belong to the name that they will have, where others may send theirs.
    keeps_uploads_apart: bool,
    /// Signs addresses for clients, if they are sent to the service.
    signer: Option<Arc<dyn Signer>>,
    /// What all our keys begin with: nothing, or a folder with a slash at its end.
    prefix: String,
    /// How long a promise is kept.
    lease: Duration,
    known_leases: KnownLeases,
    small_blobs: SmallBlobs,
    /// The room for parts that uploads send ahead of the one that each may.
    parts_ahead: Arc<Semaphore>,
    /// The room for readers that are sent pieces ahead.
    reads_ahead: Arc<Semaphore>,
}

impl Inner {
    /// With the defaults: it keeps uploads apart, and signs nothing.
    fn new(
        objects: Arc<dyn ObjectStore>,
        patient: Arc<dyn ObjectStore>,
        parts: Arc<dyn MultipartStore>,
        prefix: String,
        lease: Duration,
    ) -> Self {
        let [parts_ahead, reads_ahead] = [ALL_PARTS_AHEAD, MAX_READERS_AHEAD].map(|n| Arc::new(Semaphore::new(n)));
        Self {
            objects,
            patient,
            parts,
            keeps_uploads_apart: true,
            signer: None,
            prefix,
            lease,
            known_leases: KnownLeases::new(lease),
            small_blobs: SmallBlobs::new(),
            parts_ahead,
            reads_ahead,
        }
    }
}

impl Objects {
    /// The bucket of `service`. Nothing is asked of it yet. `lease` is how long garbage is kept.
    ///
    /// # Errors
    /// A sentence, if a client of it can't be made.
    pub fn open(service: &Service, lease: Duration) -> Result<Self, String> {
        let (objects, _) = service.connect(service::Patience::Short)?;
        let (patient, parts) = service.connect(service::Patience::Long)?;
        let signer = service.signer()?;
        let folder = service.folder.trim_matches('/');
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let keeps_uploads_apart = !matches!(service.kind, Kind::Azure { .. });
        let inner = Inner::new(objects, patient, parts, prefix, lease);
        Ok(Self(Arc::new(Inner { signer, keeps_uploads_apart, ..inner })))
    }

    /// Everything in it, with its length: for who takes over a store of another kind.
    ///
    /// # Errors
    /// If it can't be listed.
    pub async fn all(&self) -> io::Result<Vec<(String, u64)>> {
        let prefix = Path::parse(&self.0.prefix).map_err(io::Error::other)?;
        let listed = self.0.objects.list(Some(&prefix)).map_err(failed);
        let key =
            |object: ObjectMeta| Some((object.location.as_ref().strip_prefix(&self.0.prefix)?.to_owned(), object.size));
        listed.try_filter_map(|object| future::ready(Ok(key(object)))).try_collect().await
    }

    /// Any object, open for reading.
    ///
    /// # Errors
    /// If the service doesn't say whether it is there.
    pub async fn open_object(&self, key: &str) -> io::Result<Option<Box<dyn Blob>>> {
        let opened = self.begin_reading(key).await?;
        Ok(opened.map(|opened| Box::new(BlobObject { storage: self.clone(), opened }) as Box<dyn Blob>))
    }

    /// The beginning of an object, with the length of all of it.
    async fn begin_reading(&self, key: &str) -> io::Result<Option<GetResult>> {
        let path = self.path(key)?;
        // The length of the whole comes with its beginning.
        let options = || GetOptions { range: Some((0..OPENED_BYTES).into()), ..GetOptions::default() };
        let opened = match in_time(self.0.objects.get_opts(&path, options())).await {
            // Of nothing there is no part (RFC 9110, section 15.5.17).
            Err(error) if !matches!(error, Error::NotFound { .. }) && self.is_empty(key).await => {
                in_time(self.0.objects.get(&path)).await
            }
            opened => opened,
        };
        found(opened)
    }

    fn path(&self, key: &str) -> io::Result<Path> {
        Path::parse(format!("{}{key}", self.0.prefix)).map_err(io::Error::other)
    }

    async fn is_empty(&self, key: &str) -> bool {
        matches!(self.meta(key).await, Ok(Some(meta)) if meta.size == 0)
    }

    async fn meta(&self, key: &str) -> io::Result<Option<ObjectMeta>> {
        found(in_time(self.0.objects.head(&self.path(key)?)).await)
    }

    /// Writes an object; nothing if the condition of `mode` doesn't hold. What is written on a condition must be told from
    /// what others write there: an answer may be lost, and the next attempt meets our own object.
    async fn put(&self, key: &str, bytes: impl Into<Bytes>, mode: PutMode) -> io::Result<Option<UpdateVersion>> {
        let (bytes, path) = (bytes.into(), self.path(key)?);
        let conditional = !matches!(mode, PutMode::Overwrite);
        // A client counts the time in which bytes are sent as silence.
        let client = if bytes.len() > MAX_SMALL_BYTES { &self.0.patient } else { &self.0.objects };
        let put = client.put_opts(&path, PutPayload::from(bytes.clone()), PutOptions::from(mode));
        match within(time_for(bytes.len()), put).await {
            Ok(put) => Ok(Some(UpdateVersion { e_tag: put.e_tag, version: put.version })),
            // A service may answer so for reasons of its own, too.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) if conditional => {
                let Some((there, version)) = self.read_version(key).await? else { return Ok(None) };
                Ok((there == bytes).then_some(version))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// A small object, and which version of it this is.
    async fn read_version(&self, key: &str) -> io::Result<Option<(Bytes, UpdateVersion)>> {
        let read = self.read_object(key).await?;
        Ok(read.map(|(bytes, ObjectMeta { e_tag, version, .. })| (bytes, UpdateVersion { e_tag, version })))
    }

    /// A small object, and what the service knows of it.
    async fn read_object(&self, key: &str) -> io::Result<Option<(Bytes, ObjectMeta)>> {
        let path = self.path(key)?;
        let read = async {
            let object = self.0.objects.get(&path).await?;
            let meta = object.meta.clone();
            Ok((object.bytes().await?, meta))
        };
        found(in_time(read).await)
    }

    async fn delete(&self, key: &str) -> io::Result<()> {
        found(in_time(self.0.objects.delete(&self.path(key)?)).await).map(drop)
    }

    /// Does `work` with each key, several at once.
    async fn each<T, F>(&self, keys: Vec<String>, work: impl Fn(Self, String) -> F) -> io::Result<Vec<T>>
    where
        F: Future<Output = io::Result<T>>,
    {
        stream::iter(keys).map(|key| work(self.clone(), key)).buffered(KEY_CONCURRENCY).try_collect().await
    }

    /// Everything below a folder, in the order of the keys, after `last`.
    fn below(&self, folder: &str, last: Option<&str>) -> io::Result<BoxStream<'static, io::Result<ObjectMeta>>> {
        let prefix = self.path(folder)?;
        let listed = match last {
            None => self.0.objects.list(Some(&prefix)),
            // Whatever a client has written there: it names nothing, it only comes before or after.
            Some(last) => {
                let offset = Path::from(format!("{}{folder}/{last}", self.0.prefix));
                self.0.objects.list_with_offset(Some(&prefix), &offset)
            }
        };
        Ok(listed.map_err(failed).boxed())
    }

    /// The names of the folders in a folder, sorted.
    async fn folders(&self, folder: &str) -> io::Result<Vec<String>> {
        let folder = self.path(folder)?;
        let listed = in_time(self.0.objects.list_with_delimiter(Some(&folder))).await.map_err(failed)?;
        let mut names: Vec<String> = listed.common_prefixes.iter().filter_map(last_part).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The repositories at and below `name` that come after `last`, until there are `limit`.
    async fn walk(
        &self,
        name: String,
        having: &[&str],
        last: Option<&str>,
        limit: usize,
        out: &mut Vec<String>,
    ) -> io::Result<()> {
        let mut waiting = vec![name];
        while let Some(name) = waiting.pop() {
            let folder = match name.as_str() {
                "" => keys::REPOSITORIES.to_owned(),
                name => format!("{}/{name}", keys::REPOSITORIES),
            };
            let entries = self.folders(&folder).await?;
            if entries.iter().any(|entry| having.contains(&entry.as_str())) && keys::is_after(&name, last) {
                out.push(name.clone());
                if out.len() >= limit {
                    return Ok(());
                }
            }
            // The last one waits on top: so that the first is next.
            for entry in entries.iter().rev().filter(|entry| !entry.starts_with('_')) {
                let child = if name.is_empty() { entry.clone() } else { format!("{name}/{entry}") };
                if keys::is_after_or_above(&child, last) {
                    waiting.push(child);
                }
            }
        }
        Ok(())
    }

    /// Gives an object of this length another name, too.
    async fn copy(&self, from: &str, to: &str, len: u64) -> io::Result<()> {
        if len <= MAX_COPY_BYTES {
            self.0.patient.copy(&self.path(from)?, &self.path(to)?).await.map_err(failed)?;
        } else {
            let source = self.0.objects.get(&self.path(from)?).await.map_err(failed)?;
            self.send(to, source.into_stream().map_err(failed)).await?;
        }
        // Some services answer before they have done it.
        match self.meta(to).await? {
            Some(copy) if copy.size == len => Ok(()),
            _ => Err(io::Error::other("the service has not copied an object whole")),
        }
    }

    /// Writes what comes of a stream in parts.
    async fn send(&self, to: &str, stream: impl futures_util::Stream<Item = io::Result<Bytes>>) -> io::Result<()> {
        let upload = self.0.patient.put_multipart(&self.path(to)?).await.map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let mut stream = std::pin::pin!(stream);
        while let Some(chunk) = stream.try_next().await? {
            upload.wait_for_capacity(PART_CONCURRENCY).await.map_err(failed)?;
            upload.put(chunk);
        }
        upload.finish().await.map(drop).map_err(failed)
    }
}

#[async_trait]
impl Storage for Objects {
    fn is_shared(&self) -> bool {
        true
    }

    async fn check(&self) -> io::Result<()> {
        // Of a bucket that isn't there, a single object could only be said not to be there either.
        self.below(keys::REPOSITORIES, None)?.try_next().await.map(drop)
    }

    async fn read(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.read_version(key).await?.map(|(bytes, _)| bytes.into()))
    }

    async fn exists(&self, key: &str) -> io::Result<bool> {
        Ok(self.meta(key).await?.is_some())
    }

    async fn is_folder(&self, folder: &str) -> io::Result<bool> {
        Ok(self.below(folder, None)?.try_next().await?.is_some())
    }

    async fn write(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> io::Result<bool> {
        let bytes = Bytes::from(bytes);
        let first = match condition {
            Condition::None => Some(PutMode::Overwrite),
            Condition::Absent => Some(PutMode::Create),
            Condition::Present => None,
        };
        if let Some(mode) = first
            && self.put(key, bytes.clone(), mode).await?.is_some()
        {
            return Ok(true);
        }
        loop {
            // A tombstone is as good as nothing.
            let Some(ObjectMeta { e_tag, version, size, .. }) = self.meta(key).await? else { return Ok(false) };
            if (size > 0) != (condition == Condition::Present) {
                return Ok(false);
            }
            let mode = PutMode::Update(UpdateVersion { e_tag, version });
            if self.put(key, bytes.clone(), mode).await?.is_some() {
                return Ok(true);
            }
            // It was moved or deleted since we looked: which of the two?
        }
    }

    async fn write_derived(&self, key: &str, bytes: Vec<u8>) -> io::Result<()> {
        self.write(key, bytes, Condition::None).await.map(drop)
    }

    async fn mark(&self, keys: Vec<String>) -> io::Result<()> {
        let mark = async move |storage: Self, key: String| storage.put(&key, Bytes::new(), PutMode::Overwrite).await;
        self.each(keys, mark).await.map(drop)
    }

    async fn remove(&self, key: &str) -> io::Result<bool> {
        // Services don't say whether there was something.
        let there = self.exists(key).await?;
        self.delete(key).await?;
        Ok(there)
    }

    async fn remove_all(&self, keys: Vec<String>) -> io::Result<()> {
        self.each(keys, async move |storage: Self, key: String| storage.delete(&key).await).await.map(drop)
    }

    async fn remove_if(&self, keys: Vec<String>, content: &str) -> io::Result<Vec<bool>> {
        let content = Bytes::from(content.to_owned());
        let remove = |storage: Self, key: String| {
            let content = content.clone();
            async move {
                match storage.read_version(&key).await? {
                    // Not of whoever has written something else since.
                    Some((there, version)) if first_line(&there) == content => {
                        Ok(storage.put(&key, Bytes::new(), PutMode::Update(version)).await?.is_some())
                    }
                    _ => Ok(false),
                }
            }
        };
        self.each(keys, remove).await
    }

    async fn settle(&self, _folders: Vec<String>) -> io::Result<()> {
        Ok(()) // What can be seen has been acknowledged.
    }

    async fn prune(&self, _folder: &str) -> io::Result<bool> {
        Ok(false) // There are no folders.
    }

    async fn list(&self, folder: &str, last: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
        let shows_empty = !keys::has_tombstones(folder);
        let objects = self.below(folder, last)?.try_filter(|object| future::ready(shows_empty || object.size > 0));
        let mut objects = std::pin::pin!(objects);
        let mut names = Vec::new();
        // Each step has its time, and not the whole: a list may be long.
        while names.len() < limit
            && let Some(object) = tokio::time::timeout(REQUEST_TIMEOUT, objects.try_next()).await??
        {
            names.extend(last_part(&object.location));
        }
        Ok(names)
    }

    async fn repositories(&self, having: &[&str], last: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
        let mut out = Vec::new();
        self.walk(String::new(), having, last, limit, &mut out).await?;
        Ok(out)
    }

    async fn blob(&self, digest: &Digest) -> io::Result<Option<Box<dyn Blob>>> {
        if let Some(bytes) = self.0.small_blobs.get(digest) {
            return Ok(Some(Box::new(BlobInMemory(bytes))));
        }
        let Some(opened) = self.begin_reading(&keys::blob(digest)).await? else { return Ok(None) };
        if opened.meta.size > MAX_BLOB_BYTES as u64 {
            return Ok(Some(Box::new(BlobObject { storage: self.clone(), opened })));
        }
        let bytes = in_time(opened.bytes()).await.map_err(failed)?;
        self.0.small_blobs.insert_if_sound(digest, &bytes);
        Ok(Some(Box::new(BlobInMemory(bytes))))
    }

    async fn blob_len(&self, digest: &Digest) -> io::Result<Option<u64>> {
        Ok(self.meta(&keys::blob(digest)).await?.map(|meta| meta.size))
    }

    fn redirects(&self) -> bool {
        self.0.signer.is_some()
    }

    async fn address_of(&self, digest: &Digest) -> io::Result<Option<String>> {
        let Some(signer) = &self.0.signer else { return Ok(None) };
        let path = self.path(&keys::blob(digest))?;
        let signed = in_time(signer.signed_url(Method::GET, &path, ADDRESS_LIFETIME)).await.map_err(failed)?;
        Ok(Some(signed.into()))
    }

    async fn put_blob(&self, digest: &Digest, bytes: Vec<u8>) -> io::Result<bool> {
        let bytes = Bytes::from(bytes);
        // Written anew, since that makes it young. Whether it was there isn't worth a question.
        self.put(&keys::blob(digest), bytes.clone(), PutMode::Overwrite).await?;
        self.0.small_blobs.insert(digest, &bytes);
        Ok(true)
    }

    async fn adopt(&self, digest: &Digest, from: PathBuf, _copy: bool) -> io::Result<Option<u64>> {
        let key = keys::blob(digest);
        if self.exists(&key).await? {
            return Ok(None);
        }
        let len = tokio::fs::metadata(&from).await?.len();
        self.send(&key, pieces(&from).await?).await.map(|()| Some(len))
    }

    async fn give(&self, digest: &Digest, to: PathBuf) -> io::Result<()> {
        let object = self.0.objects.get(&self.path(&keys::blob(digest))?).await.map_err(failed)?;
        let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(to).await?;
        let mut bytes = object.into_stream();
        while let Some(chunk) = bytes.try_next().await.map_err(failed)? {
            file.write_all(&chunk).await?;
        }
        file.flush().await
    }

    async fn begin_upload(&self, repository: &Repository, algorithm: Algorithm) -> io::Result<Box<dyn Upload>> {
        upload::begin(self.clone(), repository, algorithm).await
    }

    async fn resume_upload(&self, repository: &Repository, id: &UploadId) -> Result<Box<dyn Upload>, UploadError> {
        upload::resume(self.clone(), repository, id).await
    }

    async fn expire_uploads(&self, age: Duration, dry_run: bool) -> io::Result<u64> {
        let mut expired = 0;
        for name in self.folders(keys::UPLOADS).await? {
            let folder = format!("{}/{name}", keys::UPLOADS);
            let mut objects = self.below(&folder, None)?;
            let mut all_old = true;
            while let Some(object) = objects.try_next().await? {
                all_old &= age_of(&object) >= age;
            }
            if all_old {
                expired += 1;
                if let (false, Ok(id)) = (dry_run, name.parse()) {
                    upload::drop_whole(self, &id).await?;
                }
            }
        }
        Ok(expired)
    }

    async fn count_uploads(&self) -> io::Result<u64> {
        Ok(self.folders(keys::UPLOADS).await?.len() as u64)
    }

    async fn ages_in(&self, folder: &str) -> io::Result<Vec<(String, Duration)>> {
        let mut names = Vec::new();
        let mut objects = self.below(folder, None)?;
        while let Some(object) = objects.try_next().await? {
            names.extend(last_part(&object.location).map(|name| (name, age_of(&object))));
        }
        Ok(names)
    }

    async fn tombstones_in(&self, folder: &str, age: Duration) -> io::Result<Vec<String>> {
        let objects = self.below(folder, None)?;
        let old = objects.try_filter(|object| future::ready(object.size == 0 && age_of(object) >= age));
        old.try_filter_map(async |object| Ok(last_part(&object.location))).try_collect().await
    }

    async fn shards(&self) -> io::Result<Vec<String>> {
        let mut shards = Vec::new();
        for algorithm in Algorithm::ALL {
            let folder = keys::blobs(algorithm);
            shards.extend(self.folders(&folder).await?.iter().map(|name| format!("{folder}/{name}")));
        }
        Ok(shards)
    }

    async fn blobs_in(&self, shard: &str, age: Duration) -> io::Result<Vec<StoredBlob>> {
        let mut blobs = Vec::new();
        let mut objects = self.below(shard, None)?;
        while let Some(object) = objects.try_next().await? {
            let digest = last_part(&object.location).and_then(|name| keys::digest_in(shard, &name));
            let is_old = age_of(&object) >= age;
            blobs.extend(digest.map(|digest| StoredBlob { digest, len: object.size, is_old }));
        }
        Ok(blobs)
    }

    async fn probe(&self) -> io::Result<()> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the bucket does not answer");
        tokio::time::timeout(PROBE_TIMEOUT, self.check()).await.map_err(late)?
    }

    async fn space(&self) -> Option<Space> {
        None
    }

    async fn revive(&self, key: &str) -> io::Result<bool> {
        match self.meta(key).await? {
            Some(tombstone) if tombstone.size == 0 => gc_leases::acquire_lease(self, key).await,
            _ => Ok(true),
        }
    }

    async fn acquire_lease(&self, key: &str) -> io::Result<bool> {
        gc_leases::acquire_lease(self, key).await
    }

    fn is_leased(&self, key: &str) -> bool {
        self.0.known_leases.holds(key)
    }

    async fn delete_if_unprotected(&self, key: &str, age: Duration) -> io::Result<bool> {
        gc_leases::delete_if_unprotected(self, key, age).await
    }
}

/// A blob, of which the service has begun to send the first bytes.
struct BlobObject {
    storage: Objects,
    opened: GetResult,
}

impl BlobObject {
    /// The pieces of a part, several of them asked for at once if there is room for that; or all of it with one request.
    fn read_ahead(storage: Objects, path: Path, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let asked = Arc::clone(&storage.0.reads_ahead).try_acquire_owned();
        let Ok(place) = asked.map(Arc::new) else {
            let rest = async move {
                let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
                // A client that is slow, or waits for a while, isn't taken for a service that is silent.
                let object = in_time(storage.0.patient.get_opts(&path, options)).await.map_err(failed)?;
                Ok::<_, io::Error>(object.into_stream().map_err(failed))
            };
            return stream::once(rest).try_flatten().boxed();
        };
        let starts = (range.start..range.end).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
        let piece = move |start| {
            let (storage, path, place) = (storage.clone(), path.clone(), Arc::clone(&place));
            let piece = start..range.end.min(start + PIECE_BYTES);
            let limit = time_for(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
            let read = async move { within(limit, storage.0.objects.get_range(&path, piece)).await };
            async move {
                let _until_the_end = place;
                in_background(read).await
            }
        };
        stream::iter(starts).map(piece).buffered(PIECES_AHEAD).boxed()
    }
}

impl Blob for BlobObject {
    fn len(&self) -> u64 {
        self.opened.meta.size
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        if range.is_empty() {
            return stream::empty().boxed();
        }
        let Self { storage, opened: begun } = *self;
        let (path, opened) = (begun.meta.location.clone(), begun.range.clone());
        if range.start > 0 || range.end < opened.end {
            return BlobObject::read_ahead(storage, path, range);
        }
        let first = stream::once(in_background(async move { begun.bytes().await }));
        if opened.end == range.end {
            return first.boxed();
        }
        // Asked for when the first bytes are on their way, and not before somebody reads at all.
        let rest = stream::once(async move { BlobObject::read_ahead(storage, path, opened.end..range.end) }).flatten();
        first.chain(rest).boxed()
    }
}

/// Goes on while nobody polls it, so that a slow reader isn't taken for a silent service; and ends when nobody waits for it.
async fn in_background<T: Send + 'static>(
    work: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> io::Result<T> {
    struct Ended(AbortHandle);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let task = tokio::spawn(work);
    let _ended = Ended(task.abort_handle());
    task.await.map_err(io::Error::other)?.map_err(failed)
}

/// A file's bytes.
async fn pieces(path: &path::Path) -> io::Result<impl futures_util::Stream<Item = io::Result<Bytes>> + use<>> {
    let file = tokio::fs::File::open(path).await?;
    Ok(futures_util::stream::try_unfold(file, async |mut file| {
        let mut piece = Vec::with_capacity(1024 * 1024);
        let read = file.read_buf(&mut piece).await?;
        Ok((read > 0).then_some((Bytes::from(piece), file)))
    }))
}

fn last_part(path: &Path) -> Option<String> {
    path.filename().map(str::to_owned)
}

/// By our clock and the service's.
fn age_of(object: &ObjectMeta) -> Duration {
    SystemTime::now().duration_since(object.last_modified.into()).unwrap_or_default()
}
