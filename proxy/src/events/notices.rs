//! Reads what the registry did by itself, for the audit log and for those who are told of events.

use std::{sync::Arc, time::Duration};

use berth_oci::{Notice, NoticeBatch};
use serde_json::json;
use uuid::Uuid;

use super::{Events, Happened, Kind};
use crate::{
    observe::{Audit, Event},
    registry::Registry,
    store::Store,
};

/// How often it is asked.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// For how long one replica asks alone, in seconds.
const LEASE_SECONDS: i64 = 15;

/// Asks for as long as the process runs. What is told of is forgotten there; what a crash leaves between is told once more.
pub async fn read_notices(registry: Arc<Registry>, store: Store, audit: Arc<Audit>, events: Option<Arc<Events>>) {
    let holder = Uuid::new_v4().to_string();
    loop {
        match store.hold_lease("registry", &holder, LEASE_SECONDS).await {
            Ok(true) => {
                if let Err(error) = read_some(&registry, &audit, events.as_deref()).await {
                    tracing::warn!(error, "what the registry did by itself can't be told yet");
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "what the registry did by itself can't be told yet"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn read_some(registry: &Registry, audit: &Audit, events: Option<&Events>) -> Result<(), String> {
    loop {
        let list = registry.notices().await.map_err(|error| error.to_string())?;
        if list.notices.is_empty() {
            return Ok(());
        }
        for batch in &list.notices {
            if let Some(events) = events {
                events.announce(&happened(batch)).await.map_err(|error| error.to_string())?;
            }
            batch.notices.iter().for_each(|notice| record(audit, notice));
            tokio::task::block_in_place(|| audit.flush());
            registry.forget_notice(&batch.id).await.map_err(|error| error.to_string())?;
        }
    }
}

fn record(audit: &Audit, notice: &Notice) {
    let Notice::Expired { repository, tag, digest, rule } = notice else { return };
    let digest = digest.to_string();
    let reference = tag.as_deref().unwrap_or(&digest);
    audit.record_own(&Event::Expired { repository: repository.as_str(), reference, digest: &digest, rule });
}

fn happened(batch: &NoticeBatch) -> Vec<Happened> {
    let each = batch.notices.iter().enumerate().map(|(i, notice)| {
        let (kind, stream, data) = match notice {
            Notice::Expired { repository, tag, digest, rule } => {
                let digest = digest.to_string();
                let reference = tag.as_deref().unwrap_or(&digest);
                let data = json!({"name": repository, "reference": reference, "digest": digest, "rule": rule});
                (Kind::ImageExpired, repository.to_string(), data)
            }
            Notice::QuotaWarning { usage } => {
                (Kind::QuotaWarning, format!("quota {}", usage.repositories.join(", ")), json!(usage))
            }
        };
        Happened { kind, stream, at: batch.at, data, id: Some(format!("{}-{i}", batch.id)) }
    });
    each.collect()
}
