//! Measures a registry through the distribution API (OCI distribution specification), whichever registry it is.
//!
//! [`measure`] does the work, over the connections of [`client`] and with a [`credential`]; what comes of it is a [`report`], which
//! can be printed, written and compared with another one.

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod content;
pub mod credential;
pub mod load;
pub mod measure;
pub mod plot;
pub mod report;
pub mod servers;

/// Why something could not be measured, as a sentence.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
