//! A blob that is being fetched: into a file without a name, which everybody reads who wants it, as far as it has come.
//!
//! The last byte is given to nobody before all of them are known to have the digest: who got something else sees its transfer
//! break off. When the network breaks, it goes on where it was.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_oci::{Algorithm, Digest};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{StatusCode, header::CONTENT_RANGE};
use reqwest::Response;
use sha2::{Sha256, Sha512, digest::DynDigest};
use tokio::sync::watch;

use crate::source::{Source, SourceError, cause};

/// How often it is tried again without that much has come, and the first wait.
const MAX_FAILURES: u32 = 5;
const MIN_WAIT: Duration = Duration::from_secs(1);

/// How much must come in a while, in bytes: who sends less is as good as silent.
const MIN_PROGRESS_BYTES: u64 = 600_000;
const PROGRESS_INTERVAL: Duration = Duration::from_mins(1);

/// How long it goes on without that anybody reads it, once in a while.
const ABANDONED_WAIT: Duration = Duration::from_secs(10);

/// How long a blob may be whose length nobody has said, in bytes.
const MAX_UNANNOUNCED_BYTES: u64 = 10 * 1024 * 1024 * 1024;

/// How much is read at once, in bytes.
const PIECE_BYTES: u64 = 256 * 1024;

/// How many pieces of the network are written at once, if they are there.
const MAX_PIECES: usize = 16;

fn hasher(algorithm: Algorithm) -> Box<dyn DynDigest + Send> {
    match algorithm {
        Algorithm::Sha256 => Box::<Sha256>::default(),
        Algorithm::Sha512 => Box::<Sha512>::default(),
    }
}

/// The digest of some bytes; nothing, never.
pub fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
    let mut hasher = hasher(algorithm);
    hasher.update(bytes);
    Digest::from_hash(algorithm, &hasher.finalize()).ok()
}

/// How far it is.
#[derive(Clone, Debug)]
struct Progress {
    written: u64,
    end: Option<Result<(), Arc<str>>>,
}

impl Progress {
    /// Up to which byte it may be given to somebody who wants it up to `to`: before it is known what it is, without the last one.
    fn available(&self, to: u64) -> u64 {
        match self.end {
            Some(Ok(())) => self.written.min(to),
            _ => self.written.min(to).saturating_sub(1),
        }
    }
}

/// What has come, and what is computed of it.
struct Sink {
    file: Arc<File>,
    hasher: Box<dyn DynDigest + Send>,
    written: u64,
}

/// A blob on its way.
pub struct Download {
    file: Arc<File>,
    /// Its length, if that was said.
    pub len: Option<u64>,
    progress: watch::Sender<Progress>,
    /// How many read it, the registry among them.
    readers: AtomicUsize,
}

/// Somebody who reads, until this is dropped.
struct Reading(Arc<Download>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Download {
    /// Begins to fetch a blob, and has heard that it is there.
    ///
    /// # Errors
    /// Why it can't be had.
    pub async fn start(
        source: Arc<Source>,
        name: String,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<Self>, SourceError> {
        let place = source.place().await?;
        let answer = source.blob(&name, &digest, 0).await?;
        let file = tempfile::tempfile_in(folder);
        let cannot =
            |e: io::Error| SourceError::Away { host: name.clone(), cause: format!("extensions.sync.downloadDir: {e}") };
        let file = Arc::new(file.map_err(cannot)?);
        let (progress, _) = watch::channel(Progress { written: 0, end: None });
        let download = Arc::new(Self {
            file: Arc::clone(&file),
            len: answer.content_length(),
            progress,
            readers: AtomicUsize::new(0),
        });
        let filling = Arc::clone(&download);
        tokio::spawn(async move {
            let outcome = filling.fill(&source, &name, &digest, answer).await;
            if let Err(error) = &outcome {
                tracing::warn!(name, %digest, error, "a blob can't be fetched");
            }
            filling.progress.send_modify(|progress| progress.end = Some(outcome.map_err(Into::into)));
            drop(place);
        });
        Ok(download)
    }

    /// Waits until it has come, or won't any more.
    pub async fn ended(&self) {
        // Who tells lives as long as this does.
        let _ = self.progress.subscribe().wait_for(|progress| progress.end.is_some()).await;
    }

    async fn fill(&self, source: &Source, name: &str, digest: &Digest, first: Response) -> Result<(), String> {
        let sink = Sink { file: Arc::clone(&self.file), hasher: hasher(digest.algorithm()), written: 0 };
        let sink = Arc::new(Mutex::new(sink));
        let written = || sink.lock().unwrap_or_else(PoisonError::into_inner).written;
        let (mut answer, mut failures) = (Some(first), 0);
        loop {
            let before = written();
            let outcome = match answer.take() {
                Some(answer) => self.copy(answer, &sink).await,
                None => match source.blob(name, digest, before).await {
                    Ok(answer) => self.copy(answer, &sink).await,
                    Err(error) => {
                        let is_final = !matches!(error, SourceError::Away { .. });
                        Err(Broken { error: error.to_string(), is_final })
                    }
                },
            };
            let now = written();
            let error = match outcome {
                Ok(()) if self.len.is_none_or(|len| len == now) => break,
                Ok(()) => "it ended early".to_owned(),
                Err(Broken { error, is_final: true }) => return Err(error),
                Err(Broken { error, is_final: false }) => error,
            };
            // Of one whose length nobody has said, it may have been all.
            if self.len.is_none() && is_whole(&sink, digest) {
                break;
            }
            failures = if now >= before + MIN_PROGRESS_BYTES { 0 } else { failures + 1 };
            if failures > MAX_FAILURES {
                return Err(error);
            }
            tracing::warn!(name, %digest, error, at = now, "a transfer broke off; it goes on where it was");
            tokio::time::sleep(MIN_WAIT * 2_u32.pow(failures)).await;
        }
        if is_whole(&sink, digest) { Ok(()) } else { Err("what was sent has another digest".to_owned()) }
    }

    /// Writes what an answer brings after what is there.
    async fn copy(&self, answer: Response, sink: &Arc<Mutex<Sink>>) -> Result<(), Broken> {
        let never = |error: String| Broken { error, is_final: true };
        let at = sink.lock().unwrap_or_else(PoisonError::into_inner).written;
        // Who doesn't go on begins anew, and is skipped so far.
        let mut skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&answer) == Some(at) => 0,
            StatusCode::PARTIAL_CONTENT => return Err(never("it sends another part than was asked for".to_owned())),
            _ => at,
        };
        let mut pieces = answer.bytes_stream().ready_chunks(MAX_PIECES);
        let (mut checked_at, mut checked) = (Instant::now(), at);
        while let Some(some) = pieces.next().await {
            if checked_at.elapsed() > PROGRESS_INTERVAL {
                let written = self.progress.borrow().written;
                if written < checked + MIN_PROGRESS_BYTES {
                    return Err(Broken { error: "it sends next to nothing".to_owned(), is_final: false });
                }
                (checked_at, checked) = (Instant::now(), written);
            }
            if self.readers.load(Ordering::Relaxed) == 0 && checked_at.elapsed() > ABANDONED_WAIT {
                return Err(never("nobody wants it any more".to_owned()));
            }
            let mut good = Vec::new();
            let mut broken = None;
            for piece in some {
                match piece {
                    Ok(mut piece) => {
                        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
                        skip -= skipped as u64;
                        good.push(piece.split_off(skipped));
                    }
                    Err(error) => broken = Some(cause(error)),
                }
            }
            let (sink, len) = (Arc::clone(sink), self.len);
            let written = tokio::task::spawn_blocking(move || write(&sink, &good, len)).await;
            let written = written.map_err(|e| never(e.to_string()))?.map_err(never)?;
            self.progress.send_modify(|progress| progress.written = written);
            if let Some(error) = broken {
                return Err(Broken { error, is_final: false });
            }
        }
        Ok(())
    }

    /// Its bytes from one to before another, or to the end, as they come.
    pub fn read(self: Arc<Self>, from: u64, to: Option<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let progress = self.progress.subscribe();
        let to = to.or(self.len).unwrap_or(u64::MAX);
        self.readers.fetch_add(1, Ordering::Relaxed);
        stream::unfold((Reading(self), progress, from), move |(reading, mut progress, at)| async move {
            if at >= to {
                return None;
            }
            let known = progress.wait_for(|progress| progress.available(to) > at || progress.end.is_some()).await;
            // Who tells lives as long as the download does.
            let known = known.ok().map(|known| known.clone())?;
            let end = known.available(to);
            if at >= end {
                return match known.end {
                    Some(Err(error)) => Some((Err(io::Error::other(error.to_string())), (reading, progress, to))),
                    _ => None,
                };
            }
            let len = (end - at).min(PIECE_BYTES);
            let file = Arc::clone(&reading.0.file);
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; usize::try_from(len).unwrap_or_default()];
                file.read_exact_at(&mut piece, at)?;
                Ok(Bytes::from(piece))
            });
            let piece = read.await.unwrap_or_else(|e| Err(io::Error::other(e)));
            let next = if piece.is_ok() { at + len } else { to };
            Some((piece, (reading, progress, next)))
        })
    }
}

/// Why a transfer ended.
struct Broken {
    error: String,
    /// It isn't tried again.
    is_final: bool,
}

fn write(sink: &Mutex<Sink>, pieces: &[Bytes], len: Option<u64>) -> Result<u64, String> {
    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    for piece in pieces {
        let next = sink.written + piece.len() as u64;
        if next > len.unwrap_or(MAX_UNANNOUNCED_BYTES) {
            return Err("it sends more than it said, or than anybody may without a length".to_owned());
        }
        let at = sink.written;
        sink.file.write_all_at(piece, at).map_err(|e| format!("extensions.sync.downloadDir: {e}"))?;
        sink.hasher.update(piece);
        sink.written = next;
    }
    Ok(sink.written)
}

/// Whether what has come has the digest.
fn is_whole(sink: &Mutex<Sink>, digest: &Digest) -> bool {
    let hasher = sink.lock().unwrap_or_else(PoisonError::into_inner).hasher.box_clone();
    Digest::from_hash(digest.algorithm(), &hasher.finalize()).is_ok_and(|actual| actual == *digest)
}

/// Where a part begins: `bytes 100-199/200`.
fn range_start(answer: &Response) -> Option<u64> {
    let text = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
