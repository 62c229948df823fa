//! Bringing in: the manifests of a layout are kept by the rules of a push, parts before wholes.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
};

use berth_oci::{Descriptor, Digest, MANIFEST_LIMIT, Manifest, MediaType, Part, Reference, Repository, Tag};

use super::{
    Index, REF_NAME, TransferError,
    layouts::{BucketLayouts, FolderLayout, Layout, find_layouts},
};
use crate::{
    content::{Content, ManifestPush},
    progress_bar::Progress,
    storage::Objects,
};

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

/// Brings in the layout at `folder`, or every layout below it.
///
/// # Errors
/// [`TransferError`] if there is nothing to bring in, or the store can't be written. A repository, manifest or tag
/// that can't be taken is left out, and reported.
pub async fn import_folder(
    content: &Content,
    folder: &Path,
    name: Option<Repository>,
    copy: bool,
) -> Result<Imported, TransferError> {
    let mut paths = Vec::new();
    find_layouts(folder, &mut paths)?;
    let inside = fs::canonicalize(folder).map_err(|error| TransferError::File { path: folder.to_owned(), error })?;
    let mut imported = Imported::default();
    let mut layouts = Vec::new();
    for path in paths {
        let below = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let repository = match (&name, below.as_str()) {
            (Some(name), "") => Ok(name.clone()),
            (None, "") => return Err(TransferError::Unnamed(path)),
            (_, below) => below.parse(),
        };
        match repository {
            Ok(repository) => {
                layouts.push((FolderLayout::open(path, &inside, copy, &mut imported.left_out)?, repository));
            }
            Err(error) => imported.left_out.push(format!("{below}: {error}")),
        }
    }
    if layouts.is_empty() && imported.left_out.is_empty() {
        return Err(TransferError::NoLayout(folder.to_owned()));
    }
    let layouts = layouts.iter().map(|(layout, repository)| (layout as &dyn Layout, repository.clone())).collect();
    import_all(content, layouts, imported).await
}

/// Brings in every layout of a bucket; what a run before has brought in isn't read again.
///
/// # Errors
/// As [`import_folder`].
pub async fn import_bucket(content: &Content, bucket: &Objects) -> Result<Imported, TransferError> {
    let all = BucketLayouts::list(bucket).await.map_err(TransferError::Bucket)?;
    let (names, mut imported) = (all.names(), Imported::default());
    let mut layouts = Vec::new();
    for name in &names {
        match name.parse::<Repository>() {
            Ok(repository) => layouts.push((all.layout(name), repository)),
            Err(error) => imported.left_out.push(format!("{name}: {error}")),
        }
    }
    if layouts.is_empty() {
        return Err(TransferError::EmptyBucket);
    }
    let layouts = layouts.iter().map(|(layout, repository)| (layout as &dyn Layout, repository.clone())).collect();
    import_all(content, layouts, imported).await
}

async fn import_all(
    content: &Content,
    layouts: Vec<(&dyn Layout, Repository)>,
    mut imported: Imported,
) -> Result<Imported, TransferError> {
    let total = layouts.iter().flat_map(|(layout, _)| layout.blobs()).map(|(_, len)| len).sum();
    let progress = Progress::new("importing", total);
    for (layout, repository) in layouts {
        match import_one(content, layout, &repository, &progress, &mut imported).await {
            // The others are as good as they were.
            Err(error @ TransferError::Shape { .. }) => imported.left_out.push(error.to_string()),
            done => done?,
        }
    }
    progress.finish();
    Ok(imported)
}

async fn import_one(
    content: &Content,
    layout: &dyn Layout,
    repository: &Repository,
    progress: &Progress,
    imported: &mut Imported,
) -> Result<(), TransferError> {
    let (path, text) = layout.index().await;
    let text = text.map_err(|error| TransferError::File { path: path.clone().into(), error })?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| TransferError::Shape { path: path.into(), error })?;

    let mut manifests = Vec::new();
    let mut seen = HashSet::new();
    for descriptor in &index.manifests {
        gather(layout, repository, descriptor, &mut seen, &mut manifests, &mut imported.left_out).await;
    }
    for (digest, len) in layout.blobs() {
        if !seen.contains(&digest) {
            layout.give(content, repository, &digest).await?;
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
        let push = ManifestPush::new(&reference, bytes.into());
        let push = ManifestPush { more_tags: &tags, content_type: Some(media_type.as_str()), ..push };
        match content.push_manifest(repository, &push).await {
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
async fn gather(
    layout: &dyn Layout,
    repository: &Repository,
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
        match read_manifest(layout, &digest, &media_type, size).await {
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
            Err(why) => left_out.push(format!("{repository}@{digest}: {why}")),
        }
    }
}

async fn read_manifest(
    layout: &dyn Layout,
    digest: &Digest,
    media_type: &str,
    size: u64,
) -> Result<(Manifest, Vec<u8>), String> {
    if size > MANIFEST_LIMIT as u64 {
        return Err(format!("a manifest has at most {MANIFEST_LIMIT} bytes"));
    }
    let bytes = layout.read(digest).await.map_err(|error| error.to_string())?;
    let content_type = Some(media_type).filter(|text| !text.is_empty());
    Ok((Manifest::parse(content_type, &bytes).map_err(|error| error.to_string())?, bytes))
}
