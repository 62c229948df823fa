//! Migrations are compiled in, so a new one must be noticed.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
