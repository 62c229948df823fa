//! What people see: one file a screen, its template beside its query. Plain HTML that works without a script, in one frame.

mod access;
mod compare;
mod deletion;
mod device;
mod frame;
mod image;
mod keys;
mod layer;
mod people;
mod repositories;
mod repository;
mod sessions;
mod target;
mod viewer;
mod welcome;
mod words;

use std::sync::Arc;

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};

pub use self::{
    frame::{message, refusal},
    welcome::SignInFailure,
};
use super::device::CONFIRM_PATH;
use crate::app::App;

/// The pages.
pub fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(repositories::start))
        .route("/repositories", get(repositories::show))
        .route("/repository/{*name}", get(repository::show))
        .route("/image/{*target}", get(image::show))
        .route("/layer/{*target}", get(layer::show))
        .route("/compare/{*name}", get(compare::show))
        .route("/delete/{*target}", get(deletion::confirm).post(deletion::delete))
        .route("/access", get(access::show))
        .route(CONFIRM_PATH, get(device::show).post(device::decide))
        .route("/keys", get(keys::show).post(keys::create))
        .route("/keys/revoke", post(keys::revoke))
        .route("/people", get(people::list))
        .route("/people/one", get(people::one))
        .route("/people/jobs", get(people::jobs))
        .route("/people/end", post(people::end))
        .route("/sessions", get(sessions::show))
        .route("/sessions/end", post(sessions::end))
        .route("/static/berth.css", get(async || file("text/css; charset=utf-8", include_str!("berth.css"))))
        .route("/static/berth.js", get(async || file("text/javascript; charset=utf-8", include_str!("berth.js"))))
        .route("/static/mark.svg", get(async || file("image/svg+xml", include_str!("mark.svg"))))
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "public, max-age=3600")], text).into_response()
}
