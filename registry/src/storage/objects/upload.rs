//! Uploads that aren't finished, in a bucket: the parts that the service has, the rest that is too short for a part, and
//! in `state` how many bytes count and what their hash is. Any registry can take it up.
//!
//! ```text
//! uploads/<id>/state       what counts; whoever appends has claimed it
//! uploads/<id>/rest-…      the bytes after the last whole part, under a name that `state` knows
//! uploads/<id>/data        the parts
//! ```
//! The parts of a blob whose digest was announced before its first byte are put together under the blob's own name, which spares
//! the service a copy. Until then nothing is seen there, and they count only when all of them have come: whoever goes on
//! with such an upload aborts them. A crash just before that, or a service that doesn't do it, leaves parts that no `state`
//! names; a rule of the bucket removes those.
//!
//! A crash in the middle of a chunk leaves parts and rests behind that `state` doesn't name; the next chunk writes over
//! the parts, and the rests go with the upload. The claim of a registry that has died is good for a minute.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use berth_oci::{Algorithm, Digest, Repository, UploadId};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use object_store::{Error, ObjectMeta, ObjectStoreExt, PutMode, UpdateVersion, multipart::PartId};
use serde::{Deserialize, Serialize};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use super::{
    Objects, PART_BYTES,
    errors::{failed, found, in_time, time_for, within},
};
use crate::storage::{Hasher, Storage, Upload, UploadError, keys, new_upload_id};

/// How many parts of one upload are on their way at once.
const MAX_PARTS_AHEAD: usize = 6;

/// How long a claim is good, and how old it is renewed.
const CLAIM_LIFETIME: Duration = Duration::from_mins(1);
const CLAIM_RENEWAL_INTERVAL: Duration = Duration::from_secs(20);

#[derive(Clone, Serialize, Deserialize)]
struct State {
    repository: String,
    algorithm: String,
    len: u64,
    hash: Vec<u8>,
    /// The service's name for the parts, once there is one.
    multipart: Option<String>,
    /// The blob that they become, if that was known before there were any.
    #[serde(default)]
    expected: Option<Digest>,
    parts: Vec<String>,
    /// Where the bytes after the parts are, if there are any. Each has a name of its own, so that whoever has lost their
    /// claim writes over nobody's.
    rest: Option<String>,
    /// Somebody appends, until this time in seconds since 1970.
    claimed_until: u64,
    /// Who: two that claim it in the same second are told apart.
    #[serde(default)]
    claim: String,
}

/// An upload that one request holds.
struct UploadObjects {
    storage: Objects,
    id: UploadId,
    state: State,
    /// The state of a request that broke off, whose parts are dropped once we have claimed the upload; not before, since it may be
    /// slow, and at it still.
    stale: Option<State>,
    /// Which `state` in the bucket ours follows.
    version: UpdateVersion,
    claimed_at: Option<SystemTime>,
    hasher: Hasher,
    len: u64,
    /// What is too short for a part.
    rest: BytesMut,
    /// The parts on their way, in their order.
    sending: VecDeque<Sending>,
}

/// A part on its way.
struct Sending {
    part: JoinHandle<object_store::Result<PartId>>,
    /// Its share of what all uploads may send ahead.
    _place: Option<OwnedSemaphorePermit>,
}

fn key(id: &UploadId, name: &str) -> String {
    format!("{}/{name}", keys::upload(id))
}

/// Where the parts are put together.
fn joined_key(id: &UploadId, state: &State) -> String {
    state.expected.as_ref().map_or_else(|| key(id, "data"), keys::blob)
}

/// Drops the parts of an upload that the service has. Joined or dropped already, they aren't known any more.
async fn drop_parts(storage: &Objects, id: &UploadId, state: &State) -> io::Result<()> {
    if let Some(multipart) = &state.multipart {
        let path = storage.path(&joined_key(id, state))?;
        match in_time(storage.0.parts.abort_multipart(&path, multipart)).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(upload = %id, %error, "parts of an upload stay in the bucket"),
        }
    }
    Ok(())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn taken() -> io::Error {
    io::Error::other("another registry has taken up this upload")
}

/// Makes an empty upload.
pub async fn begin(storage: Objects, repository: &Repository, algorithm: Algorithm) -> io::Result<Box<dyn Upload>> {
    let id = new_upload_id()?;
    let hasher = Hasher::new(algorithm);
    let state = State {
        repository: repository.to_string(),
        algorithm: algorithm.to_string(),
        len: 0,
        hash: hasher.save(),
        multipart: None,
        expected: None,
        parts: Vec::new(),
        rest: None,
        claimed_until: 0,
        claim: String::new(),
    };
    let version = storage.put(&key(&id, "state"), serde_json::to_vec(&state)?, PutMode::Create).await?;
    let version = version.ok_or_else(taken)?;
    let (rest, sending) = (BytesMut::new(), VecDeque::new());
    let (stale, claimed_at, len) = (None, None, 0);
    Ok(Box::new(UploadObjects { storage, id, state, stale, version, claimed_at, hasher, len, rest, sending }))
}

/// Takes up an upload.
pub async fn resume(storage: Objects, repository: &Repository, id: &UploadId) -> Result<Box<dyn Upload>, UploadError> {
    let object = found(storage.0.objects.get(&storage.path(&key(id, "state"))?).await)?.ok_or(UploadError::Unknown)?;
    let ObjectMeta { e_tag, version, .. } = object.meta.clone();
    let bytes = object.bytes().await.map_err(failed)?;
    let mut state: State = serde_json::from_slice(&bytes).map_err(io::Error::from)?;
    if state.repository != repository.as_str() {
        return Err(UploadError::Unknown);
    }
    if state.claimed_until > now() {
        return Err(UploadError::Busy);
    }
    // Of what was to become a blob at once nothing counts, when somebody else goes on.
    let stale = state.expected.is_some().then(|| state.clone());
    if stale.is_some() {
        (state.expected, state.multipart) = (None, None);
    }
    let hasher = Hasher::of_upload(&state.algorithm, &state.hash)?;
    let rest = match &state.rest {
        None => BytesMut::new(),
        Some(rest) => {
            let rest = storage.read(&key(id, rest)).await?;
            BytesMut::from(&*rest.ok_or_else(|| io::Error::other("the rest of an upload is missing"))?)
        }
    };
    if (state.parts.len() * PART_BYTES + rest.len()) as u64 != state.len {
        return Err(io::Error::other("the parts of an upload are not as long as they were").into());
    }
    let (len, version) = (state.len, UpdateVersion { e_tag, version });
    let (id, sending) = (id.clone(), VecDeque::new());
    Ok(Box::new(UploadObjects { storage, id, state, stale, version, claimed_at: None, hasher, len, rest, sending }))
}

/// Removes all of an upload.
pub async fn drop_whole(storage: &Objects, id: &UploadId) -> io::Result<()> {
    if let Some(state) = storage.read(&key(id, "state")).await?
        && let Ok(state) = serde_json::from_slice(&state)
    {
        drop_parts(storage, id, &state).await?;
    }
    let mut objects = storage.below(&keys::upload(id), None)?;
    while let Some(object) = objects.try_next().await? {
        found(storage.0.objects.delete(&object.location).await)?;
    }
    Ok(())
}

#[async_trait]
impl Upload for UploadObjects {
    fn id(&self) -> &UploadId {
        &self.id
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn announce(&mut self, digest: &Digest) {
        self.hasher = Hasher::new(digest.algorithm());
        if self.storage.0.keeps_uploads_apart && self.state.multipart.is_none() {
            self.state.expected = Some(digest.clone());
        }
    }

    async fn append(mut self: Box<Self>, chunks: Vec<Bytes>) -> io::Result<Box<dyn Upload>> {
        self.claim().await?;
        // Hashing is work for a thread of its own.
        let mut hasher = self.hasher;
        let hashed = tokio::task::spawn_blocking(move || {
            for chunk in &chunks {
                hasher.update(chunk);
            }
            (hasher, chunks)
        });
        let chunks;
        (self.hasher, chunks) = hashed.await.map_err(io::Error::other)?;
        for chunk in chunks {
            self.len += chunk.len() as u64;
            self.rest.extend_from_slice(&chunk);
        }
        while self.rest.len() >= PART_BYTES {
            let part = self.rest.split_to(PART_BYTES).freeze();
            self.send(part).await?;
        }
        Ok(self)
    }

    async fn flush(mut self: Box<Self>) -> io::Result<Box<dyn Upload>> {
        if self.state.expected.is_some() && self.state.multipart.is_some() {
            // The request that was to send all of it has broken off.
            self.unclaim().await?;
            return Ok(self);
        }
        self.claim().await?;
        self.state.expected = None;
        self.sent().await?;
        let mut rest = None;
        if !self.rest.is_empty() {
            let name = format!("rest-{}", uuid::Uuid::new_v4());
            let bytes = Bytes::copy_from_slice(&self.rest);
            self.storage.put(&key(&self.id, &name), bytes, PutMode::Create).await?.ok_or_else(taken)?;
            rest = Some(name);
        }
        let before = std::mem::replace(&mut self.state.rest, rest);
        self.state.len = self.len;
        self.state.algorithm = self.hasher.algorithm().to_string();
        self.state.hash = self.hasher.save();
        self.state.claimed_until = 0;
        self.claimed_at = None;
        self.save().await?;
        if let Some(before) = before {
            self.storage.delete(&key(&self.id, &before)).await?;
        }
        Ok(self)
    }

    async fn finish(mut self: Box<Self>, expected: &Digest) -> Result<bool, UploadError> {
        if self.state.expected.as_ref().is_some_and(|other| other != expected) {
            return Err(io::Error::other("an upload ends as another blob than its request has said").into());
        }
        let is_expected = self.state.expected.is_some();
        // What was joined before may end otherwise than this request does.
        let was_joined =
            !is_expected && self.state.multipart.is_some() && self.storage.exists(&key(&self.id, "data")).await?;
        if was_joined || self.hasher.algorithm() != expected.algorithm() {
            return self.finish_read_again(expected).await;
        }
        let actual = self.hasher.clone().finish().map_err(io::Error::other)?;
        if actual != *expected {
            // It goes on as if this request had not been: with what counted before.
            self.unclaim().await?;
            return Err(UploadError::Digest { expected: expected.clone(), actual });
        }
        self.claim().await?;
        self.sent().await?;
        if self.state.multipart.is_some() && !is_expected {
            let data = self.join().await?;
            return Ok(self.copy_to_blob(data, expected).await?);
        }
        let blob = keys::blob(expected);
        let is_new = !self.storage.exists(&blob).await?;
        // An object that is there may be damaged; ours isn't. Services date one that comes in parts from its beginning, so it may
        // be old at once: the caller's lease protects it.
        if self.state.multipart.is_some() {
            // For a full minute: it may take a while.
            self.claimed_at = None;
            self.claim().await?;
            self.complete().await?;
        } else {
            self.storage.put(&blob, std::mem::take(&mut self.rest).freeze(), PutMode::Overwrite).await?;
        }
        self.clear_away(None).await;
        Ok(is_new)
    }

    async fn release(mut self: Box<Self>) -> io::Result<()> {
        self.unclaim().await
    }

    async fn cancel(self: Box<Self>) -> io::Result<()> {
        drop_whole(&self.storage, &self.id).await
    }
}

impl UploadObjects {
    /// Joins the parts and the rest; where they are then. Nothing can be appended after.
    async fn join(&mut self) -> io::Result<String> {
        let data = key(&self.id, "data");
        // A process that was stopped after this has left it whole.
        if self.storage.meta(&data).await?.is_some_and(|whole| whole.size == self.len) {
            return Ok(data);
        }
        if self.rest.is_empty() && self.state.multipart.is_none() {
            self.storage.put(&data, Bytes::new(), PutMode::Overwrite).await?;
        } else {
            self.complete().await?;
        }
        Ok(data)
    }

    /// Sends the rest, and puts the parts together.
    async fn complete(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest).freeze();
        if !rest.is_empty() {
            self.send(rest).await?;
            self.sent().await?;
        }
        let Some(multipart) = &self.state.multipart else { return Ok(()) };
        let parts = self.state.parts.iter().map(|id| PartId { content_id: id.clone() }).collect();
        let path = self.storage.path(&joined_key(&self.id, &self.state))?;
        self.storage.0.parts.complete_multipart(&path, multipart, parts).await.map(drop).map_err(failed)
    }

    /// For a client that says only at the end which digest it wants: parts can't be read before they are joined, so all of it
    /// is joined, read, and kept or dropped.
    async fn finish_read_again(mut self: Box<Self>, expected: &Digest) -> Result<bool, UploadError> {
        self.claim().await?;
        self.sent().await?;
        let data = self.join().await?;
        let object = self.storage.0.objects.get(&self.storage.path(&data)?).await.map_err(failed)?;
        let (mut bytes, mut hasher) = (object.into_stream(), Hasher::new(expected.algorithm()));
        while let Some(piece) = bytes.try_next().await.map_err(failed)? {
            hasher.update(&piece);
            self.claim().await?;
        }
        let actual = hasher.finish().map_err(io::Error::other)?;
        if actual != *expected {
            self.clear_away(Some(data)).await;
            return Err(UploadError::Digest { expected: expected.clone(), actual });
        }
        Ok(self.copy_to_blob(data, expected).await?)
    }

    /// Makes a blob of what was joined, instead of an object that is there and may be damaged. Whether it is new.
    async fn copy_to_blob(&self, data: String, digest: &Digest) -> io::Result<bool> {
        let blob = keys::blob(digest);
        let is_new = !self.storage.exists(&blob).await?;
        self.storage.copy(&data, &blob, self.len).await?;
        self.clear_away(Some(data)).await;
        Ok(is_new)
    }

    /// Removes what is known of it, now that it is finished: what was joined elsewhere than under the blob's name, too. What
    /// others may have left of it expires, and harms nobody.
    async fn clear_away(&self, joined: Option<String>) {
        let names = ["state"].into_iter().chain(self.state.rest.as_deref());
        let keys = names.map(|name| key(&self.id, name)).chain(joined).collect();
        if let Err(error) = self.storage.remove_all(keys).await {
            tracing::warn!(upload = %self.id, %error, "a finished upload can't be cleared away");
        }
    }

    /// Writes `state`, unless somebody else has since we read it.
    async fn save(&mut self) -> io::Result<()> {
        let bytes = serde_json::to_vec(&self.state)?;
        let saved = self.storage.put(&key(&self.id, "state"), bytes, PutMode::Update(self.version.clone())).await?;
        self.version = saved.ok_or_else(taken)?;
        Ok(())
    }

    /// Makes sure that nobody else appends.
    async fn claim(&mut self) -> io::Result<()> {
        let age = self.claimed_at.map(|at| at.elapsed().unwrap_or(CLAIM_LIFETIME));
        if age.is_some_and(|age| age < CLAIM_RENEWAL_INTERVAL) {
            return Ok(());
        }
        self.state.claimed_until = now() + CLAIM_LIFETIME.as_secs();
        self.state.claim = uuid::Uuid::new_v4().to_string();
        // What was sent since counts when it is flushed, and not when a claim is renewed.
        let parts = self.flushed_parts();
        let more = self.state.parts.split_off(parts);
        let saved = self.save().await;
        self.state.parts.extend(more);
        self.claimed_at = Some(SystemTime::now());
        saved?;
        match self.stale.take() {
            Some(stale) => drop_parts(&self.storage, &self.id, &stale).await,
            None => Ok(()),
        }
    }

    async fn unclaim(&mut self) -> io::Result<()> {
        // Whoever takes it up writes over them.
        for Sending { part, _place } in self.sending.drain(..) {
            let _ = part.await;
        }
        if self.claimed_at.take().is_none() {
            return Ok(());
        }
        if self.state.expected.is_some() {
            // It was empty before.
            (self.len, self.hasher) = (0, Hasher::new(self.hasher.algorithm()));
            self.rest.clear();
            drop_parts(&self.storage, &self.id, &self.state).await?;
            (self.state.expected, self.state.multipart) = (None, None);
        }
        self.state.claimed_until = 0;
        let parts = self.flushed_parts();
        self.state.parts.truncate(parts);
        self.save().await
    }

    fn flushed_parts(&self) -> usize {
        usize::try_from(self.state.len).unwrap_or(usize::MAX) / PART_BYTES
    }

    /// Sends a part, while the next ones are received.
    async fn send(&mut self, part: Bytes) -> io::Result<()> {
        // One of each upload is always on its way; more are, as long as all of them together have room.
        let place = loop {
            if self.sending.is_empty() {
                break None;
            }
            if self.sending.len() < MAX_PARTS_AHEAD
                && let Ok(place) = Arc::clone(&self.storage.0.parts_ahead).try_acquire_owned()
            {
                break Some(place);
            }
            self.first_sent().await?;
        };
        let path = self.storage.path(&joined_key(&self.id, &self.state))?;
        let parts = self.storage.0.parts.clone();
        let multipart = match &self.state.multipart {
            Some(multipart) => multipart.clone(),
            None => {
                let multipart = in_time(parts.create_multipart(&path)).await.map_err(failed)?;
                self.state.multipart = Some(multipart.clone());
                // Written down at once, or nobody would know what to abort.
                self.claimed_at = None;
                self.claim().await?;
                multipart
            }
        };
        let index = self.state.parts.len() + self.sending.len();
        let limit = time_for(part.len());
        let sending = async move { within(limit, parts.put_part(&path, &multipart, index, part.into())).await };
        self.sending.push_back(Sending { part: tokio::spawn(sending), _place: place });
        Ok(())
    }

    /// Waits until the first of the parts on their way has arrived.
    async fn first_sent(&mut self) -> io::Result<()> {
        if let Some(Sending { part, _place }) = self.sending.pop_front() {
            let part = part.await.map_err(io::Error::other)?.map_err(failed)?;
            self.state.parts.push(part.content_id);
        }
        Ok(())
    }

    /// Waits until all of them have.
    async fn sent(&mut self) -> io::Result<()> {
        while !self.sending.is_empty() {
            self.first_sent().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::digest_of;

    async fn storage_and_upload() -> (Objects, Repository, UploadId) {
        let (storage, r) = (Objects::in_memory(Duration::from_hours(1)), "r".parse::<Repository>().expect("a name"));
        let id = storage.begin_upload(&r, Algorithm::Sha256).await.expect("an upload").id().clone();
        (storage, r, id)
    }

    #[tokio::test]
    async fn chunks_of_any_size_become_one_blob_whoever_takes_them() {
        let (storage, r, id) = storage_and_upload().await;
        let bytes: Vec<u8> = (0..3 * PART_BYTES + 12_345).map(|i| (i % 251) as u8).collect();
        let mut at = 0;
        for len in [1, PART_BYTES - 1, PART_BYTES + 7, 100, 0, 2 * PART_BYTES] {
            let upload = storage.resume_upload(&r, &id).await.expect("taken up");
            assert_eq!(upload.len(), at as u64);
            let chunk = Bytes::copy_from_slice(&bytes[at..bytes.len().min(at + len)]);
            at += chunk.len();
            let upload = upload.append(vec![chunk]).await.expect("appended");
            assert!(matches!(storage.resume_upload(&r, &id).await, Err(UploadError::Busy)));
            upload.flush().await.expect("flushed");
        }
        assert_eq!(at, bytes.len());
        let digest = digest_of(Algorithm::Sha256, &bytes).expect("a digest");
        let upload = storage.resume_upload(&r, &id).await.expect("taken up");
        upload.finish(&digest).await.expect("finished");
        assert_eq!(storage.read(&keys::blob(&digest)).await.expect("read").expect("the blob"), bytes);
        assert!(matches!(storage.resume_upload(&r, &id).await, Err(UploadError::Unknown)));
        assert!(!storage.is_folder(keys::UPLOADS).await.expect("looked"));
    }

    #[tokio::test]
    async fn what_is_expected_gets_its_name_at_once_and_what_is_not_that_gets_none() {
        let (storage, r, id) = storage_and_upload().await;
        let bytes = Bytes::from(vec![7; 2 * PART_BYTES + 5]);
        let digest = digest_of(Algorithm::Sha256, &bytes).expect("a digest");
        let blob = keys::blob(&digest);
        let begun = async |chunk: Bytes| {
            let mut upload = storage.resume_upload(&r, &id).await.expect("taken up");
            assert_eq!(upload.len(), 0);
            upload.announce(&digest);
            upload.append(vec![chunk]).await.expect("appended")
        };
        // Other bytes than were said, a client that goes away, and one that is sent home.
        let other = begun(Bytes::from(vec![8; 2 * PART_BYTES])).await;
        assert!(matches!(other.finish(&digest).await, Err(UploadError::Digest { .. })));
        assert_eq!(begun(bytes.slice(..PART_BYTES + 1)).await.flush().await.expect("flushed").len(), 0);
        begun(bytes.slice(..PART_BYTES)).await.release().await.expect("released");
        assert!(storage.read(&blob).await.expect("read").is_none());
        // A process that is stopped in the middle: its claim runs out.
        let stopped = begun(bytes.slice(..PART_BYTES)).await;
        drop(stopped);
        let state = storage.read(&key(&id, "state")).await.expect("read").expect("a state");
        let mut state: State = serde_json::from_slice(&state).expect("a state");
        assert!(state.expected.is_some() && state.multipart.is_some());
        state.claimed_until = 0;
        let text = serde_json::to_vec(&state).expect("a state");
        storage.write(&key(&id, "state"), text, crate::storage::Condition::None).await.expect("written");
        // Its parts are nobody's, also not for who sends other ones; but only who does drops them, and not who looks.
        let put_part = async || {
            let path = storage.path(&blob).expect("a path");
            storage.0.parts.put_part(&path, state.multipart.as_ref().expect("parts"), 5, Bytes::new().into()).await
        };
        let upload = storage.resume_upload(&r, &id).await.expect("taken up");
        assert!(upload.len() == 0 && put_part().await.is_ok());
        let small = digest_of(Algorithm::Sha256, b"small").expect("a digest");
        let upload = upload.append(vec![Bytes::from_static(b"sm")]).await.expect("appended");
        upload.flush().await.expect("flushed");
        assert!(put_part().await.is_err());
        let upload = storage.resume_upload(&r, &id).await.expect("taken up");
        upload
            .append(vec![Bytes::from_static(b"all")])
            .await
            .expect("appended")
            .finish(&small)
            .await
            .expect("finished");
        assert_eq!(storage.read(&keys::blob(&small)).await.expect("read").expect("the blob"), b"small");
        assert!(storage.read(&blob).await.expect("read").is_none());
        // All of it.
        let mut upload = storage.begin_upload(&r, Algorithm::Sha256).await.expect("an upload");
        upload.announce(&digest);
        let upload = upload.append(vec![bytes.clone()]).await.expect("appended");
        assert!(storage.read(&blob).await.expect("read").is_none());
        assert!(upload.finish(&digest).await.expect("finished"));
        assert_eq!(storage.read(&blob).await.expect("read").expect("the blob"), bytes);
        assert!(!storage.is_folder(keys::UPLOADS).await.expect("looked"));
    }

    #[tokio::test]
    async fn what_was_not_flushed_does_not_count() {
        let (storage, r, id) = storage_and_upload().await;
        let upload = storage.resume_upload(&r, &id).await.expect("taken up");
        upload.append(vec![Bytes::from_static(b"one")]).await.expect("appended").flush().await.expect("flushed");
        let mut upload = storage.resume_upload(&r, &id).await.expect("taken up");
        upload = upload.append(vec![Bytes::from(vec![7; PART_BYTES + 1])]).await.expect("appended");
        let wrong = digest_of(Algorithm::Sha256, b"something else").expect("a digest");
        assert!(matches!(upload.finish(&wrong).await, Err(UploadError::Digest { .. })));
        let upload = storage.resume_upload(&r, &id).await.expect("taken up");
        assert_eq!(upload.len(), 3);
        upload.finish(&digest_of(Algorithm::Sha256, b"one").expect("a digest")).await.expect("finished");
    }
}
