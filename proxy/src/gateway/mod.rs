//! The door: every request comes through here. Beside it, only `commands`, `connections` and `tls` know Pingora.
//!
//! It reads as the story of one request. [`ProxyHttp::request_filter`] asks [`authorize`](crate::authorize) what becomes
//! of it; then it is answered here, or [`ProxyHttp::upstream_request_filter`] writes the request that goes to the
//! registry, and [`ProxyHttp::response_filter`] looks at what comes back. `asking` hands a request to the site, `giving` sends
//! a blob that the registry has handed over, `upstream` connects to it.

mod asking;
mod giving;
mod upstream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use axum::body::Body;
use berth_config::Upstream;
use berth_observe::{Span, Traces};
use berth_oci::{Error as OciError, ErrorCode, Operation, Repository};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, Method, StatusCode,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, LOCATION, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::BodyExt;
use pingora::{
    Error, ErrorSource, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    prelude::HttpPeer,
    proxy::{FailToProxy, ProxyHttp, Session},
};
use uuid::Uuid;

use self::upstream::{is_connecting, peer_at};
use crate::{
    answer::{denied, error_response, unavailable},
    app::App,
    authorize::{self, Forwarded, Outcome},
    connections::{self, Connections, InFlight},
    events::{CantTell, Pending},
    forward::{self, Handover},
    identity::certificate::ClientCertificate,
    observe::{Event, Labels},
    policy::WriteCondition,
    request::{Decision, RequestInfo},
    site,
};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What somebody has pushed is never a page of ours, whatever a browser makes of its bytes.
const NOSNIFF: &str = "nosniff";

/// By which a client's answer is found in the log, and the registry's lines beside ours.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a client may be silent, in the middle of a request or of an answer. There is no limit on the whole.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(2);

/// For how long a request waits for a registry that isn't there: it is started again, as a rule, and few clients ask twice.
const REGISTRY_START_TIMEOUT: Duration = Duration::from_secs(8);
const REGISTRY_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often a request without consequences is sent again to a registry that breaks off: it may be what breaks it.
const MAX_REPEATS: u32 = 3;

/// How long the registry may take to go on with an answer. Closing a large upload flushes it.
const REGISTRY_ANSWER_TIMEOUT: Duration = Duration::from_mins(5);

/// How long the mirror may, which waits for another registry.
const MIRROR_ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// How much of a refused body is read, so that the client sees the answer and not a broken pipe.
const MAX_DRAINED_BYTES: usize = 64 * 1024 * 1024;

/// For how long it is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The gateway.
pub struct Gateway {
    app: Arc<App>,
    site: axum::Router,
    upstream: Upstream,
    mirror: Option<Upstream>,
    /// By which the registry hands over open blobs.
    handover: Option<Handover>,
    connections: Arc<Connections>,
    traces: Arc<Traces>,
    /// How many bytes there are in the pieces of blobs that were handed over.
    piece_bytes: Arc<AtomicUsize>,
    /// Whether the log says already that somebody's `X-Forwarded-For` isn't believed.
    hinted: AtomicBool,
}

/// What is known of one request on its way.
pub struct Context {
    info: RequestInfo,
    began: Instant,
    /// What goes to the registry.
    forwarded: Option<Forwarded>,
    /// What is to be told of it.
    pending: Option<Pending>,
    /// Since when the registry isn't there.
    missed: Option<Instant>,
    /// How often it was sent again, after the registry had broken off.
    repeats: u32,
    /// A body of ours instead of the registry's.
    replacement: Option<Bytes>,
    /// Its connection isn't idle for as long.
    in_flight: Option<InFlight>,
    span: Option<Span>,
}

impl Gateway {
    /// The gateway to the registry at `upstream`, and to the `mirror`, for requests on these `connections`.
    pub fn new(
        app: Arc<App>,
        upstream: Upstream,
        mirror: Option<Upstream>,
        connections: Arc<Connections>,
        traces: Arc<Traces>,
    ) -> Self {
        Self {
            site: site::router(Arc::clone(&app)),
            app,
            handover: Handover::to(&upstream),
            upstream,
            mirror,
            connections,
            traces,
            piece_bytes: Arc::default(),
            hinted: AtomicBool::new(false),
        }
    }

    /// Writes down what a request to the registry did, or what it was kept from doing. The site has its own words.
    fn audit(&self, session: &Session, context: &Context, status: u16) {
        let info = &context.info;
        let request = session.req_header();
        let Ok(operation) = Operation::parse(&request.method, &request.uri) else {
            // Of a page; the token service has said it already.
            let is_refused = info.ruling().is_some_and(|ruling| ruling.decision == Decision::Refused);
            if is_refused && info.operation() != "token" {
                self.app.audit.record(&info.origin(), &Event::CredentialRefused { object: request.uri.path() });
            }
            return;
        };
        let Some(event) = audited(&operation, info.ruling().map(|ruling| ruling.decision), status) else { return };
        let (tags, from) = more_of(&operation);
        let mut origin = info.origin();
        if let Some(refusal) = context.refusal() {
            (origin.rule, origin.reason) = (None, Some(refusal));
        }
        self.app.audit.record(
            &origin,
            &Event::Request {
                event,
                operation: operation.name(),
                action: request.method.as_str(),
                object: request.uri.path(),
                repository: operation.repository().map(Repository::as_str),
                reference: operation.reference().map(|reference| reference.to_string()),
                tags,
                from,
                status,
                received: session.body_bytes_read(),
                sent: session.body_bytes_sent(),
            },
        );
    }

    /// Where a request goes.
    fn upstream_of(&self, context: &Context) -> &Upstream {
        let to_mirror = context.forwarded.as_ref().is_some_and(|forwarded| forwarded.to_mirror);
        self.mirror.as_ref().filter(|_| to_mirror).unwrap_or(&self.upstream)
    }

    /// What is to be told of a request that is about to be forwarded.
    async fn intend(
        &self,
        session: &Session,
        info: &RequestInfo,
        operation: &Operation,
    ) -> Result<Option<Pending>, CantTell> {
        let Some(events) = &self.app.events else { return Ok(None) };
        let request = session.req_header();
        Pending::new(events, &self.app.registry, operation, &request.headers, info.asker(&request.method)).await
    }

    /// Writes an answer of ours.
    async fn answer(&self, session: &mut Session, context: &Context, response: http::Response<Body>) -> Result<()> {
        // From here on nothing is done but waiting for the client to take it.
        let _waiting = context.in_flight.as_ref().map(InFlight::wait_for_client);
        let (parts, body) = response.into_parts();
        let failed = |e| Error::because(ErrorType::InternalError, "an answer of ours can't be read", e);
        let body = body.collect().await.map_err(failed)?.to_bytes();
        let mut header = ResponseHeader::build(parts.status, Some(parts.headers.len() + 2))?;
        for (name, value) in &parts.headers {
            header.append_header(name.clone(), value.clone())?;
        }
        header.insert_header(CONTENT_LENGTH, body.len())?;
        header.insert_header(REQUEST_ID, &context.info.id)?;
        if session.req_header().uri.path().starts_with("/v2") {
            header.insert_header(API_VERSION, "registry/2.0")?;
        }
        close_after_unread_body(session, &mut header)?;
        context.in_flight.iter().for_each(InFlight::gather_answer);
        let without_body = session.req_header().method == Method::HEAD || body.is_empty();
        session.write_response_header(Box::new(header), without_body).await?;
        if !without_body {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }
}

impl Context {
    /// Whether a request that went to the mirror goes to the registry instead: without the mirror, what is kept is served.
    fn gives_up_mirror(&mut self, error: &Error) -> bool {
        let Some(forwarded) = self.forwarded.as_mut().filter(|forwarded| forwarded.to_mirror) else { return false };
        tracing::warn!(request = self.info.id, %error, "the mirror does not answer; the registry is asked alone");
        forwarded.to_mirror = false;
        true
    }

    /// Whether somebody who can't be connected to is tried again, or somebody else. Nothing of the request has been sent.
    fn tries_again(&mut self, error: &Error) -> bool {
        self.gives_up_mirror(error) || is_connecting(error.etype()) && self.has_patience()
    }

    fn has_patience(&mut self) -> bool {
        self.missed.get_or_insert_with(Instant::now).elapsed() < REGISTRY_START_TIMEOUT
    }

    /// Why the registry has refused a write by a condition of ours.
    fn refusal(&self) -> Option<&'static str> {
        self.replacement.as_ref().and(self.forwarded.as_ref()).map(|forwarded| forwarded.condition.refusal())
    }
}

/// What the path doesn't say: the tags that a push by digest sets, and where a mount is from.
fn more_of(operation: &Operation) -> (Vec<String>, Option<&str>) {
    match operation {
        Operation::PushManifest { tags, .. } => (tags.iter().map(ToString::to_string).collect(), None),
        Operation::MountBlob { from, .. } => (Vec::new(), from.as_ref().map(Repository::as_str)),
        _ => (Vec::new(), None),
    }
}

/// What a request is in the audit log, if it is in there: what was pulled, pushed and deleted, and what nobody was allowed.
fn audited(operation: &Operation, decision: Option<Decision>, status: u16) -> Option<&'static str> {
    use Operation as Op;
    match decision? {
        Decision::Challenged => return None,
        Decision::Refused => return Some("credential_refused"),
        Decision::Denied => return Some("denied"),
        // A condition that was ours.
        Decision::Allowed if status == 403 => return Some("denied"),
        Decision::Allowed => {}
    }
    match operation {
        Op::PullManifest { .. } | Op::PullBlob { .. } => Some("pull"),
        Op::PushManifest { .. } | Op::PushBlob { .. } | Op::FinishUpload { .. } => Some("push"),
        Op::MountBlob { .. } if status == 201 => Some("push"),
        Op::DeleteManifest { .. } | Op::DeleteBlob { .. } => Some("delete"),
        _ => None,
    }
}

/// Nothing follows on a connection whose request has a body that nobody has read.
fn close_after_unread_body(session: &mut Session, header: &mut ResponseHeader) -> Result<()> {
    if !session.is_body_empty() && !session.is_body_done() {
        session.set_keepalive(None);
        header.insert_header(CONNECTION, "close")?;
    }
    Ok(())
}

/// Reads a little of a body that nobody wants.
async fn drain(session: &mut Session) {
    let reading = async {
        let mut read = 0;
        while let Ok(Some(chunk)) = session.read_request_body().await {
            read += chunk.len();
            if read > MAX_DRAINED_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, reading).await;
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            info: RequestInfo::new(Uuid::new_v4().simple().to_string()),
            began: Instant::now(),
            forwarded: None,
            pending: None,
            missed: None,
            repeats: 0,
            replacement: None,
            in_flight: None,
            span: None,
        }
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let peer = session.client_addr().and_then(|address| address.as_inet()).copied();
        context.in_flight = peer.map(|peer| self.connections.begin_request(peer));
        session.set_read_timeout(Some(SILENCE_TIMEOUT));
        session.set_write_timeout(Some(SILENCE_TIMEOUT));
        if !session.is_process_shutting_down() {
            session.set_keepalive(Some(connections::IDLE_TIMEOUT.as_secs()));
        }
        context.span = Some(self.traces.begin(&session.req_header().headers));
        let tls = session.digest().and_then(|digest| digest.ssl_digest.clone());
        let request = session.req_header();
        context.info.arrive(peer.map(|peer| peer.ip()), &request.headers, &self.app.trusted_proxies);
        if context.info.is_forwarded_by_a_stranger(&request.headers) && !self.hinted.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                client = context.info.client.map(tracing::field::display),
                "X-Forwarded-For is not believed of this address; if it is a proxy of yours, name it in sidecar.trustedProxies, \
                 or all its clients count as one (this is said once)"
            );
        }
        if let Some(tls) = tls {
            context.info.certificate = tls.extension.get::<Arc<ClientCertificate>>().cloned();
            context.info.tls = Some(tls.version.trim_start_matches("TLSv").replace('_', ".").into());
        }
        let outcome =
            authorize::authorize(&self.app, &request.method, &request.uri, &request.headers, &context.info).await;
        let response = match outcome {
            Outcome::Forward(forwarded) => match self.intend(session, &context.info, &forwarded.operation).await {
                Ok(pending) => {
                    let given = self.take_over(session, context, &forwarded).await;
                    (context.pending, context.forwarded) = (pending, Some(forwarded));
                    let Some(given) = given else { return Ok(false) };
                    self.give(session, context, given).await?;
                    return Ok(true);
                }
                Err(error) => error_response(&unavailable(&error.to_string())),
            },
            Outcome::Site => self.ask_site(session, context).await,
            Outcome::Answer(response) => *response,
        };
        self.answer(session, context, response).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, context: &mut Context) -> Result<Box<HttpPeer>> {
        let mut peer = loop {
            if context.missed.is_some() {
                tokio::time::sleep(REGISTRY_POLL_INTERVAL).await;
            }
            match peer_at(self.upstream_of(context)).await {
                Ok(peer) => break peer,
                // A container that is started again has no name meanwhile.
                Err(error) if context.tries_again(&error) => {}
                Err(error) => return Err(error),
            }
        };
        let upstream = self.upstream_of(context);
        let is_mirror = self.mirror.as_ref().is_some_and(|mirror| std::ptr::eq(mirror, upstream));
        peer.options.read_timeout = Some(if is_mirror { MIRROR_ANSWER_TIMEOUT } else { REGISTRY_ANSWER_TIMEOUT });
        peer.options.write_timeout = Some(SILENCE_TIMEOUT);
        peer.options.idle_timeout = Some(Duration::from_mins(1));
        Ok(Box::new(peer))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if context.tries_again(&error) {
            error.set_retry(true);
        }
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        context: &mut Context,
        client_reused: bool,
    ) -> Box<Error> {
        let is_unanswered = session.as_downstream().response_written().is_none();
        let is_upstream = is_unanswered && *error.esource() == ErrorSource::Upstream;
        let breaks_off =
            matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError);
        let method = &session.req_header().method;
        // What of a body isn't kept any more can't be sent again.
        let is_whole = !session.as_ref().retry_buffer_truncated();
        let has_repeats_left = context.repeats < MAX_REPEATS;
        if is_upstream && context.gives_up_mirror(&error) {
            error.set_retry(true);
        } else if is_whole && has_repeats_left && is_upstream && breaks_off && method.is_safe() {
            // It was killed, say, and is started again.
            context.repeats += 1;
            error.set_retry(context.has_patience());
        } else if is_whole && context.repeats == 0 && method.is_idempotent() {
            // The registry may have closed a connection that was kept; and once is enough to find that out.
            context.repeats += 1;
            error.retry.decide_reuse(client_reused);
        } else {
            error.set_retry(false);
        }
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        let upstream_authority = self.upstream_of(context).authority();
        let Some(Forwarded { operation, condition, user, .. }) = &context.forwarded else {
            return Error::e_explain(ErrorType::InternalError, "a request is forwarded that nobody allowed");
        };
        let headers = forward::request_headers(&session.req_header().headers, *condition);
        let mut request =
            RequestHeader::build(operation.method(), operation.target().as_bytes(), Some(headers.len() + 3))?;
        for (name, value) in headers.into_iter().chain(forward::pusher(operation, user)) {
            request.append_header(name, value)?;
        }
        request.insert_header(HOST, upstream_authority)?;
        request.insert_header(REQUEST_ID, &context.info.id)?;
        let mut trace = HeaderMap::new();
        context.span.iter().for_each(|span| span.inject(&mut trace));
        for (name, value) in &trace {
            request.insert_header(name, value)?;
        }
        *upstream = request;
        if let Some(pending) = &mut context.pending {
            pending.begin_body();
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Context,
    ) -> Result<()> {
        let Some(pending) = &mut context.pending else { return Ok(()) };
        pending.body(body, end_of_stream).await.map_err(|error| {
            tracing::error!(request = context.info.id, %error, "a push was broken off");
            Error::explain(ErrorType::HTTPStatus(503), "a push can't be told of")
        })
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let Some(forwarded) = &context.forwarded else { return Ok(()) };
        if response.status.is_informational() {
            return Ok(());
        }
        if let Some(pending) = &mut context.pending {
            pending.answered(response.status).await;
        }
        for name in &forward::KEPT_BACK {
            response.remove_header(name);
        }
        if let Some(id) = forward::begun_upload(&forwarded.operation, response.status, &response.headers) {
            let Forwarded { operation, user, token, .. } = forwarded;
            let repository = operation.repository().map(Repository::as_str).unwrap_or_default();
            self.app.identities.tokens.began_upload(id.as_str(), user, repository, token.as_deref());
        }
        if let Some(location) =
            response.headers.get(LOCATION).and_then(|value| forward::location(response.status, value))
        {
            response.insert_header(LOCATION, location)?;
        }
        response.insert_header(API_VERSION, "registry/2.0")?;
        response.insert_header(REQUEST_ID, &context.info.id)?;
        response.insert_header(X_CONTENT_TYPE_OPTIONS, NOSNIFF)?;
        // The condition was ours, so the client learns what it means.
        if response.status != StatusCode::PRECONDITION_FAILED || forwarded.condition == WriteCondition::None {
            return Ok(());
        }
        let body = Bytes::from(denied(forwarded.condition.refusal()).body());
        response.set_status(StatusCode::FORBIDDEN)?;
        response.remove_header(&TRANSFER_ENCODING);
        response.insert_header(CONTENT_TYPE, "application/json")?;
        response.insert_header(CONTENT_LENGTH, body.len())?;
        context.replacement = Some(body);
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Context,
    ) -> Result<Option<Duration>> {
        if let Some(replacement) = &mut context.replacement {
            *body = end_of_stream.then(|| std::mem::take(replacement));
        }
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Context) -> FailToProxy {
        use ErrorType::{ConnectTimedout, HTTPStatus, ReadTimedout, WriteTimedout};
        let (status, message) = match (error.esource(), error.etype()) {
            (_, HTTPStatus(503)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "what is about to change can't be written down for events; try again")
            }
            (_, HTTPStatus(code)) => {
                (StatusCode::from_u16(*code).unwrap_or(StatusCode::BAD_REQUEST), "the request can't be served")
            }
            (ErrorSource::Upstream, ConnectTimedout | ReadTimedout | WriteTimedout) => {
                (StatusCode::GATEWAY_TIMEOUT, "the registry behind this proxy takes too long to answer; try again")
            }
            (ErrorSource::Upstream, kind) if is_connecting(kind) => {
                (StatusCode::SERVICE_UNAVAILABLE, "the registry behind this proxy is not running; try again")
            }
            (ErrorSource::Upstream, _) => {
                (StatusCode::BAD_GATEWAY, "the registry behind this proxy broke off its answer; try again")
            }
            (ErrorSource::Downstream, ErrorType::ReadTimedout) => {
                (StatusCode::REQUEST_TIMEOUT, "nothing came for too long")
            }
            (
                ErrorSource::Downstream,
                ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::ConnectionClosed
                | ErrorType::H2Error
                | WriteTimedout,
            ) => {
                return FailToProxy { error_code: 0, can_reuse_downstream: false };
            }
            (ErrorSource::Downstream, _) => (StatusCode::BAD_REQUEST, "the request is malformed"),
            (ErrorSource::Internal | ErrorSource::Unset, _) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "the proxy failed; its log says how")
            }
        };
        if status.is_server_error() {
            tracing::error!(request = context.info.id, %error, "a request failed");
        }
        let code = if status.is_server_error() { ErrorCode::Unavailable } else { ErrorCode::Unsupported };
        let body = OciError::new(status, code, message).body();
        let written = async {
            let mut header = ResponseHeader::build(status, Some(3))?;
            header.insert_header(CONTENT_TYPE, "application/json")?;
            header.insert_header(CONTENT_LENGTH, body.len())?;
            session.as_downstream_mut().write_error_response(header, Bytes::from(body)).await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "the client didn't wait for the error");
        }
        FailToProxy { error_code: status.as_u16(), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Context) {
        let (info, took) = (&context.info, context.began.elapsed());
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let (received, sent) = (session.body_bytes_read(), session.body_bytes_sent());
        let labels = Labels { operation: info.operation(), credential: info.credential() };
        self.app.metrics.request(labels, status, took, received, sent);
        let request = session.req_header();
        let ruling = info.ruling();
        // Of the few requests whose query says something.
        let asked = request.uri.query().and_then(|_| Operation::parse(&request.method, &request.uri).ok());
        let (tags, from) = asked.as_ref().map(more_of).unwrap_or_default();
        let refusal = context.refusal();
        tracing::info!(
            request = info.id,
            trace = context.span.as_ref().and_then(Span::trace_id),
            client = info.client.map(tracing::field::display),
            user = info.user(),
            credential = info.credential(),
            tried = info.tried(),
            operation = info.operation(),
            method = %request.method,
            path = request.uri.path(),
            decision = ruling.map(|ruling| match ruling.decision {
                // A condition of ours didn't hold.
                Decision::Allowed if status == 403 => Decision::Denied.as_str(),
                decision => decision.as_str(),
            }),
            tags = (!tags.is_empty()).then(|| tags.join(",")),
            from,
            rule = ruling.filter(|_| refusal.is_none()).and_then(|ruling| ruling.rule.as_deref()),
            reason = refusal.or(ruling.and_then(|ruling| ruling.reason.as_deref())).map(tracing::field::display),
            status,
            received,
            sent,
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            error = error.map(|e| tracing::field::display(e.etype().as_str())),
            "request"
        );
        if self.app.audit.is_on() {
            self.audit(session, context, status);
        }
        if let Some(span) = context.span.take().filter(Span::is_recording) {
            span.named(info.operation());
            span.set("http.request.method", request.method.to_string());
            span.set("url.path", request.uri.path().to_owned());
            span.set("user.name", info.user().to_owned());
            span.set("berth.request_id", info.id.clone());
            span.end(status);
        }
        // Who waits for 100 Continue hasn't sent anything.
        let waits = received == 0 && session.get_header(EXPECT).is_some();
        if status >= 400 && !session.is_body_done() && !waits {
            let _waiting = context.in_flight.as_ref().map(InFlight::wait_for_client);
            drain(session).await;
        }
    }

    /// Without the query, where a sign-in's code is.
    fn request_summary(&self, session: &Session, context: &Context) -> String {
        format!("{} {} ({})", session.req_header().method, session.req_header().uri.path(), context.info.id)
    }

    fn suppress_error_log(&self, _session: &Session, _context: &Context, _error: &Error) -> bool {
        true // `logging` and `fail_to_proxy` have said it.
    }
}
