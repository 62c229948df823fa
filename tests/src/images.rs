//! Images to push, written as an OCI layout.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use berth_bench::content::{self, noise};
pub use berth_bench::content::{MANIFEST, digest};
use serde_json::{Value, json};

/// An image of one uncompressed layer.
pub struct Image {
    /// The layer, a tar archive with one file.
    pub layer: Vec<u8>,
    /// The configuration, JSON.
    pub config: Vec<u8>,
    /// The manifest, JSON.
    pub manifest: Vec<u8>,
}

impl Image {
    /// An image whose one file is `size` bytes that don't compress, different for each `seed`.
    pub fn new(seed: u64, size: usize) -> Self {
        let content::Image { layer, config, manifest } = content::Image::of(tar("data", &noise(seed, size)));
        Self { layer: layer.into(), config: config.into(), manifest: manifest.into() }
    }

    /// Writes the image into the OCI layout at `folder`, under `tag`, beside what is there.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn write_layout(&self, folder: &Path, tag: &str) {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a folder");
        for bytes in [&self.layer, &self.config, &self.manifest] {
            fs::write(blob(folder, &digest(bytes)), bytes).expect("a blob");
        }
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("the layout");
        let index = folder.join("index.json");
        let mut manifests = match fs::read(&index) {
            Ok(text) => serde_json::from_slice::<Value>(&text).expect("an index")["manifests"].take(),
            Err(_) => json!([]),
        };
        manifests.as_array_mut().expect("manifests").push(json!({
            "mediaType": MANIFEST, "digest": digest(&self.manifest), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }));
        let text = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        fs::write(index, text).expect("the index");
    }
}

/// Writes images for several platforms into the OCI layout at `folder`, as one index under `tag`.
///
/// # Panics
/// If they can't be written.
pub fn write_index(folder: &Path, tag: &str, images: &[Image]) {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let platforms = images.iter().zip(["amd64", "arm64", "s390x"]).map(|(image, architecture)| {
        image.write_layout(folder, architecture);
        json!({
            "mediaType": MANIFEST, "digest": digest(&image.manifest), "size": image.manifest.len(),
            "platform": {"architecture": architecture, "os": "linux"},
        })
    });
    let platforms: Vec<Value> = platforms.collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": platforms}).to_string();
    fs::write(blob(folder, &digest(index.as_bytes())), &index).expect("a blob");
    let named = json!({
        "mediaType": INDEX, "digest": digest(index.as_bytes()), "size": index.len(),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    });
    fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [named]}).to_string())
        .expect("the index");
}

fn blob(folder: &Path, digest: &str) -> PathBuf {
    folder.join("blobs").join(digest.replace(':', "/"))
}

/// A tar archive (ustar) with one file.
///
/// # Panics
/// Never.
pub fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.write_all(content).expect("memory");
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}
