//! What a request is for: the registry, or a page of ours.

use berth_oci::{Operation, RouteError};
use http::{Method, Uri};

/// The one of the two.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// A request to the distribution API, read once.
    Registry(Operation),
    /// One of [`crate::site`], of this kind.
    Site(&'static str),
}

/// Where the zot-compatible part of the API that we answer ourselves begins.
const OURS: &str = "/v2/_zot/";

/// Reads a request line.
///
/// # Errors
/// [`RouteError`] for what begins like the distribution API and is none of it.
pub fn route(method: &Method, uri: &Uri) -> Result<Route, RouteError> {
    let path = uri.path();
    if (path == "/v2" || path.starts_with("/v2/")) && !path.starts_with(OURS) {
        return Operation::parse(method, uri).map(Route::Registry);
    }
    Ok(Route::Site(match path {
        "/zot/auth/token" | "/zot/auth/device" => "token",
        "/zot/auth/apikey" | "/keys" | "/keys/revoke" => "api_keys",
        "/metrics" => "metrics",
        _ if path.starts_with("/scim/") => "scim",
        "/livez" | "/readyz" | "/startupz" => "probe",
        _ if path.starts_with("/zot/auth/login") || path.starts_with("/zot/auth/callback/") => "sign_in",
        _ => "page",
    }))
}
