//! What each kind of credential costs.

use berth_bench::{
    client::Asked,
    credential::Credential,
    load::repeat,
    measure::Work,
    report::{Machine, digits},
};
use berth_tests::{
    person::Person,
    stand_in::access_token,
    system::{CLIENT_ID, Setup},
};
use http::Method;
use reqwest::cookie::{CookieStore, Jar};
use std::sync::Arc;

use super::{Scope, alone, median, proxied};

pub async fn table(scope: &Scope) -> String {
    let registry = alone("berth-registry alone", None, serde_json::json!({})).await;
    let (berth, key) = proxied("Berth", None, Setup::default()).await;
    let url: url::Url = berth.url.parse().expect("an address");
    let jar = Arc::new(Jar::default());
    let person = Person::with_cookies(&berth.url, reqwest::Client::builder(), Arc::clone(&jar));
    person.sign_in("alice", "alice").await;
    let cookie = jar.cookies(&url).expect("cookies").to_str().expect("cookies").to_owned();
    let jwt = access_token(&berth.issuer, CLIENT_ID, "alice").await;
    let settings = scope.settings();
    let kinds = [
        ("nothing", Credential::Nobody),
        ("a session", Credential::Cookie(cookie)),
        ("an API key", Credential::Basic("alice".to_owned(), key.clone())),
        ("our token", Credential::Token("alice".to_owned(), key)),
        ("authentik's token", Credential::Bearer(jwt)),
    ];
    // What is asked for must be there, at both.
    for peer in [&registry, &berth] {
        peer.push_image("public/bench").await;
    }
    let target = "/v2/public/bench/manifests/measure";
    let mut rates = vec![Vec::new(); kinds.len() + 1];
    for _ in 0..scope.rounds {
        let asked = Asked::new(Method::HEAD, target);
        let of = registry.url.parse().expect("an address");
        let load = repeat(&registry.dialer, &of, &asked, settings.connections, scope.duration()).await;
        rates[0].push(load.expect("answers").rate());
        for ((_, credential), rates) in kinds.iter().zip(&mut rates[1..]) {
            let shown = credential.header(&berth.dialer, &url, &settings.repository).await.expect("a header");
            let mut asked = asked.clone();
            asked.headers.extend(shown);
            let load = repeat(&berth.dialer, &url, &asked, settings.connections, scope.duration()).await;
            rates.push(load.expect("answers").rate());
        }
    }
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    let mut out = format!(
        "{}; {} by 16 connections, medians of {} rounds in turns.\n\n| with | requests a second | of the registry alone |\n\
         |---|---|---|\n| the registry alone | {} | |\n",
        Machine::this(),
        Work::HeadManifest.name(),
        scope.rounds,
        digits(medians[0])
    );
    for ((name, _), rate) in kinds.iter().zip(&medians[1..]) {
        out += &format!("| {name} | {} | ×{:.2} |\n", digits(*rate), rate / medians[0]);
    }
    out
}
