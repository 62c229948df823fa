//! What the registry says of itself on its own socket, beside the distribution API.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header::CONTENT_TYPE};

use crate::http::Serving;

/// `GET /metrics`, for the proxy or for a Prometheus beside it.
pub async fn metrics(serving: &Serving) -> Response {
    match serving.metrics.text(&serving.content).await {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the counters can't be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// `GET /readyz`: whether something can be stored. Pulls go on without that.
pub async fn ready(serving: &Serving) -> Response {
    match serving.content.readiness().await {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => {
            tracing::warn!(reason, "nothing can be stored");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}
