//! What a request asks of a registry.
//!
//! [`Operation::parse`] reads a request line once; [`Operation::method`] and [`Operation::target`] write it
//! again from the value. The proxy decides on the value and forwards what it wrote, so the registry can't
//! read a request otherwise than the proxy did. Whatever isn't part of an operation (an unknown query
//! parameter, a fragment, an encoded slash) doesn't survive.

use std::{fmt, str::FromStr};

use form_urlencoded::{Serializer, parse as parse_form};
use http::{Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use crate::{
    Algorithm, Digest, Error, ErrorCode, MAX_SEARCH_BYTES, Reference, ReferenceError, Repository, RepositoryError,
    Search, Tag, TagOrder, TagSelection,
};

/// How many `tag=` parameters one manifest push may carry; more are answered 414.
///
/// The specification asks for ten at least ("Pushing Manifests").
pub const MAX_TAGS_PER_PUSH: usize = 64;

/// The longest request target that is read, in bytes.
const MAX_TARGET: usize = 8 * 1024;

/// One request to the distribution API. `end-N` are the specification's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// end-1, `GET /v2/`: is this a registry, and who am I to it?
    Ping,
    /// `GET /v2/_catalog`, which repositories there are (CNCF Distribution; not in the OCI specification).
    ListRepositories(Page),
    /// end-8.
    ListTags {
        /// Whose tags.
        repository: Repository,
        /// Which part of the list.
        page: Page,
    },
    /// end-3, `HEAD`.
    HeadManifest {
        /// Where.
        repository: Repository,
        /// Which.
        reference: Reference,
    },
    /// end-3, `GET`.
    PullManifest {
        /// Where.
        repository: Repository,
        /// Which.
        reference: Reference,
    },
    /// end-7: to a tag, or to a digest with any number of tags.
    PushManifest {
        /// Where to.
        repository: Repository,
        /// As what.
        reference: Reference,
        /// Further tags; only with a digest.
        tags: Vec<Tag>,
    },
    /// end-9.
    DeleteManifest {
        /// Where.
        repository: Repository,
        /// A tag alone, or a manifest with its tags.
        reference: Reference,
    },
    /// end-2, `HEAD`.
    HeadBlob {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
    },
    /// end-2, `GET`.
    PullBlob {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
    },
    /// end-10.
    DeleteBlob {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
    },
    /// end-4a, end-4c: open an upload.
    StartUpload {
        /// Where to.
        repository: Repository,
        /// What the finished blob's digest will be of.
        algorithm: Algorithm,
    },
    /// end-4b: a blob in a single POST.
    PushBlob {
        /// Where to.
        repository: Repository,
        /// The digest that the body must have.
        digest: Digest,
    },
    /// end-11.
    MountBlob {
        /// Where to.
        repository: Repository,
        /// Which blob.
        digest: Digest,
        /// The repository that holds it. Without one nothing is mounted and an upload begins.
        from: Option<Repository>,
    },
    /// end-13: how far is it?
    UploadStatus(UploadSession),
    /// end-5: append a chunk.
    UploadChunk(UploadSession),
    /// end-6: append the rest and close.
    FinishUpload {
        /// Which upload.
        session: UploadSession,
        /// The digest that the whole must have.
        digest: Digest,
    },
    /// end-14.
    CancelUpload(UploadSession),
    /// end-12.
    ListReferrers {
        /// Where.
        repository: Repository,
        /// The manifest that is referred to; it need not exist.
        subject: Digest,
        /// Only referrers of this type.
        artifact_type: Option<String>,
        /// Only those after this one, which an answer's `Link` has named.
        last: Option<String>,
    },
    /// `GET /v2/_berth/repositories`: which there are, and what is counted of them.
    DescribeRepositories(Search),
    /// `GET /v2/_berth/tags/<name>`: tags, and what they point at.
    DescribeTags {
        /// Whose tags.
        repository: Repository,
        /// Which of them, in which order.
        selection: TagSelection,
    },
    /// `GET /v2/_berth/usage/<name>`: what is used of the quotas that count it.
    DescribeUsage {
        /// Which repository.
        repository: Repository,
    },
    /// `GET /v2/_berth/holders/<name>/<digest>`: which repositories hold a blob of one.
    ListHolders {
        /// One that holds it.
        repository: Repository,
        /// Which blob.
        digest: Digest,
        /// Which part of the list.
        page: Page,
    },
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most so many entries; all (or as many as the registry gives at once) if there is no number.
    pub n: Option<usize>,
    /// Only entries after this one.
    pub last: Option<String>,
}

/// An upload that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadSession {
    /// The repository that it was begun in.
    pub repository: Repository,
    /// Its name, chosen by the registry.
    pub id: UploadId,
    /// `_state`, which some registries put in `Location` and want back unread.
    pub state: Option<String>,
}

/// The name of an upload: letters, digits and `-_.=`, beginning with a letter or digit, at most 128.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(Box<str>);

impl UploadId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UploadId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.as_bytes() {
            [first, rest @ ..]
                if first.is_ascii_alphanumeric()
                    && rest.len() < 128
                    && rest.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.=".contains(b)) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(()),
        }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a request line is no operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The path is none of the API's.
    #[error("this is not a path of the distribution API")]
    NotFound,
    /// The path is right and the method isn't.
    #[error("{0} is not possible here")]
    Method(Method),
    /// The repository name is malformed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The tag is malformed.
    #[error(transparent)]
    Tag(#[from] crate::TagError),
    /// A digest is malformed, or of an unknown algorithm.
    #[error(transparent)]
    Digest(#[from] crate::DigestError),
    /// A digest that the operation needs is missing.
    #[error("the query parameter 'digest' is missing")]
    DigestMissing,
    /// `order` is none.
    #[error("the query parameter 'order' must be name, pushed or version")]
    Order,
    /// `n` isn't a number.
    #[error("the query parameter 'n' must be a whole number")]
    PageSize,
    /// A parameter that may stand once stands twice.
    #[error("the query parameter '{0}' stands more than once")]
    Repeated(&'static str),
    /// A parameter is overlong or not text.
    #[error("the query parameter '{0}' is too long or has control characters")]
    Parameter(&'static str),
    /// More tags than [`MAX_TAGS_PER_PUSH`].
    #[error("one push may set at most {MAX_TAGS_PER_PUSH} tags")]
    TooManyTags,
    /// The request target is longer than 8 KiB.
    #[error("the request target is longer than {MAX_TARGET} bytes")]
    TooLong,
}

impl From<ReferenceError> for RouteError {
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Tag(e) => e.into(),
            ReferenceError::Digest(e) => e.into(),
        }
    }
}

impl From<RouteError> for Error {
    fn from(error: RouteError) -> Self {
        let (status, code) = match error {
            RouteError::NotFound => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
            RouteError::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
            RouteError::Repository(_) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
            RouteError::Tag(_) => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
            RouteError::Digest(_) | RouteError::DigestMissing => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
            RouteError::PageSize | RouteError::Order | RouteError::Repeated(_) | RouteError::Parameter(_) => {
                (StatusCode::BAD_REQUEST, ErrorCode::Unsupported)
            }
            RouteError::TooManyTags | RouteError::TooLong => (StatusCode::URI_TOO_LONG, ErrorCode::Unsupported),
        };
        Error::new(status, code, error.to_string())
    }
}

impl Operation {
    /// Reads a request line. `uri`'s scheme and authority, if it has any, are not looked at.
    ///
    /// # Errors
    /// [`RouteError`], which converts into the answer for the client.
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, RouteError> {
        let query = Query(uri.query().unwrap_or_default());
        if uri.path().len() + query.0.len() > MAX_TARGET {
            return Err(RouteError::TooLong);
        }
        if uri.path() == "/v2" {
            return read_only(method, Self::Ping);
        }
        let path = uri.path().strip_prefix("/v2/").ok_or(RouteError::NotFound)?;
        // Read from the end: a repository may be called `a/manifests` or `blobs/uploads`.
        let segments: Vec<&str> = path.split('/').collect();
        match segments.as_slice() {
            [""] => read_only(method, Self::Ping),
            ["_catalog"] => read_only(method, Self::ListRepositories(query.page()?)),
            ["_berth", "repositories"] => read_only(method, Self::DescribeRepositories(query.search()?)),
            ["_berth", "tags", name @ ..] => {
                let (repository, digest) = (repository(name)?, query.text("digest")?);
                let order = query.text("order")?.map_or(Ok(TagOrder::default()), |order| order.parse());
                let digest = digest.map(|digest| digest.parse()).transpose()?;
                let order = order.map_err(|()| RouteError::Order)?;
                let without_attached = query.text("attached")?.is_some_and(|attached| attached == "false");
                let selection = TagSelection { search: query.search()?, digest, order, without_attached };
                read_only(method, Self::DescribeTags { repository, selection })
            }
            ["_berth", "usage", name @ ..] => {
                let repository = repository(name)?;
                read_only(method, Self::DescribeUsage { repository })
            }
            ["_berth", "holders", name @ .., digest] => {
                let (repository, digest) = (repository(name)?, decode(digest)?.parse()?);
                read_only(method, Self::ListHolders { repository, digest, page: query.page()? })
            }
            [name @ .., "tags", "list"] => {
                let repository = repository(name)?;
                read_only(method, Self::ListTags { repository, page: query.page()? })
            }
            [name @ .., "manifests", reference] => Self::manifest(method, repository(name)?, reference, query),
            [name @ .., "blobs", "uploads", ""] | [name @ .., "blobs", "uploads"] => {
                Self::new_upload(method, repository(name)?, query)
            }
            [name @ .., "blobs", "uploads", id] => Self::upload(method, repository(name)?, id, query),
            [name @ .., "blobs", digest] => {
                let (repository, digest) = (repository(name)?, decode(digest)?.parse()?);
                match *method {
                    Method::GET => Ok(Self::PullBlob { repository, digest }),
                    Method::HEAD => Ok(Self::HeadBlob { repository, digest }),
                    Method::DELETE => Ok(Self::DeleteBlob { repository, digest }),
                    _ => Err(RouteError::Method(method.clone())),
                }
            }
            [name @ .., "referrers", subject] => {
                let (repository, subject) = (repository(name)?, decode(subject)?.parse()?);
                let artifact_type = query.text("artifactType")?.filter(|t| !t.is_empty());
                let last = query.text("last")?.filter(|t| !t.is_empty());
                read_only(method, Self::ListReferrers { repository, subject, artifact_type, last })
            }
            _ => Err(RouteError::NotFound),
        }
    }

    fn manifest(method: &Method, repository: Repository, text: &str, query: Query<'_>) -> Result<Self, RouteError> {
        let reference: Reference = decode(text)?.parse()?;
        match *method {
            Method::GET => Ok(Self::PullManifest { repository, reference }),
            Method::HEAD => Ok(Self::HeadManifest { repository, reference }),
            Method::DELETE => Ok(Self::DeleteManifest { repository, reference }),
            Method::PUT => {
                let mut tags = Vec::new();
                if matches!(reference, Reference::Digest(_)) {
                    for tag in query.all("tag") {
                        let tag: Tag = tag.parse()?;
                        if !tags.contains(&tag) {
                            tags.push(tag);
                        }
                    }
                }
                if tags.len() > MAX_TAGS_PER_PUSH {
                    return Err(RouteError::TooManyTags);
                }
                Ok(Self::PushManifest { repository, reference, tags })
            }
            _ => Err(RouteError::Method(method.clone())),
        }
    }

    fn new_upload(method: &Method, repository: Repository, query: Query<'_>) -> Result<Self, RouteError> {
        if *method != Method::POST {
            return Err(RouteError::Method(method.clone()));
        }
        if let Some(digest) = query.text("mount")? {
            let digest = digest.parse()?;
            // A source that can't exist is a source that doesn't: the client then uploads.
            let from = query.text("from")?.and_then(|from| from.parse().ok());
            return Ok(Self::MountBlob { repository, digest, from });
        }
        if let Some(digest) = query.text("digest")? {
            return Ok(Self::PushBlob { repository, digest: digest.parse()? });
        }
        let algorithm = query.text("digest-algorithm")?.map_or(Ok(Algorithm::default()), |a| a.parse())?;
        Ok(Self::StartUpload { repository, algorithm })
    }

    fn upload(method: &Method, repository: Repository, id: &str, query: Query<'_>) -> Result<Self, RouteError> {
        let id = id.parse().map_err(|()| RouteError::NotFound)?;
        let session = UploadSession { repository, id, state: query.text("_state")? };
        match *method {
            Method::GET | Method::HEAD => Ok(Self::UploadStatus(session)),
            Method::PATCH => Ok(Self::UploadChunk(session)),
            Method::PUT => {
                let digest = query.text("digest")?.ok_or(RouteError::DigestMissing)?.parse()?;
                Ok(Self::FinishUpload { session, digest })
            }
            Method::DELETE => Ok(Self::CancelUpload(session)),
            _ => Err(RouteError::Method(method.clone())),
        }
    }

    /// The repository that is asked of, if it is one.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Ping | Self::ListRepositories(_) | Self::DescribeRepositories(_) => None,
            Self::ListTags { repository, .. }
            | Self::DescribeTags { repository, .. }
            | Self::DescribeUsage { repository }
            | Self::ListHolders { repository, .. }
            | Self::HeadManifest { repository, .. }
            | Self::PullManifest { repository, .. }
            | Self::PushManifest { repository, .. }
            | Self::DeleteManifest { repository, .. }
            | Self::HeadBlob { repository, .. }
            | Self::PullBlob { repository, .. }
            | Self::DeleteBlob { repository, .. }
            | Self::StartUpload { repository, .. }
            | Self::PushBlob { repository, .. }
            | Self::MountBlob { repository, .. }
            | Self::ListReferrers { repository, .. } => Some(repository),
            Self::UploadStatus(session)
            | Self::UploadChunk(session)
            | Self::FinishUpload { session, .. }
            | Self::CancelUpload(session) => Some(&session.repository),
        }
    }

    /// Whether it only reads, and what is answered is short as a rule: a few headers, or a page of a list.
    pub fn has_short_answer(&self) -> bool {
        use Operation::{HeadBlob, HeadManifest, ListReferrers, ListTags};
        matches!(self, HeadBlob { .. } | HeadManifest { .. } | ListReferrers { .. } | ListTags { .. })
    }

    /// What it is called in counters, logs and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::ListRepositories(_) => "list_repositories",
            Self::ListTags { .. } => "list_tags",
            Self::HeadManifest { .. } => "head_manifest",
            Self::PullManifest { .. } => "pull_manifest",
            Self::PushManifest { .. } => "push_manifest",
            Self::DeleteManifest { .. } => "delete_manifest",
            Self::HeadBlob { .. } => "head_blob",
            Self::PullBlob { .. } => "pull_blob",
            Self::DeleteBlob { .. } => "delete_blob",
            Self::StartUpload { .. } => "start_upload",
            Self::PushBlob { .. } => "push_blob",
            Self::MountBlob { .. } => "mount_blob",
            Self::UploadStatus(_) => "upload_status",
            Self::UploadChunk(_) => "upload_chunk",
            Self::FinishUpload { .. } => "finish_upload",
            Self::CancelUpload(_) => "cancel_upload",
            Self::ListReferrers { .. } => "list_referrers",
            Self::DescribeRepositories(_) => "describe_repositories",
            Self::DescribeTags { .. } => "describe_tags",
            Self::DescribeUsage { .. } => "describe_usage",
            Self::ListHolders { .. } => "list_holders",
        }
    }

    /// What of the repository it is about: a tag, or a digest.
    pub fn reference(&self) -> Option<Reference> {
        match self {
            Self::HeadManifest { reference, .. }
            | Self::PullManifest { reference, .. }
            | Self::PushManifest { reference, .. }
            | Self::DeleteManifest { reference, .. } => Some(reference.clone()),
            Self::HeadBlob { digest, .. }
            | Self::PullBlob { digest, .. }
            | Self::DeleteBlob { digest, .. }
            | Self::PushBlob { digest, .. }
            | Self::MountBlob { digest, .. }
            | Self::FinishUpload { digest, .. }
            | Self::ListHolders { digest, .. }
            | Self::ListReferrers { subject: digest, .. } => Some(Reference::Digest(digest.clone())),
            Self::Ping
            | Self::ListRepositories(_)
            | Self::ListTags { .. }
            | Self::DescribeRepositories(_)
            | Self::DescribeTags { .. }
            | Self::DescribeUsage { .. }
            | Self::StartUpload { .. }
            | Self::UploadStatus(_)
            | Self::UploadChunk(_)
            | Self::CancelUpload(_) => None,
        }
    }

    /// The method of the request line.
    pub fn method(&self) -> Method {
        match self {
            Self::Ping
            | Self::ListRepositories(_)
            | Self::ListTags { .. }
            | Self::PullManifest { .. }
            | Self::PullBlob { .. }
            | Self::UploadStatus(_)
            | Self::DescribeRepositories(_)
            | Self::DescribeTags { .. }
            | Self::DescribeUsage { .. }
            | Self::ListHolders { .. }
            | Self::ListReferrers { .. } => Method::GET,
            Self::HeadManifest { .. } | Self::HeadBlob { .. } => Method::HEAD,
            Self::PushManifest { .. } | Self::FinishUpload { .. } => Method::PUT,
            Self::DeleteManifest { .. } | Self::DeleteBlob { .. } | Self::CancelUpload(_) => Method::DELETE,
            Self::StartUpload { .. } | Self::PushBlob { .. } | Self::MountBlob { .. } => Method::POST,
            Self::UploadChunk(_) => Method::PATCH,
        }
    }

    /// The target of the request line: path and query, written from the value.
    pub fn target(&self) -> String {
        match self {
            Self::Ping => "/v2/".to_owned(),
            Self::ListRepositories(page) => page.append_to("/v2/_catalog".to_owned()),
            Self::ListTags { repository, page } => page.append_to(format!("/v2/{repository}/tags/list")),
            Self::DescribeRepositories(search) => with_query("/v2/_berth/repositories".to_owned(), search.parameters()),
            Self::DescribeTags { repository, selection } => {
                let TagSelection { search, digest, order, without_attached } = selection;
                let digest = digest.iter().map(|digest| ("digest", digest.to_string()));
                let order = (*order != TagOrder::default()).then(|| ("order", order.to_string()));
                let attached = without_attached.then(|| ("attached", "false".to_owned()));
                let parameters = search.parameters().chain(digest).chain(order).chain(attached);
                with_query(format!("/v2/_berth/tags/{repository}"), parameters)
            }
            Self::DescribeUsage { repository } => format!("/v2/_berth/usage/{repository}"),
            Self::ListHolders { repository, digest, page } => {
                page.append_to(format!("/v2/_berth/holders/{repository}/{digest}"))
            }
            Self::HeadManifest { repository, reference }
            | Self::PullManifest { repository, reference }
            | Self::DeleteManifest { repository, reference } => format!("/v2/{repository}/manifests/{reference}"),
            Self::PushManifest { repository, reference, tags } => with_query(
                format!("/v2/{repository}/manifests/{reference}"),
                tags.iter().map(|tag| ("tag", tag.to_string())),
            ),
            Self::HeadBlob { repository, digest }
            | Self::PullBlob { repository, digest }
            | Self::DeleteBlob { repository, digest } => format!("/v2/{repository}/blobs/{digest}"),
            Self::StartUpload { repository, algorithm } => with_query(
                format!("/v2/{repository}/blobs/uploads/"),
                (*algorithm != Algorithm::default()).then(|| ("digest-algorithm", algorithm.to_string())),
            ),
            Self::PushBlob { repository, digest } => {
                with_query(format!("/v2/{repository}/blobs/uploads/"), [("digest", digest.to_string())])
            }
            Self::MountBlob { repository, digest, from } => with_query(
                format!("/v2/{repository}/blobs/uploads/"),
                [("mount", digest.to_string())].into_iter().chain(from.iter().map(|from| ("from", from.to_string()))),
            ),
            Self::UploadStatus(session) | Self::UploadChunk(session) | Self::CancelUpload(session) => {
                with_query(session.path(), session.state_parameter())
            }
            Self::FinishUpload { session, digest } => {
                with_query(session.path(), session.state_parameter().chain([("digest", digest.to_string())]))
            }
            Self::ListReferrers { repository, subject, artifact_type, last } => with_query(
                format!("/v2/{repository}/referrers/{subject}"),
                artifact_type
                    .iter()
                    .map(|t| ("artifactType", t.clone()))
                    .chain(last.iter().map(|l| ("last", l.clone()))),
            ),
        }
    }
}

impl UploadSession {
    /// `/v2/<name>/blobs/uploads/<id>`
    pub fn path(&self) -> String {
        format!("/v2/{}/blobs/uploads/{}", self.repository, self.id)
    }

    fn state_parameter(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.state.clone().map(|state| ("_state", state)).into_iter()
    }
}

impl Page {
    /// `path` with this page as its query; also the target of a `Link` to the next one.
    pub fn append_to(&self, path: String) -> String {
        with_query(path, self.parameters())
    }

    fn parameters(&self) -> impl Iterator<Item = (&'static str, String)> {
        let n = self.n.map(|n| ("n", n.to_string()));
        let last = self.last.clone().map(|last| ("last", last));
        n.into_iter().chain(last)
    }
}

impl Search {
    fn parameters(&self) -> impl Iterator<Item = (&'static str, String)> {
        let q = self.q.clone().map(|q| ("q", q));
        q.into_iter().chain(self.page.parameters())
    }
}

fn read_only(method: &Method, operation: Operation) -> Result<Operation, RouteError> {
    match *method {
        Method::GET | Method::HEAD => Ok(operation),
        _ => Err(RouteError::Method(method.clone())),
    }
}

fn repository(segments: &[&str]) -> Result<Repository, RouteError> {
    Ok(segments.join("/").parse()?)
}

/// A reference as some clients write it, with `%3A` for the colon. What comes out must still be a
/// reference, so nothing else can hide in the encoding.
fn decode(segment: &str) -> Result<String, RouteError> {
    let text = percent_decode_str(segment).decode_utf8().map_err(|_| RouteError::Tag(crate::TagError))?;
    Ok(text.into_owned())
}

fn with_query(path: String, parameters: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut query = Serializer::new(String::new());
    query.extend_pairs(parameters);
    match query.finish() {
        query if query.is_empty() => path,
        query => format!("{path}?{query}"),
    }
}

#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl Query<'_> {
    fn all(self, name: &'static str) -> impl Iterator<Item = String> {
        parse_form(self.0.as_bytes()).filter(move |(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The one value of `name`. A second one is an error, so that nobody can take another than we do.
    fn text(self, name: &'static str) -> Result<Option<String>, RouteError> {
        let mut values = self.all(name);
        let value = values.next();
        if values.next().is_some() {
            return Err(RouteError::Repeated(name));
        }
        match value {
            Some(value) if value.len() > 2048 || value.chars().any(char::is_control) => {
                Err(RouteError::Parameter(name))
            }
            value => Ok(value),
        }
    }

    fn page(self) -> Result<Page, RouteError> {
        let n = match self.text("n")? {
            None => None,
            Some(n) => Some(n.parse().map_err(|_| RouteError::PageSize)?),
        };
        Ok(Page { n, last: self.text("last")?.filter(|last| !last.is_empty()) })
    }

    fn search(self) -> Result<Search, RouteError> {
        let q = self.text("q")?.filter(|q| !q.is_empty());
        if q.as_ref().is_some_and(|q| q.len() > MAX_SEARCH_BYTES) {
            return Err(RouteError::Parameter("q"));
        }
        Ok(Search { q, page: self.page()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(method: Method, target: &str) -> Result<Operation, RouteError> {
        Operation::parse(&method, &target.parse().expect("a request target"))
    }

    #[test]
    fn every_endpoint_is_written_as_it_was_read() {
        for (method, target) in [
            (Method::GET, "/v2/".to_owned()),
            (Method::GET, "/v2/_catalog?n=5&last=a%2Fb".to_owned()),
            (Method::GET, "/v2/a/b/tags/list?n=0".to_owned()),
            (Method::GET, "/v2/a/manifests/latest".to_owned()),
            (Method::HEAD, format!("/v2/a/manifests/sha256:{HEX}")),
            (Method::PUT, format!("/v2/a/manifests/sha256:{HEX}?tag=1&tag=1.2")),
            (Method::DELETE, "/v2/a/manifests/latest".to_owned()),
            (Method::GET, format!("/v2/a/blobs/sha256:{HEX}")),
            (Method::HEAD, format!("/v2/a/blobs/sha256:{HEX}")),
            (Method::DELETE, format!("/v2/a/blobs/sha256:{HEX}")),
            (Method::POST, "/v2/a/blobs/uploads/".to_owned()),
            (Method::POST, "/v2/a/blobs/uploads/?digest-algorithm=sha512".to_owned()),
            (Method::POST, format!("/v2/a/blobs/uploads/?digest=sha256%3A{HEX}")),
            (Method::POST, format!("/v2/a/blobs/uploads/?mount=sha256%3A{HEX}&from=b%2Fc")),
            (Method::PATCH, "/v2/a/blobs/uploads/0-1?_state=xyz".to_owned()),
            (Method::PUT, format!("/v2/a/blobs/uploads/0-1?_state=xyz&digest=sha256%3A{HEX}")),
            (Method::GET, "/v2/a/blobs/uploads/0-1".to_owned()),
            (Method::DELETE, "/v2/a/blobs/uploads/0-1".to_owned()),
            (Method::GET, format!("/v2/a/referrers/sha256:{HEX}?artifactType=a%2Fb&last=x")),
            (Method::GET, "/v2/_berth/repositories?q=a%2F&n=5&last=a%2Fb".to_owned()),
            (
                Method::GET,
                format!("/v2/_berth/tags/a/b?q=1&n=5&last=x&digest=sha256%3A{HEX}&order=pushed&attached=false"),
            ),
            (Method::GET, format!("/v2/_berth/holders/a/b/sha256:{HEX}?n=5")),
        ] {
            let operation = parse(method.clone(), &target).expect(&target);
            assert_eq!((operation.method(), operation.target()), (method, target));
        }
    }

    #[test]
    fn a_repository_may_be_named_like_a_part_of_the_api() {
        for (target, name) in [
            ("/v2/x/manifests/manifests/tag", "x/manifests"),
            ("/v2/blobs/uploads/tags/list", "blobs/uploads"),
            ("/v2/a/blobs/uploads/manifests/tag", "a/blobs/uploads"),
        ] {
            let operation = parse(Method::GET, target).expect(target);
            assert_eq!(operation.repository().map(Repository::as_str), Some(name));
        }
    }

    #[test]
    fn paths_that_two_parsers_could_read_differently_are_refused() {
        for target in [
            "//v2/",
            "/V2/",
            "/v2//",
            "/v2/./_catalog",
            "/v2/a/../b/tags/list",
            "/v2/a%2fb/tags/list",
            "/v2/%2e%2e/tags/list",
            "/v2/a%252fb/tags/list",
            "/v2/a;b/tags/list",
            "/v2/a//tags/list",
            "/v2/a/tags/list/",
            "/v2/tags/list",
            "/v2/a/manifests/..%2f..%2fx",
            "/v2/a/manifests/",
            "/v2/a/blobs/uploads/..",
            "/v2/_catalog/",
            "/v2/_zot/ext/mgmt",
            "/v2/_berth",
            "/v2/_berth/tags/",
            "/v2/_berth/tags/a/../b",
            "/v2/_berth/tags/a?order=size",
            "/v2/_berth/holders/sha256:x",
        ] {
            assert!(parse(Method::GET, target).is_err(), "{target}");
        }
    }

    #[test]
    fn a_parameter_that_stands_twice_is_refused() {
        let target = format!("/v2/a/blobs/uploads/?mount=sha256:{HEX}&from=a&from=b");
        assert_eq!(parse(Method::POST, &target), Err(RouteError::Repeated("from")));
    }

    #[test]
    fn a_mount_from_an_impossible_name_has_no_source() {
        let operation = parse(Method::POST, &format!("/v2/a/blobs/uploads/?mount=sha256:{HEX}&from=../b"));
        assert!(matches!(operation, Ok(Operation::MountBlob { from: None, .. })), "{operation:?}");
    }

    #[test]
    fn too_many_tags_are_414() {
        let tags: Vec<String> = (0..=MAX_TAGS_PER_PUSH).map(|i| format!("tag=t{i}")).collect();
        let error = parse(Method::PUT, &format!("/v2/a/manifests/sha256:{HEX}?{}", tags.join("&")));
        assert_eq!(error, Err(RouteError::TooManyTags));
        assert_eq!(Error::from(RouteError::TooManyTags).status, StatusCode::URI_TOO_LONG);
    }

    fn methods() -> impl Strategy<Value = Method> {
        prop::sample::select(vec![
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ])
    }

    proptest! {
        /// What the proxy writes from a value, the registry reads as the same value.
        #[test]
        fn what_is_forwarded_is_what_was_authorized(
            method in methods(),
            target in r"/v2/([a-z%./_-]|blobs/|manifests/|tags/list|uploads/|sha256:[0-9a-f]{64}|%3A|;|_berth/|holders/|\?q=|&order=|\?n=|&last=|\?digest=|&from=|\?mount=|\?tag=|&tag=|[0-9]){0,12}",
        ) {
            if let Ok(uri) = target.parse::<Uri>()
                && let Ok(operation) = Operation::parse(&method, &uri)
            {
                let again = operation.target().parse::<Uri>().expect("a target that we wrote");
                // HEAD of a list is forwarded as the GET that it means.
                prop_assert_eq!(Operation::parse(&operation.method(), &again), Ok(operation));
            }
        }

        #[test]
        fn no_request_line_panics(method in methods(), target in "\\PC{0,200}") {
            if let Ok(uri) = target.parse::<Uri>() {
                let _ = Operation::parse(&method, &uri);
            }
        }
    }
}
