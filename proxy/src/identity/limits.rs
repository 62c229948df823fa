//! How often somebody may guess: failures are counted per client address and per user name.
//!
//! Whoever has guessed too often isn't asked again for a while, whatever they bring; but a credential that nobody can
//! guess (a key, a token) is looked at all the same, so that an attacker can lock nobody out who has one.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    state::keyed::DashMapStateStore,
};
use moka::sync::Cache;

use super::Refusal;

/// Failures that one address may make at once, and how many more each minute. One typing mistake is two failures:
/// containerd and buildx try POST and then GET.
const PER_CLIENT: (u32, u32) = (60, 30);

/// The same for one user name.
const PER_USER: (u32, u32) = (40, 20);

/// From so many names and addresses on, those that are quiet are forgotten.
const MANY: usize = 10_000;

type Counter = RateLimiter<String, DashMapStateStore<String>, DefaultClock>;

/// Counts failures.
pub struct Limits {
    clients: Counter,
    users: Counter,
    /// Who has to wait.
    waiting: Cache<String, std::time::Instant>,
    clock: DefaultClock,
}

fn counter((burst, per_minute): (u32, u32)) -> Counter {
    let number = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    RateLimiter::dashmap(Quota::per_minute(number(per_minute)).allow_burst(number(burst)))
}

/// An address as it is counted: of IPv6, the network that one customer has.
fn client_key(client: IpAddr) -> String {
    match client.to_canonical() {
        IpAddr::V4(address) => format!("client {address}"),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("client {a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

fn user_key(user: &str) -> String {
    // What is longer is no name.
    format!("user {}", user.chars().take(200).collect::<String>().to_lowercase())
}

impl Limits {
    /// Nobody has failed yet.
    pub fn new() -> Self {
        Self {
            clients: counter(PER_CLIENT),
            users: counter(PER_USER),
            waiting: Cache::builder().max_capacity(100_000).time_to_live(Duration::from_mins(5)).build(),
            clock: DefaultClock::default(),
        }
    }

    /// Whether somebody may try a password now.
    ///
    /// # Errors
    /// [`Refusal::Limited`]
    pub fn may_try(&self, client: Option<IpAddr>, user: Option<&str>) -> Result<(), Refusal> {
        for key in [client.map(client_key), user.map(user_key)].into_iter().flatten() {
            if let Some(until) = self.waiting.get(&key) {
                let left = until.saturating_duration_since(std::time::Instant::now());
                if !left.is_zero() {
                    return Err(Refusal::Limited(left));
                }
            }
        }
        Ok(())
    }

    /// Somebody has failed; the refusal that they get: `refusal`, until they have failed too often.
    pub fn failed(&self, client: Option<IpAddr>, user: Option<&str>, refusal: Refusal) -> Refusal {
        let counted = [(&self.clients, client.map(client_key)), (&self.users, user.map(user_key))];
        let mut longest = None;
        for (counter, key) in counted {
            let Some(key) = key else { continue };
            if let Err(until) = counter.check_key(&key) {
                let wait = until.wait_time_from(self.clock.now());
                self.waiting.insert(key, std::time::Instant::now() + wait);
                longest = longest.max(Some(wait));
            }
            if counter.len() > MANY {
                counter.retain_recent();
            }
        }
        longest.map_or(refusal, Refusal::Limited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_too_often_waits_and_nobody_else_does() {
        let limits = Limits::new();
        let (client, other): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().expect("an address"), "192.0.2.2".parse().expect("one"));
        let mut refused = 0;
        for i in 0..1000 {
            let user = format!("user{i}");
            if limits.may_try(Some(client), Some(&user)).is_err()
                || matches!(limits.failed(Some(client), Some(&user), Refusal::WrongPassword), Refusal::Limited(_))
            {
                refused += 1;
            }
        }
        assert!(refused >= 1000 - 62, "{refused}");
        assert!(limits.may_try(Some(client), Some("alice")).is_err());
        assert!(limits.may_try(Some(other), Some("alice")).is_ok());
        // One name, from everywhere.
        for i in 0..100 {
            let client = IpAddr::from([198, 51, 100, i]);
            limits.failed(Some(client), Some("alice"), Refusal::WrongPassword);
        }
        assert!(limits.may_try(Some(other), Some("Alice")).is_err());
        assert!(limits.may_try(Some(other), Some("bob")).is_ok());
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let key = |text: &str| client_key(text.parse().expect("an address"));
        assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2:ffff::1"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }
}
