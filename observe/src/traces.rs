//! Traces by OTLP, if a collector is configured: one span a request and process, from the client's `traceparent`
//! (W3C Trace Context) through the proxy to the registry.

use std::time::Duration;

use berth_config::Section;
use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue, Value,
    propagation::TextMapPropagator,
    trace::{SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use url::Url;

/// How long a collector may take for one answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an end waits for it: Docker kills ten seconds after it has asked to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// `sidecar.traces`: where spans are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(Url);

impl Collector {
    /// Reads `sidecar.traces`, the base URL of an OTLP collector.
    pub fn read(sidecar: &Section<'_>) -> Option<Self> {
        let text = sidecar.text("traces")?;
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => Some(Self(url)),
            _ => {
                sidecar.problem(
                    "traces",
                    "is not the address of a collector; expected one that takes OTLP over HTTP, such as \
                     \"http://otel-collector:4318\"",
                );
                None
            }
        }
    }
}

/// Makes spans, and sends them from a thread of their own. What a collector doesn't take in time is dropped.
///
/// Which ones are sent is told by the standard variables of the environment (`OTEL_TRACES_SAMPLER` and its argument):
/// without them all are, unless the client's `traceparent` says that it isn't recorded.
pub struct Traces(Option<(SdkTracerProvider, SdkTracer)>);

impl Traces {
    /// Of the process called `service`; none are made without a collector.
    ///
    /// # Errors
    /// A sentence, if no client can be made.
    pub fn start(collector: Option<&Collector>, service: &'static str) -> Result<Self, String> {
        let Some(Collector(url)) = collector else { return Ok(Self(None)) };
        let endpoint = format!("{}/v1/traces", url.as_str().trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpJson);
        let exporter = exporter.with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build();
        let exporter = exporter.map_err(|e| format!("sidecar.traces: spans can't be sent ({e})"))?;
        let resource = Resource::builder().with_service_name(service);
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer(service);
        Ok(Self(Some((provider, tracer))))
    }

    /// Begins the span of a request with these headers.
    pub fn begin(&self, headers: &HeaderMap) -> Span {
        let Some((_, tracer)) = &self.0 else { return Span(None) };
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let span = tracer.span_builder("request").with_kind(SpanKind::Server).start_with_context(tracer, &parent);
        Span(Some(parent.with_span(span)))
    }

    /// Sends what is left.
    pub fn stop(&self) {
        if let Some((provider, _)) = &self.0 {
            let _ = provider.shutdown_with_timeout(STOP_TIMEOUT);
        }
    }
}

/// The span of one request; nothing, if none are made.
pub struct Span(Option<Context>);

impl Span {
    /// Whether anything of it is wanted.
    pub fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.span().is_recording())
    }

    /// Adds `traceparent` for the next process. `tracestate` is the client's own words, and goes no further.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.0 {
            TraceContextPropagator::new().inject_context(context, &mut HeaderInjector(headers));
            headers.remove("tracestate");
        }
    }

    /// The name of the whole trace, to find it by a line of the log.
    pub fn trace_id(&self) -> Option<String> {
        let context = self.0.as_ref().filter(|_| self.is_recording())?;
        Some(context.span().span_context().trace_id().to_string())
    }

    /// Says what the request was.
    pub fn named(&self, name: &'static str) {
        if let Some(context) = &self.0 {
            context.span().update_name(name);
        }
    }

    /// Notes something of it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// The request has ended with this status; 0 for none.
    pub fn end(&self, status: u16) {
        let Some(context) = &self.0 else { return };
        let span = context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status == 0 || status >= 500 {
            span.set_status(Status::error("the request failed"));
        }
        span.end();
    }
}
