//! Measures Berth beside others on this machine, and writes what came of it into the documentation.
//!
//! ```sh
//! cargo run --release -p berth-tests --bin berth-measure            # prints
//! cargo run --release -p berth-tests --bin berth-measure -- --write # into docs/performance.md and docs/scale.md
//! ```
//! Machines are noisy, so whatever is compared is measured in turns, and only ratios within one table say something.

#[path = "../measure/mod.rs"]
mod measure;

use std::{fs, path::Path};

use clap::Parser;

use self::measure::{Scope, bucket, credentials, curves, many, peers, tls};

#[derive(Parser)]
struct Arguments {
    /// What is measured: peers, credentials, tls, many, bucket, curves; all of it, if nothing is said
    parts: Vec<String>,
    /// Write it into the documentation
    #[arg(long)]
    write: bool,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each request is repeated, in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The large blob, in MiB
    #[arg(long, default_value_t = 1024)]
    large: u64,
    /// The programs of before, for a column of their own: the folder with berth-proxy and berth-registry
    #[arg(long)]
    before: Option<std::path::PathBuf>,
}

#[tokio::main]
async fn main() {
    let Arguments { parts, write, rounds, seconds, large, before } = Arguments::parse();
    let scope = Scope { rounds, seconds, large_mib: large, before };
    let asked = |part: &str| parts.is_empty() || parts.iter().any(|asked| asked == part);
    let tell = |document: &str, part: &str, text: &str| {
        println!("{text}");
        if write {
            put(document, part, text);
        }
    };
    if asked("peers") {
        tell("performance", "peers", &peers::table(&scope).await);
    }
    if asked("credentials") {
        tell("performance", "credentials", &credentials::table(&scope).await);
    }
    if asked("tls") {
        tell("performance", "tls", &tls::table(&scope).await);
    }
    if asked("many") {
        tell("performance", "many", &many::table(&scope).await);
    }
    if asked("bucket") {
        tell("performance", "bucket", &bucket::table(&scope).await);
    }
    if asked("curves") {
        let take = |(name, text, picture): curves::Curve| {
            if write {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/curves/{name}.svg"));
                fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                fs::write(path, picture).expect("the picture");
            }
            tell("scale", name, &text);
        };
        curves::each(&scope, take).await;
    }
}

/// Puts a text where a document has a place for it.
fn put(document: &str, part: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/{document}.md"));
    let old = fs::read_to_string(&path).expect("the document");
    let (begin, end) = (format!("<!-- measured: {part} -->\n"), "<!-- end -->");
    let (before, rest) = old.split_once(&begin).unwrap_or_else(|| panic!("{document}.md has no place for {part}"));
    let (_, after) = rest.split_once(end).expect("the end of the place");
    fs::write(&path, format!("{before}{begin}\n{}\n\n{end}{after}", text.trim_end())).expect("the document");
}
