//! `berth-registry import` and `export`: OCI image layouts in and out.
//!
//! A zot root directory is a tree of layouts, one a repository, so that a registry moves in one command. Bytes are
//! linked or cloned where the file system can, and not read; manifests are read and kept by the rules of a push.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use berth_oci::{Descriptor, Digest, MANIFEST_LIMIT, Manifest, MediaType, Part, Reference, Repository, Tag};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{content::Content, progress_bar::Progress, storage::Condition};

/// What an index names a manifest's tag with.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why nothing, or not everything, was transferred.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// It isn't one of the two.
    #[error(
        "{} is neither an OCI image layout (with index.json and blobs) nor a folder of them, such as zot's root directory",
        .0.display()
    )]
    NoLayout(PathBuf),
    /// A layout lies at the root, so its path names no repository.
    #[error("{} is one layout; say which repository it is with --repository", .0.display())]
    Unnamed(PathBuf),
    /// There is something where the new folder should be.
    #[error("{} exists already; name a folder that doesn't, which will be made", .0.display())]
    Exists(PathBuf),
    /// A file is unreadable or unwritable.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file isn't what the specification says.
    #[error("{}: {error}", path.display())]
    Shape {
        /// Which.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] berth_oci::Error),
}

/// What was brought in.
#[derive(Debug, Default)]
pub struct Imported {
    /// How many repositories.
    pub repositories: u64,
    /// How many manifests.
    pub manifests: u64,
    /// How many tags.
    pub tags: u64,
    /// How many blobs.
    pub blobs: u64,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    manifests: Vec<Descriptor>,
}

/// Brings in the layout at `folder`, or every layout below it.
///
/// # Errors
/// [`TransferError`] if there is nothing to bring in, or the store can't be written. A repository, manifest or tag
/// that can't be taken is left out, and reported.
pub async fn import(
    content: &Content,
    folder: &Path,
    name: Option<Repository>,
    copy: bool,
) -> Result<Imported, TransferError> {
    let mut layouts = Vec::new();
    find_layouts(folder, &mut layouts)?;
    let mut imported = Imported::default();
    let mut sources = Vec::new();
    for layout in layouts {
        let below = layout.strip_prefix(folder).unwrap_or(&layout).to_string_lossy().into_owned();
        match (&name, below.as_str()) {
            (Some(name), "") => sources.push((layout, name.clone())),
            (None, "") => return Err(TransferError::Unnamed(layout)),
            (_, below) => match below.parse() {
                Ok(repository) => sources.push((layout, repository)),
                Err(error) => imported.left_out.push(format!("{below}: {error}")),
            },
        }
    }
    if sources.is_empty() && imported.left_out.is_empty() {
        return Err(TransferError::NoLayout(folder.to_owned()));
    }
    let inside = fs::canonicalize(folder).map_err(|error| TransferError::File { path: folder.to_owned(), error })?;
    let mut files = Vec::new();
    for (layout, _) in &sources {
        files.push(blob_files(layout, &inside, &mut imported.left_out)?);
    }
    let total = files.iter().flatten().map(|(_, _, len)| len).sum();
    let progress = Progress::new("importing", total);
    for ((layout, repository), files) in sources.iter().zip(files) {
        let source = Source { layout, repository, files, copy };
        match import_one(content, source, &progress, &mut imported).await {
            // The others are as good as they were.
            Err(error @ TransferError::Shape { .. }) => imported.left_out.push(error.to_string()),
            done => done?,
        }
    }
    progress.finish();
    Ok(imported)
}

/// A layout below a root directory that no registry of ours has written to: the store of zot. It is looked for among a
/// thousand folders at most.
pub fn zot_store(root: &Path) -> Option<PathBuf> {
    if root.join("repositories").is_dir() {
        return None;
    }
    let (mut folders, mut looked_at) = (vec![root.to_owned()], 0);
    while let Some(folder) = folders.pop().filter(|_| looked_at < 1000) {
        looked_at += 1;
        if folder.join("index.json").is_file() && folder.join("oci-layout").is_file() {
            return Some(folder);
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.take(1000).map(|entry| entry.path()));
    }
    None
}

/// Whatever has an `index.json` beside its `blobs` is a layout. Others may lie below it: `app` and `app/tools` are two
/// repositories.
fn find_layouts(folder: &Path, layouts: &mut Vec<PathBuf>) -> Result<(), TransferError> {
    let is_layout = folder.join("index.json").is_file();
    if is_layout {
        layouts.push(folder.to_owned());
    }
    let failed = |error| TransferError::File { path: folder.to_owned(), error };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // zot's own folders (`_trivy`, `.uploads`) begin with these.
        let hidden = entry.file_name().to_string_lossy().starts_with(['.', '_']);
        let is_blobs = is_layout && entry.file_name() == "blobs";
        if entry.file_type().map_err(failed)?.is_dir() && !hidden && !is_blobs {
            find_layouts(&entry.path(), layouts)?;
        }
    }
    Ok(())
}

/// The blobs of a layout, with their lengths. What isn't a file, or is a link that leads out of the folder `inside`, is left out:
/// a layout of somebody else's must not bring in a file of this machine's.
fn blob_files(
    layout: &Path,
    inside: &Path,
    left_out: &mut Vec<String>,
) -> Result<Vec<(Digest, PathBuf, u64)>, TransferError> {
    let mut files = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        let folder = layout.join("blobs").join(algorithm);
        let failed = |error| TransferError::File { path: folder.clone(), error };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(digest) = format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse() else { continue };
            let path = entry.path();
            match fs::canonicalize(&path).and_then(|real| Ok((fs::metadata(&real)?, real))) {
                Ok((metadata, real)) if metadata.is_file() && real.starts_with(inside) => {
                    files.push((digest, path, metadata.len()));
                }
                Ok(_) => left_out.push(format!("{}: is no file of this folder", path.display())),
                Err(error) => left_out.push(format!("{}: {error}", path.display())),
            }
        }
    }
    Ok(files)
}

/// A layout on its way in.
struct Source<'a> {
    layout: &'a Path,
    repository: &'a Repository,
    files: Vec<(Digest, PathBuf, u64)>,
    /// Bytes are copied, and never linked.
    copy: bool,
}

async fn import_one(
    content: &Content,
    source: Source<'_>,
    progress: &Progress,
    imported: &mut Imported,
) -> Result<(), TransferError> {
    let Source { layout, repository, files, copy } = source;
    let path = layout.join("index.json");
    let text = fs::read(&path).map_err(|error| TransferError::File { path: path.clone(), error })?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| TransferError::Shape { path, error })?;

    // Parts before wholes: a manifest is pushed after those that it names.
    let mut manifests = Vec::new();
    let mut seen = HashSet::new();
    for descriptor in &index.manifests {
        gather(layout, descriptor, &mut seen, &mut manifests, &mut imported.left_out);
    }
    for (digest, path, len) in files {
        if !seen.contains(&digest) {
            content.adopt_blob(repository, &digest, path, copy).await?;
            imported.blobs += 1;
        }
        progress.advance(len);
    }
    let mut tags: BTreeMap<&Digest, Vec<Tag>> = BTreeMap::new();
    for descriptor in &index.manifests {
        let Some(name) = descriptor.annotations.get(REF_NAME) else { continue };
        match name.parse() {
            Ok(tag) => tags.entry(&descriptor.digest).or_default().push(tag),
            Err(error) => imported.left_out.push(format!("{repository}: the tag {name}: {error}")),
        }
    }
    for (digest, media_type, bytes) in manifests {
        let tags = tags.remove(&digest).unwrap_or_default();
        let reference = Reference::Digest(digest);
        let media_type = Some(media_type.as_str());
        match content.push_manifest(repository, &reference, &tags, media_type, bytes.into(), Condition::None).await {
            Ok(_) => {
                imported.manifests += 1;
                imported.tags += tags.len() as u64;
            }
            Err(error) if error.status.is_server_error() => return Err(error.into()),
            Err(error) => imported.left_out.push(format!("{repository}@{reference}: {error}")),
        }
    }
    imported.repositories += 1;
    Ok(())
}

/// Appends the manifests that `descriptor` names, and then itself, however deep indexes lie in indexes.
fn gather(
    layout: &Path,
    descriptor: &Descriptor,
    seen: &mut HashSet<Digest>,
    manifests: &mut Vec<(Digest, MediaType, Vec<u8>)>,
    left_out: &mut Vec<String>,
) {
    enum Step {
        Read { digest: Digest, media_type: String, size: u64 },
        Take(Digest, MediaType, Vec<u8>),
    }
    let Descriptor { digest, media_type, size, .. } = descriptor.clone();
    let mut steps = vec![Step::Read { digest, media_type, size }];
    while let Some(step) = steps.pop() {
        let (digest, media_type, size) = match step {
            Step::Take(digest, media_type, bytes) => {
                manifests.push((digest, media_type, bytes));
                continue;
            }
            Step::Read { digest, media_type, size } => (digest, media_type, size),
        };
        if !seen.insert(digest.clone()) {
            continue;
        }
        let path = layout.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        match read_manifest(&path, &media_type, size) {
            Ok((manifest, bytes)) => {
                // Its parts come before it.
                steps.push(Step::Take(digest, manifest.media_type, bytes));
                let parts = manifest.manifests.into_iter().rev();
                steps.extend(parts.map(|Part { digest, media_type, size, .. }| Step::Read {
                    digest,
                    media_type,
                    size,
                }));
            }
            Err(why) => left_out.push(format!("{}: {why}", path.display())),
        }
    }
}

fn read_manifest(path: &Path, media_type: &str, size: u64) -> Result<(Manifest, Vec<u8>), String> {
    if size > MANIFEST_LIMIT as u64 {
        return Err(format!("a manifest has at most {MANIFEST_LIMIT} bytes"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let content_type = Some(media_type).filter(|text| !text.is_empty());
    Ok((Manifest::parse(content_type, &bytes).map_err(|error| error.to_string())?, bytes))
}

/// Writes a repository as an OCI image layout into the new folder `folder`; how many manifests it has.
///
/// # Errors
/// [`TransferError`] if there is no such repository, or the folder can't be written.
pub async fn export(content: &Content, repository: &Repository, folder: &Path) -> Result<usize, TransferError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| TransferError::File { path, error }
    };
    let held = content.held(repository).await?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(TransferError::Exists(folder.to_owned()));
        }
        made => made.map_err(failed(folder))?,
    }
    let blobs = held.blobs.iter().chain(held.manifests.iter().map(|manifest| &manifest.digest));
    for digest in blobs {
        let parent = folder.join("blobs").join(digest.algorithm().as_str());
        fs::create_dir_all(&parent).map_err(failed(&parent))?;
        content.copy_blob(digest, parent.join(digest.hex())).await?;
    }
    let mut manifests = Vec::new();
    for descriptor in &held.manifests {
        let tags = held.tags.iter().filter(|(_, digest)| *digest == descriptor.digest);
        let tagged = tags.map(|(tag, _)| {
            let annotations = BTreeMap::from([(REF_NAME.to_owned(), tag.to_string())]);
            Descriptor { annotations, ..descriptor.clone() }
        });
        let tagged: Vec<_> = tagged.collect();
        if tagged.is_empty() { manifests.push(descriptor.clone()) } else { manifests.extend(tagged) }
    }
    let count = held.manifests.len();
    let index = json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": manifests});
    for (name, document) in [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index)] {
        let path = folder.join(name);
        fs::write(&path, document.to_string()).map_err(failed(&path))?;
    }
    Ok(count)
}
