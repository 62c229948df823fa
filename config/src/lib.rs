//! The configuration file: zot's `config.json`, with one section of Berth's own, `sidecar`.
//!
//! Both processes read the same file, each its own part, through [`Section`]s that remember where they
//! stand. Nothing stops at the first mistake: [`File::finish`] gives every problem, each under the path of
//! its key, with what was expected and how to mend it.

mod addresses;
mod duration;
mod pattern;
pub mod reference;
mod section;
mod upstream;

pub use addresses::is_public_address;
pub use pattern::Pattern;
pub use section::{File, Note, Problems, Record, Section};
pub use upstream::Upstream;
