//! What the proxy tells of itself beside its log: counters, and who did what. Others tell it; it asks nobody.

mod audit;
mod metrics;

pub use self::{
    audit::{Audit, Event, Origin},
    metrics::{Labels, Metrics, Snapshot},
};
