//! Berth beside what it replaces, and the proxy beside the registry alone.

use berth_bench::measure::Work;
use berth_tests::system::Setup;
use serde_json::json;

use super::{Scope, alone, docker_registry, in_turns, proxied, side_by_side};

pub async fn table(scope: &Scope) -> String {
    let mut peers = vec![
        alone("berth-registry alone", None, json!({})).await,
        proxied("Berth, with an API key", None, Setup::default()).await.0,
    ];
    if let Some(before) = &scope.before {
        peers.push(alone("alone, before", Some(before), json!({})).await);
        peers.push(proxied("Berth, before", Some(before), Setup::default()).await.0);
    }
    peers.extend(docker_registry().await);
    let all = in_turns(&peers, scope, &Work::ALL).await;
    side_by_side(&peers, &all, scope)
}
