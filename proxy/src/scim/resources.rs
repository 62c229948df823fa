//! Users and groups: made, replaced, changed, deleted, listed and searched (RFC 7644, section 3).

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    Client, MAX_PER_PAGE, answer, base, client,
    error::{ScimError, Type as ErrorType},
    filter::Filter,
    list as list_response,
    patch::apply,
    schema::Kind,
};
use crate::{
    app::App,
    observe::Event,
    request::RequestInfo,
    store::{ScimLink, ScimRefused, ScimResource, StoreError, now},
};

/// How many resources a list has if nobody says.
const DEFAULT_PER_PAGE: i64 = 100;

/// How many are looked through for a filter that no index answers, and how many are read at once.
const MAX_SEARCHED: i64 = 100_000;
const SEARCHED_AT_ONCE: i64 = 1000;

/// How often a change is tried again that somebody else's came before.
const MAX_TRIES: usize = 4;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    filter: Option<String>,
    start_index: Option<i64>,
    count: Option<i64>,
    attributes: Option<String>,
    excluded_attributes: Option<String>,
}

impl Asked {
    /// The resource without what wasn't asked for (RFC 7644, section 3.9).
    fn narrow(&self, mut resource: Value) -> Value {
        let names = |text: &str| text.split(',').map(|name| short(name.trim()).to_lowercase()).collect::<Vec<_>>();
        let Some(object) = resource.as_object_mut() else { return resource };
        let is_fixed = |key: &str| matches!(key, "schemas" | "id" | "meta");
        if let Some(wanted) = self.attributes.as_deref().map(names) {
            object.retain(|key, _| is_fixed(key) || wanted.contains(&key.to_lowercase()));
        }
        if let Some(unwanted) = self.excluded_attributes.as_deref().map(names) {
            object.retain(|key, _| is_fixed(key) || !unwanted.contains(&key.to_lowercase()));
        }
        resource
    }

    fn excludes(&self, name: &str) -> bool {
        let has = |text: &Option<String>| {
            text.as_deref().map(|text| text.split(',').any(|one| short(one.trim()).eq_ignore_ascii_case(name)))
        };
        has(&self.excluded_attributes) == Some(true) || has(&self.attributes) == Some(false)
    }
}

/// The attribute of a path such as `urn:…:User:name.familyName`.
fn short(name: &str) -> &str {
    let name = name.rsplit(':').next().unwrap_or(name);
    name.split('.').next().unwrap_or(name)
}

fn kind_of(path: &str) -> Result<Kind, ScimError> {
    let found = Kind::ALL.into_iter().find(|kind| kind.path() == path);
    found.ok_or_else(|| {
        ScimError::of(StatusCode::NOT_FOUND, format!("there are no {path} here; there are Users and Groups"))
    })
}

fn database_failed(error: &StoreError) -> ScimError {
    tracing::error!(%error, "what an identity provider pushes can't be kept");
    ScimError::of(StatusCode::SERVICE_UNAVAILABLE, "the registry's database can't be reached now; try again")
}

fn not_found(kind: Kind, id: &str) -> ScimError {
    ScimError::of(StatusCode::NOT_FOUND, format!("there is no {} {id}", kind.name().to_lowercase()))
}

fn parsed(body: &[u8]) -> Result<Value, ScimError> {
    serde_json::from_slice(body).map_err(|error| ScimError::bad(ErrorType::InvalidSyntax, error.to_string()))
}

fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_default()
}

fn etag(resource: &ScimResource) -> String {
    format!("W/\"{}\"", resource.version)
}

/// A resource as it is answered; its members or groups are `related`.
fn rendered(app: &App, kind: Kind, resource: &ScimResource, related: Option<&[(String, String)]>) -> Value {
    let base = base(app);
    let mut object =
        Map::from_iter([("schemas".to_owned(), json!([kind.urn()])), ("id".to_owned(), json!(resource.id))]);
    object.extend(resource.document.clone());
    object.remove("members");
    let (name, other) = match kind {
        Kind::User => ("groups", Kind::Group),
        Kind::Group => ("members", Kind::User),
    };
    if let Some(related) = related.filter(|related| !related.is_empty()) {
        let related = related.iter().map(|(id, display)| {
            let mut one = json!({"value": id, "$ref": format!("{base}/{}/{id}", other.path())});
            // Of members only what was said.
            if kind == Kind::User {
                one["display"] = json!(display);
            }
            one
        });
        object.insert(name.to_owned(), related.collect());
    }
    let meta = json!({
        "resourceType": kind.name(), "created": rfc3339(resource.created_at), "lastModified": rfc3339(resource.changed_at),
        "location": format!("{base}/{}/{}", kind.path(), resource.id), "version": etag(resource),
    });
    object.insert("meta".to_owned(), meta);
    Value::Object(object)
}

async fn with_related(app: &App, kind: Kind, resource: &ScimResource, asked: &Asked) -> Result<Value, ScimError> {
    let name = if kind == Kind::User { "groups" } else { "members" };
    let related = match asked.excludes(name) {
        true => None,
        false => Some(app.store.scim_relations(kind.name(), &resource.id).await.map_err(|e| database_failed(&e))?),
    };
    Ok(asked.narrow(rendered(app, kind, resource, related.as_deref())))
}

fn with_etag(mut response: Response, resource: &ScimResource) -> Response {
    response.headers_mut().extend(HeaderValue::from_str(&etag(resource)).ok().map(|tag| (header::ETAG, tag)));
    response
}

/// `GET /scim/v2/Users?filter=…&startIndex=…&count=…`
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    Path(path): Path<String>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let listed = async {
        let client = client(&app, &request, &headers).await?;
        list_with(&app, &client, &[kind_of(&path)?], &asked).await
    };
    listed.await.map_or_else(IntoResponse::into_response, |body| answer(StatusCode::OK, &body))
}

/// What is asked for in a body (RFC 7644, section 3.4.3).
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SearchRequest {
    filter: Option<String>,
    start_index: Option<i64>,
    count: Option<i64>,
    attributes: Option<Vec<String>>,
    excluded_attributes: Option<Vec<String>>,
}

impl From<SearchRequest> for Asked {
    fn from(request: SearchRequest) -> Self {
        let SearchRequest { filter, start_index, count, attributes, excluded_attributes } = request;
        let joined = |names: Option<Vec<String>>| names.filter(|names| !names.is_empty()).map(|names| names.join(","));
        let (attributes, excluded_attributes) = (joined(attributes), joined(excluded_attributes));
        Self { filter, start_index, count, attributes, excluded_attributes }
    }
}

/// `POST /scim/v2/.search`
pub async fn search_all(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    search_in(&app, &request, &headers, &body, Ok(Kind::ALL.to_vec())).await
}

/// `POST /scim/v2/Users/.search`
pub async fn search_kind(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    search_in(&app, &request, &headers, &body, kind_of(&path).map(|kind| vec![kind])).await
}

async fn search_in(
    app: &App,
    request: &RequestInfo,
    headers: &HeaderMap,
    body: &[u8],
    kinds: Result<Vec<Kind>, ScimError>,
) -> Response {
    let listed = async {
        let (client, kinds) = (client(app, request, headers).await?, kinds?);
        let asked = serde_json::from_value::<SearchRequest>(parsed(body)?);
        let asked = asked.map_err(|error| ScimError::bad(ErrorType::InvalidSyntax, error.to_string()))?;
        list_with(app, &client, &kinds, &asked.into()).await
    };
    listed.await.map_or_else(IntoResponse::into_response, |body| answer(StatusCode::OK, &body))
}

/// A page of these kinds, one after the other.
async fn list_with(app: &App, client: &Client, kinds: &[Kind], asked: &Asked) -> Result<Value, ScimError> {
    let provider = &client.provider.config.id;
    let start = asked.start_index.unwrap_or(1).max(1);
    let count = asked.count.unwrap_or(DEFAULT_PER_PAGE).clamp(0, MAX_PER_PAGE);
    let (mut total, mut resources) = (0, Vec::new());
    for kind in kinds.iter().copied() {
        let skipped = (start - 1).saturating_sub(total).max(0);
        let left = count - i64::try_from(resources.len()).unwrap_or(count);
        let (of_kind, page) = match asked.filter.as_deref().filter(|filter| !filter.trim().is_empty()) {
            None => app.store.scim_page(provider, kind.name(), skipped, left).await.map_err(|e| database_failed(&e))?,
            Some(text) => {
                let found = search(app, provider, kind, text).await?;
                let of_kind = i64::try_from(found.len()).unwrap_or(i64::MAX);
                let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
                (of_kind, found.into_iter().skip(skipped).take(usize::try_from(left).unwrap_or_default()).collect())
            }
        };
        total += of_kind;
        for resource in &page {
            resources.push(with_related(app, kind, resource, asked).await?);
        }
    }
    Ok(list_response(resources, total, start))
}

/// What passes a filter. What an index answers is asked of that.
async fn search(app: &App, provider: &str, kind: Kind, text: &str) -> Result<Vec<ScimResource>, ScimError> {
    let filter =
        Filter::parse(text).map_err(|why| ScimError::bad(ErrorType::InvalidFilter, format!("filter: {why}")))?;
    let store = &app.store;
    if let Some((name, wanted)) = filter.as_equality() {
        let found = match name {
            _ if name.eq_ignore_ascii_case("id") => Some(store.scim_resource(provider, kind.name(), wanted).await),
            _ if name.eq_ignore_ascii_case("externalId") => {
                Some(store.scim_by(provider, kind.name(), ScimLink::ExternalId, wanted).await)
            }
            _ if name.eq_ignore_ascii_case(kind.name_attribute()) => {
                Some(store.scim_by(provider, kind.name(), ScimLink::UserName, wanted).await)
            }
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found.map_err(|e| database_failed(&e))?.into_iter().collect());
        }
    }
    let mut found = Vec::new();
    for offset in (0..MAX_SEARCHED).step_by(usize::try_from(SEARCHED_AT_ONCE).unwrap_or(1)) {
        let page = store.scim_page(provider, kind.name(), offset, SEARCHED_AT_ONCE).await;
        let (total, page) = page.map_err(|e| database_failed(&e))?;
        if total > MAX_SEARCHED {
            return Err(ScimError::bad(ErrorType::TooMany, "there are too many to search through; ask for a name"));
        }
        let is_last = page.is_empty();
        let passing = page.into_iter().filter(|resource| {
            rendered(app, kind, resource, None).as_object().is_some_and(|object| filter.passes(object))
        });
        found.extend(passing);
        if is_last {
            break;
        }
    }
    Ok(found)
}

/// `POST /scim/v2/Users`
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let created = async {
        let (client, kind) = (client(&app, &request, &headers).await?, kind_of(&path)?);
        let document = kind.normalize(&parsed(&body)?)?;
        let (id, at) = (Uuid::new_v4().to_string(), now());
        let resource = ScimResource { id, kind: kind.name(), document, version: 1, created_at: at, changed_at: at };
        let members = members_of(kind, &resource.document);
        keep(&app, &client, &resource, None, members.as_ref()).await?;
        pushed(&app, &request, &client, "created", &resource, false).await;
        let body = with_related(&app, kind, &resource, &Asked::default()).await?;
        Ok::<_, ScimError>((resource, body))
    };
    match created.await {
        Ok((resource, body)) => {
            let location = body["meta"]["location"].as_str().and_then(|text| HeaderValue::from_str(text).ok());
            let mut response = with_etag(answer(StatusCode::CREATED, &body), &resource);
            response.headers_mut().extend(location.map(|location| (header::LOCATION, location)));
            response
        }
        Err(error) => error.into_response(),
    }
}

/// The ids of a group's members; of a user there are none.
fn members_of(kind: Kind, document: &Map<String, Value>) -> Option<BTreeSet<String>> {
    (kind == Kind::Group).then(|| {
        let members = document.get("members").and_then(Value::as_array).into_iter().flatten();
        members.filter_map(|member| member["value"].as_str().map(str::to_owned)).collect()
    })
}

async fn keep(
    app: &App,
    client: &Client,
    resource: &ScimResource,
    known: Option<i64>,
    members: Option<&BTreeSet<String>>,
) -> Result<(), ScimError> {
    let kept = app.store.scim_keep(&client.provider.config.id, resource, known, members, client.scim.link).await;
    kept.map_err(|refused| match refused {
        ScimRefused::Taken => ScimError::conflict("another one has this name or externalId"),
        ScimRefused::Changed => ScimError::of(StatusCode::PRECONDITION_FAILED, "it was changed meanwhile"),
        ScimRefused::Store(error) => database_failed(&error),
    })
}

/// Tells whoever remembers something of people, the logs, and whoever is told of events.
async fn pushed(
    app: &App,
    request: &RequestInfo,
    client: &Client,
    change: &str,
    resource: &ScimResource,
    was_active: bool,
) {
    app.identities.refresh();
    let provider = client.provider.config.id.as_str();
    let (kind, name) = (resource.kind, resource.name());
    tracing::info!(request = request.id, provider, kind, name, id = resource.id, change, "pushed by SCIM");
    let object = format!("{kind} {}", resource.id);
    app.audit.record(&request.origin(), &Event::Pushed { provider, change, object: &object, name });
    let is_out = was_active && (change == "deleted" || !resource.is_active());
    if let Some(events) = app.events.as_ref().filter(|_| kind == Kind::User.name() && is_out) {
        events.user_deprovisioned(provider, name, &format!("{change} by SCIM")).await;
    }
}

async fn find(app: &App, client: &Client, kind: Kind, id: &str) -> Result<ScimResource, ScimError> {
    let found = app.store.scim_resource(&client.provider.config.id, kind.name(), id).await;
    found.map_err(|e| database_failed(&e))?.ok_or_else(|| not_found(kind, id))
}

/// `GET /scim/v2/Users/<id>`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    Path((path, id)): Path<(String, String)>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let shown = async {
        let (client, kind) = (client(&app, &request, &headers).await?, kind_of(&path)?);
        let resource = find(&app, &client, kind, &id).await?;
        let body = with_related(&app, kind, &resource, &asked).await?;
        Ok::<_, ScimError>((resource, body))
    };
    match shown.await {
        Ok((resource, _)) if names(&headers, header::IF_NONE_MATCH, &resource) == Some(true) => {
            with_etag(StatusCode::NOT_MODIFIED.into_response(), &resource)
        }
        Ok((resource, body)) => with_etag(answer(StatusCode::OK, &body), &resource),
        Err(error) => error.into_response(),
    }
}

/// Whether a condition names this version, if there is one (RFC 9110, section 13.1).
fn names(headers: &HeaderMap, condition: header::HeaderName, resource: &ScimResource) -> Option<bool> {
    let text = headers.get(condition)?.to_str().ok()?;
    let own = etag(resource);
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    Some(text.trim() == "*" || text.split(',').any(|one| opaque(one) == opaque(&own)))
}

fn must_match(headers: &HeaderMap, resource: &ScimResource) -> Result<(), ScimError> {
    match names(headers, header::IF_MATCH, resource) {
        Some(false) => Err(ScimError::of(StatusCode::PRECONDITION_FAILED, "it has another version by now (If-Match)")),
        _ => Ok(()),
    }
}

/// `PUT /scim/v2/Users/<id>`
pub async fn replace(
    state: State<Arc<App>>,
    request: Extension<RequestInfo>,
    path: Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    change_by(&state, &request, &path, &headers, &body, |kind, document, sent| {
        *document = kind.normalize(sent)?;
        Ok(())
    })
    .await
}

/// `PATCH /scim/v2/Users/<id>`
pub async fn patch(
    state: State<Arc<App>>,
    request: Extension<RequestInfo>,
    path: Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    change_by(&state, &request, &path, &headers, &body, apply).await
}

/// Changes a resource by what was sent.
async fn change_by(
    app: &App,
    request: &RequestInfo,
    (path, id): &(String, String),
    headers: &HeaderMap,
    body: &[u8],
    edit: impl Fn(Kind, &mut Map<String, Value>, &Value) -> Result<(), ScimError>,
) -> Response {
    let changed = async {
        let (client, kind) = (client(app, request, headers).await?, kind_of(path)?);
        let sent = parsed(body)?;
        change(app, request, &client, kind, id, headers, |document| edit(kind, document, &sent)).await
    };
    changed.await.unwrap_or_else(IntoResponse::into_response)
}

/// Changes a resource, all of it or nothing; what stays as it is isn't written.
async fn change(
    app: &App,
    request: &RequestInfo,
    client: &Client,
    kind: Kind,
    id: &str,
    headers: &HeaderMap,
    edit: impl Fn(&mut Map<String, Value>) -> Result<(), ScimError>,
) -> Result<Response, ScimError> {
    for attempt in 1..=MAX_TRIES {
        let before = find(app, client, kind, id).await?;
        must_match(headers, &before)?;
        let mut document = before.document.clone();
        if kind == Kind::Group {
            let members = app.store.scim_relations(kind.name(), id).await.map_err(|e| database_failed(&e))?;
            if !members.is_empty() {
                let members = members.into_iter().map(|(id, _)| json!({"value": id})).collect();
                document.insert("members".to_owned(), members);
            }
        }
        let unchanged = document.clone();
        edit(&mut document)?;
        let members = members_of(kind, &document);
        let is_same =
            without_members(&document) == without_members(&unchanged) && members == members_of(kind, &unchanged);
        let mut resource = ScimResource { document, ..before.clone() };
        if !is_same {
            (resource.version, resource.changed_at) = (before.version + 1, now());
            match keep(app, client, &resource, Some(before.version), members.as_ref()).await {
                // Somebody else's change came before.
                Err(error) if error.status == StatusCode::PRECONDITION_FAILED && attempt < MAX_TRIES => continue,
                kept => kept?,
            }
            pushed(app, request, client, "changed", &resource, before.is_active()).await;
        }
        let body = with_related(app, kind, &resource, &Asked::default()).await?;
        return Ok(with_etag(answer(StatusCode::OK, &body), &resource));
    }
    Err(ScimError::of(StatusCode::SERVICE_UNAVAILABLE, "it is changed by others again and again; try again"))
}

fn without_members(document: &Map<String, Value>) -> Map<String, Value> {
    let mut document = document.clone();
    document.remove("members");
    document
}

/// `DELETE /scim/v2/Users/<id>`
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    Path((path, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let deleted = async {
        let (client, kind) = (client(&app, &request, &headers).await?, kind_of(&path)?);
        let resource = find(&app, &client, kind, &id).await?;
        must_match(&headers, &resource)?;
        let there = app.store.scim_delete(&client.provider.config.id, &resource, client.scim.link).await;
        if !there.map_err(|e| database_failed(&e))? {
            return Err(not_found(kind, &id));
        }
        pushed(&app, &request, &client, "deleted", &resource, resource.is_active()).await;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    deleted.await.unwrap_or_else(IntoResponse::into_response)
}
