//! Sends what the registry has handed over: a blob, or a short answer.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use berth_files::{Asked, Given, Pieces, Received};
use berth_oci::Operation;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, X_CONTENT_TYPE_OPTIONS},
};
use pingora::{Error, ErrorType, Result, http::ResponseHeader, proxy::Session};

use super::{API_VERSION, Context, Gateway, NOSNIFF, REQUEST_ID, close_after_unread_body};
use crate::{authorize::Forwarded, connections::InFlight, forward};

/// How much of a blob that was handed over is read and sent at once, in bytes: at least, and at most.
const MIN_PIECE_BYTES: usize = 16 * 1024;
const MAX_PIECE_BYTES: usize = 256 * 1024;

/// How much all pieces together have, in bytes, beside the least that each may have. A spare buffer that waits for a blob's next
/// piece is not longer than the last one, and not counted.
const ALL_PIECES_BYTES: usize = 16 * 1024 * 1024;

/// Which part of what is left of that a piece may have: so the next ones find something, too.
const SHARE_OF_FREE: usize = 8;

impl Gateway {
    /// What a request is for, if the registry hands it over.
    pub(super) async fn take_over(
        &self,
        session: &Session,
        context: &Context,
        forwarded: &Forwarded,
    ) -> Option<Received<Given>> {
        let handover = self.handover.as_ref().filter(|_| !forwarded.to_mirror && is_given(&forwarded.operation))?;
        let headers = forward::request_headers(&session.req_header().headers, forwarded.condition);
        let mut trace = HeaderMap::new();
        context.span.iter().for_each(|span| span.inject(&mut trace));
        let id = HeaderValue::from_str(&context.info.id).ok().map(|id| (REQUEST_ID, id));
        let trace = trace.into_iter().filter_map(|(name, value)| Some((name?, value)));
        let text = |(name, value): (HeaderName, HeaderValue)| Some((name.to_string(), value.to_str().ok()?.to_owned()));
        let headers = headers.into_iter().chain(id).chain(trace).filter_map(text).collect();
        let method = forwarded.operation.method().to_string();
        let given = handover.ask(&Asked { method, target: forwarded.operation.target(), headers }).await;
        // What is too long for that comes over HTTP.
        given.filter(|given| given.message.status != StatusCode::UPGRADE_REQUIRED.as_u16())
    }

    /// Sends what the registry has handed over.
    pub(super) async fn give(&self, session: &mut Session, context: &Context, received: Received<Given>) -> Result<()> {
        let Received { message: given, body, file } = received;
        let mut header = ResponseHeader::build(given.status, Some(given.headers.len() + 3))?;
        for (name, value) in given.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value))
                && !forward::KEPT_BACK.contains(&name)
            {
                header.append_header(name, value)?;
            }
        }
        header.insert_header(API_VERSION, "registry/2.0")?;
        header.insert_header(REQUEST_ID, &context.info.id)?;
        header.insert_header(X_CONTENT_TYPE_OPTIONS, NOSNIFF)?;
        close_after_unread_body(session, &mut header)?;
        let Some(file) = file else {
            if !body.is_empty() {
                header.insert_header(CONTENT_LENGTH, body.len())?;
            }
            context.in_flight.iter().for_each(InFlight::gather_answer);
            let without_body = session.req_header().method == Method::HEAD || body.is_empty();
            session.write_response_header(Box::new(header), without_body).await?;
            if !without_body {
                session.write_response_body(Some(body), true).await?;
            }
            return Ok(());
        };
        let (first, end) = given.part;
        session.write_response_header(Box::new(header), first >= end).await?;
        let mut pieces = Pieces::new(file, first..end);
        let broken = |error| Error::because(ErrorType::ReadError, "a blob that was handed over", error).into_up();
        loop {
            let room = PieceRoom::take(&self.piece_bytes);
            let Some(bytes) = pieces.next(room.bytes).await.map_err(broken)? else { return Ok(()) };
            let piece = Bytes::from_owner(Piece { bytes, _room: room });
            session.write_response_body(Some(piece), pieces.is_done()).await?;
        }
    }
}

/// What the registry hands over.
fn is_given(operation: &Operation) -> bool {
    matches!(operation, Operation::PullBlob { .. } | Operation::PullManifest { .. }) || operation.has_short_answer()
}

/// What a piece has of [`ALL_PIECES_BYTES`], as long as there is any of it: over HTTP/2 some are on their way at once.
struct PieceRoom {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl PieceRoom {
    /// A power of two, so that a buffer is mostly good for the next piece.
    fn take(all: &Arc<AtomicUsize>) -> Self {
        let share = ALL_PIECES_BYTES.saturating_sub(all.load(Ordering::Relaxed)) / SHARE_OF_FREE;
        let bytes = 1 << share.clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES).ilog2();
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { all: Arc::clone(all), bytes }
    }
}

impl Drop for PieceRoom {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A piece of a blob, with its room.
struct Piece {
    bytes: Bytes,
    _room: PieceRoom,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_come_one_after_the_other_and_read_nothing_hold_a_bounded_amount() {
        let all = Arc::default();
        let first = PieceRoom::take(&all);
        assert_eq!(first.bytes, MAX_PIECE_BYTES);
        let rooms: Vec<PieceRoom> = (0..2000).map(|_| PieceRoom::take(&all)).collect();
        assert!(rooms.iter().all(|room| room.bytes >= MIN_PIECE_BYTES));
        assert!(all.load(Ordering::Relaxed) <= ALL_PIECES_BYTES + 2000 * MIN_PIECE_BYTES);
        // Those that go on make room for the others.
        drop(first);
        assert_eq!(PieceRoom::take(&all).bytes, MIN_PIECE_BYTES);
        drop(rooms);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
