//! How often somebody may guess: failures are counted per client address and per user name.
//!
//! Whoever has guessed too often isn't asked again for a while, whatever they bring; but a credential that nobody can
//! guess (a key, a token) is looked at all the same, so that an attacker can lock nobody out who has one.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

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
const MAX_QUIET_ENTRIES: usize = 10_000;

type Counter = RateLimiter<String, DashMapStateStore<String>, DefaultClock>;

/// Counts failures.
pub struct Limits {
    clients: Counter,
    users: Counter,
    /// Who has to wait.
    waiting: Cache<String, std::time::Instant>,
    /// How many passwords are being checked, of each client and user: they can't all be let in before the first fails.
    checking: Mutex<HashMap<String, u32>>,
    clock: DefaultClock,
}

/// Passwords that one client may have checked at once, or for one user.
const MAX_CONCURRENT_CHECKS: u32 = 8;

/// A password that is being checked.
pub struct Checking<'a> {
    limits: &'a Limits,
    keys: Vec<String>,
}

impl Drop for Checking<'_> {
    fn drop(&mut self) {
        let mut checking = self.limits.checking.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(count) = checking.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    checking.remove(key);
                }
            }
        }
    }
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
            checking: Mutex::default(),
            clock: DefaultClock::default(),
        }
    }

    /// Lets somebody try a password, for as long as the answer is kept.
    ///
    /// # Errors
    /// [`Refusal::Limited`]
    pub fn may_try(&self, client: Option<IpAddr>, user: &str) -> Result<Checking<'_>, Refusal> {
        let keys: Vec<String> = client.map(client_key).into_iter().chain([user_key(user)]).collect();
        self.must_wait(&keys)?;
        let mut checking = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.iter().any(|key| checking.get(key).is_some_and(|count| *count >= MAX_CONCURRENT_CHECKS)) {
            return Err(Refusal::Limited(Duration::from_secs(1)));
        }
        for key in &keys {
            *checking.entry(key.clone()).or_default() += 1;
        }
        Ok(Checking { limits: self, keys })
    }

    fn must_wait(&self, keys: &[String]) -> Result<(), Refusal> {
        for key in keys {
            if let Some(until) = self.waiting.get(key) {
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
            if counter.len() > MAX_QUIET_ENTRIES {
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
            if limits.may_try(Some(client), &user).is_err()
                || matches!(limits.failed(Some(client), Some(&user), Refusal::WrongPassword), Refusal::Limited(_))
            {
                refused += 1;
            }
        }
        assert!(refused >= 1000 - 62, "{refused}");
        assert!(limits.may_try(Some(client), "alice").is_err());
        assert!(limits.may_try(Some(other), "alice").is_ok());
        // One name, from everywhere.
        for i in 0..100 {
            let client = IpAddr::from([198, 51, 100, i]);
            limits.failed(Some(client), Some("alice"), Refusal::WrongPassword);
        }
        assert!(limits.may_try(Some(other), "Alice").is_err());
        assert!(limits.may_try(Some(other), "bob").is_ok());
    }

    #[test]
    fn only_so_many_passwords_are_checked_at_once() {
        let limits = Limits::new();
        let mut checking: Vec<_> =
            (0..MAX_CONCURRENT_CHECKS).map(|_| limits.may_try(None, "alice").expect("room")).collect();
        assert!(matches!(limits.may_try(None, "alice"), Err(Refusal::Limited(_))));
        assert!(limits.may_try(None, "bob").is_ok());
        checking.pop();
        assert!(limits.may_try(None, "alice").is_ok());
        checking.clear();
        assert!(limits.checking.lock().expect("unpoisoned").is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let key = |text: &str| client_key(text.parse().expect("an address"));
        assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2:ffff::1"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }
}
