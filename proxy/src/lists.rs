//! Lists that show everybody only what they may read: the catalogue, and what the registry knows of its repositories.

use axum::body::Body;
use berth_oci::{Error, ErrorCode, HolderList, Operation, Page, Repository, RepositoryList, RepositoryOverview};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH, LINK, VARY},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    answer::{error_response, json_response, unavailable},
    app::App,
    identity::{Caller, scope::Access},
    policy::{Circumstances, Rules},
    registry::RegistryError,
    secrets,
};

/// How many repositories a list has at most.
const MAX_LISTED_REPOSITORIES: usize = 1000;

/// Who reads a list.
pub struct Reader<'a> {
    pub rules: &'a Rules,
    pub caller: &'a Caller,
    pub circumstances: &'a Circumstances,
}

impl Reader<'_> {
    fn may_read(&self, name: &str) -> bool {
        self.rules.may_read(self.caller.identity.as_deref(), name, self.circumstances)
    }

    /// The same for a list of where something is, which is more than names.
    fn may_pull(&self, repository: &Repository) -> bool {
        self.caller.grant.covers(&Access::pull(repository)) && self.may_read(repository.as_str())
    }
}

/// Whether a request is for one of these lists.
pub fn is_filtered(operation: &Operation) -> bool {
    use Operation as Op;
    matches!(
        operation,
        Op::ListRepositories(_) | Op::DescribeRepositories(_) | Op::DescribeTags { .. } | Op::ListHolders { .. }
    )
}

/// The list that was asked for.
pub async fn answer(app: &App, operation: &Operation, reader: &Reader<'_>, headers: &HeaderMap) -> Response<Body> {
    let answered = match operation {
        Operation::ListRepositories(page) => return list_repositories(app, page, reader).await,
        _ => describe(app, operation.clone(), reader).await,
    };
    match answered {
        Ok((text, next)) => with_etag(text, next, headers),
        Err(error) => error_response(&error),
    }
}

fn away(error: &RegistryError) -> Error {
    tracing::error!(%error, "a list can't be read");
    unavailable("the registry behind this proxy does not answer")
}

/// `_catalog`: what the caller may read, in full pages.
async fn list_repositories(app: &App, page: &Page, reader: &Reader<'_>) -> Response<Body> {
    let n = page.n.unwrap_or(MAX_LISTED_REPOSITORIES).min(MAX_LISTED_REPOSITORIES);
    let (names, more) = match app.registry.repositories(n, page.last.clone(), |name| reader.may_read(name)).await {
        Ok(found) => found,
        Err(error) => return error_response(&away(&error)),
    };
    let next = Page { n: Some(n), last: names.last().cloned() };
    let mut response = json_response(StatusCode::OK, json!({"repositories": names}).to_string());
    if more && next.last.is_some() {
        link(&mut response, &next.append_to("/v2/_catalog".to_owned()));
    }
    response
}

/// `/v2/_berth/…`: the list as text, and where its next page is.
async fn describe(app: &App, operation: Operation, reader: &Reader<'_>) -> Result<(String, Option<String>), Error> {
    let unknown = || Error::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, "there is nothing known of that");
    let is_somebody = reader.caller.identity.is_some();
    match operation {
        Operation::DescribeRepositories(mut search) => {
            let list = app.registry.describe_repositories(&search, |name| reader.may_read(name)).await;
            let mut list: RepositoryList = list.map_err(|e| away(&e))?.ok_or_else(unknown)?;
            for RepositoryOverview { totals, .. } in &mut list.repositories {
                let push = totals.as_mut().and_then(|totals| totals.last_push.as_mut());
                // Who pushes is for who is signed in.
                if let Some(push) = push.filter(|_| !is_somebody) {
                    push.pushed.by = None;
                }
            }
            search.page.last.clone_from(&list.next);
            let next = list.next.is_some().then(|| Operation::DescribeRepositories(search).target());
            Ok((text(&list)?, next))
        }
        Operation::DescribeTags { repository, mut selection } => {
            let list = app.registry.describe_tags(&repository, selection.clone()).await;
            let mut list = list.map_err(|e| away(&e))?.ok_or_else(unknown)?;
            if !is_somebody {
                let pushes = list.tags.iter_mut().filter_map(|tag| tag.pushed.as_mut());
                let last = list.totals.last_push.as_mut().map(|last| &mut last.pushed);
                pushes.chain(last).for_each(|push| push.by = None);
            }
            selection.search.page.last.clone_from(&list.next);
            let next = list.next.is_some().then(|| Operation::DescribeTags { repository, selection }.target());
            Ok((text(&list)?, next))
        }
        Operation::ListHolders { repository, digest, mut page } => {
            let list = app.registry.holders(&repository, &digest, &page, |holder| reader.may_pull(holder)).await;
            let list: HolderList = list.map_err(|e| away(&e))?.ok_or_else(unknown)?;
            page.last.clone_from(&list.next);
            let next = list.next.is_some().then(|| Operation::ListHolders { repository, digest, page }.target());
            Ok((text(&list)?, next))
        }
        _ => Err(unknown()),
    }
}

fn text(list: &impl Serialize) -> Result<String, Error> {
    let failed = |error| {
        tracing::error!(%error, "a list can't be written");
        unavailable("the list can't be written")
    };
    serde_json::to_string(list).map_err(failed)
}

fn link(response: &mut Response<Body>, next: &str) {
    if let Ok(link) = HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")) {
        response.headers_mut().insert(LINK, link);
    }
}

/// The list, or that it is as it was (RFC 9110, section 13.1.2). It is another one for everybody.
fn with_etag(text: String, next: Option<String>, headers: &HeaderMap) -> Response<Body> {
    let etag = format!("\"{}\"", &secrets::hash(&text)[..32]);
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|value| value.split(',')).any(|one| one.trim().trim_start_matches("W/") == etag);
    let mut response = match is_known {
        true => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => json_response(StatusCode::OK, text),
    };
    if let Some(next) = next {
        link(&mut response, &next);
    }
    let fixed = [(CACHE_CONTROL, "private, no-cache"), (VARY, "Authorization, Cookie")];
    response.headers_mut().extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response.headers_mut().extend(HeaderValue::from_str(&etag).ok().map(|etag| (ETAG, etag)));
    response
}
