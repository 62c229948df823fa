//! Which commit is built, for `--version`: `BERTH_COMMIT` if the builder says it, or else what git says.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-env-changed=BERTH_COMMIT");
    for path in ["../.git/HEAD", "../.git/logs/HEAD"] {
        if Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let said = env::var("BERTH_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = said.or_else(of_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=BERTH_COMMIT={}", commit.trim());
}

fn of_git() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
