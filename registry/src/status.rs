//! What the registry says of itself on its own socket, beside the distribution API.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode, header::CONTENT_TYPE};

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

/// `GET /notices`: what the registry did by itself; and `DELETE /notices/<id>`, once that was told of.
pub async fn notices(serving: &Serving, method: &Method, id: Option<&str>) -> Response {
    let outcome = match (method, id) {
        (&Method::GET, None) => serving.content.notices().await.map(|list| Json(list).into_response()),
        (&Method::DELETE, Some(id)) => serving.content.forget_notice(id).await.map(|was| {
            let status = if was { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND };
            status.into_response()
        }),
        _ => Ok(StatusCode::METHOD_NOT_ALLOWED.into_response()),
    };
    outcome.unwrap_or_else(|error| {
        tracing::error!(%error, "what the registry did by itself can't be told");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
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
