//! An open file, handed over a unix socket (`SCM_RIGHTS` of unix(7)): who has the right to it reads it itself, and its bytes
//! aren't copied from one process to the other.
//!
//! A message is two lengths of four bytes, so many bytes of JSON, and so many of something else: a short answer's body. The
//! descriptor comes with the first byte.

use std::{
    cmp::Ordering,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixStream};

/// The longest message, and the longest bytes behind it.
const MAX_MESSAGE_BYTES: usize = MAX_BODY_BYTES;

/// The longest body that comes without a file, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// The lengths before it.
const HEAD_BYTES: usize = 8;

/// As long as messages are, as a rule.
const USUAL_BYTES: usize = 4096;

/// Where files are handed over by who listens on a socket: beside that.
pub fn socket_of(upstream: &Path) -> PathBuf {
    let mut name = upstream.as_os_str().to_owned();
    name.push(".files");
    name.into()
}

/// A request, as the proxy has authorized it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    /// GET or HEAD.
    pub method: String,
    /// Its target, written from what was authorized.
    pub target: String,
    /// The headers that the registry goes by.
    pub headers: Vec<(String, String)>,
}

/// The registry's answer to it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Given {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, String)>,
    /// The part of the file that is the body, from a byte to before another.
    pub part: (u64, u64),
}

/// What has come.
pub struct Received<T> {
    /// What is said.
    pub message: T,
    /// The bytes behind it.
    pub body: Bytes,
    /// The open file that came with it.
    pub file: Option<File>,
}

/// Sends a message, with bytes or with an open file if there are such.
///
/// # Errors
/// If the other one is gone, or the message is too long.
pub async fn send<T: Serialize>(stream: &UnixStream, message: &T, body: &[u8], file: Option<&File>) -> io::Result<()> {
    let mut bytes = vec![0; HEAD_BYTES];
    serde_json::to_writer(&mut bytes, message)?;
    let lengths = [bytes.len() - HEAD_BYTES, body.len()];
    if lengths.iter().any(|len| *len > MAX_MESSAGE_BYTES) {
        return Err(io::Error::other("the message is too long"));
    }
    for (place, len) in bytes.chunks_exact_mut(4).zip(lengths) {
        place.copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    }
    bytes.extend_from_slice(body);
    let mut file = file.map(AsFd::as_fd);
    let mut at = 0;
    while at < bytes.len() {
        let descriptors: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        at += stream.async_io(Interest::WRITABLE, || send_some(stream, &bytes[at..], &descriptors)).await?;
        file = None;
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives a message; nothing, if the other one has ended between two. Nobody sends another before the first is answered.
///
/// # Errors
/// If it ends in the middle, or sends what is no such message.
pub async fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<Received<T>>> {
    let (mut bytes, mut at, mut file) = (vec![0; USUAL_BYTES], 0, None);
    let (text, len) = loop {
        let read = stream.async_io(Interest::READABLE, || receive_some(stream, &mut bytes[at..], &mut file)).await?;
        match read {
            0 if at == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => at += read,
        }
        let Some((lengths, _)) = bytes[..at].split_first_chunk::<HEAD_BYTES>() else { continue };
        let [text, body] = [&lengths[..4], &lengths[4..]].map(length);
        if text > MAX_MESSAGE_BYTES || body > MAX_MESSAGE_BYTES {
            return Err(io::Error::other("the message is too long"));
        }
        let len = HEAD_BYTES + text + body;
        match at.cmp(&len) {
            Ordering::Less if bytes.len() < len => bytes.resize(len, 0),
            Ordering::Less => {}
            Ordering::Equal => break (HEAD_BYTES..HEAD_BYTES + text, len),
            Ordering::Greater => return Err(io::Error::other("something follows the message")),
        }
    };
    bytes.truncate(len);
    let message = serde_json::from_slice(&bytes[text.clone()])?;
    let body = Bytes::from(bytes).slice(text.end..);
    Ok(Some(Received { message, body, file: file.map(File::from) }))
}

fn length(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte))
}

fn receive_some(stream: &UnixStream, into: &mut [u8], file: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            *file = descriptors.last().or(file.take());
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use super::*;

    #[tokio::test]
    async fn files_come_with_their_messages_and_no_other() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"what is in it").expect("written");
        for n in 0..100_u64 {
            let given = Given { status: 200, part: (n, 13), headers: vec![("a".into(), "b".repeat(500))] };
            let body = vec![7; usize::try_from(n).expect("a length") * 500];
            let sending = send(&one, &given, &body, (n % 2 == 0).then_some(&file));
            let (sent, received) = tokio::join!(sending, receive::<Given>(&other));
            sent.expect("sent");
            let Received { message, body: got, file } = received.expect("received").expect("a message");
            assert_eq!((message.part.0, file.is_some(), got), (n, n % 2 == 0, Bytes::from(body)));
            if let Some(file) = file {
                let mut bytes = [0; 13];
                file.read_exact_at(&mut bytes, 0).expect("read");
                assert_eq!(&bytes, b"what is in it");
            }
        }
        drop(one);
        assert!(receive::<Given>(&other).await.expect("the end").is_none());
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let long = [0xff; 8];
        let two = b"\0\0\0\x02\0\0\0\0{}\0";
        for bytes in [&long[..], b"\0\0\0\x02\0\0\0\0{", b"\0\0\0\x02\0\0\0\0xy", b"\0\0", two] {
            let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
            (&one).write_all(bytes).expect("written");
            drop(one);
            other.set_nonblocking(true).expect("set");
            let other = UnixStream::from_std(other).expect("a stream");
            assert!(receive::<Given>(&other).await.is_err(), "{bytes:?}");
        }
    }
}
