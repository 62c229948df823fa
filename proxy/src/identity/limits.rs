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
use crate::network::Network;

/// Failures that one address may make at once. One typing mistake is two failures: containerd and buildx try POST and then
/// GET.
const CLIENT_BURST: u32 = 60;

/// And how many more each minute.
const CLIENT_FAILURES_PER_MINUTE: u32 = 30;

/// The same for one user name, of all addresses that have failed.
const USER_BURST: u32 = 40;
const USER_FAILURES_PER_MINUTE: u32 = 20;

/// For how long an address that has failed waits with the others who guess at a user's password.
const SUSPICION_LIFETIME: Duration = Duration::from_mins(15);

/// From so many names and addresses on, those that are quiet are forgotten.
const MAX_QUIET_ENTRIES: usize = 10_000;

type Counter = RateLimiter<String, DashMapStateStore<String>, DefaultClock>;

/// Counts failures.
pub struct Limits {
    clients: Counter,
    users: Counter,
    /// Addresses that have failed lately. Only they wait for what others guess at the same user's password: somebody who
    /// has made no mistake is never shut out by those who have.
    suspects: Cache<String, ()>,
    /// Who has to wait.
    waiting: Cache<String, std::time::Instant>,
    /// How many passwords are being checked, of each client and user: they can't all be let in before the first fails.
    checking: Mutex<HashMap<String, u32>>,
    clock: DefaultClock,
}

/// Passwords that may be checked at once for one client that has failed, or for one user of all such.
const MAX_CONCURRENT_CHECKS: u32 = 8;

/// The same for a client that has made no mistake: an office, of which all sign in in the morning. They wait for each other
/// where passwords are checked.
const MAX_CONCURRENT_INNOCENT_CHECKS: u32 = 256;

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

fn counter(burst: u32, per_minute: u32) -> Counter {
    let number = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    RateLimiter::dashmap(Quota::per_minute(number(per_minute)).allow_burst(number(burst)))
}

fn client_key(client: IpAddr) -> String {
    format!("client {}", Network::of(client))
}

fn user_key(user: &str) -> String {
    // What is longer is no name.
    format!("user {}", user.chars().take(200).collect::<String>().to_lowercase())
}

impl Limits {
    /// Nobody has failed yet.
    pub fn new() -> Self {
        Self {
            clients: counter(CLIENT_BURST, CLIENT_FAILURES_PER_MINUTE),
            users: counter(USER_BURST, USER_FAILURES_PER_MINUTE),
            suspects: Cache::builder().max_capacity(100_000).time_to_live(SUSPICION_LIFETIME).build(),
            waiting: Cache::builder().max_capacity(100_000).time_to_live(Duration::from_mins(5)).build(),
            checking: Mutex::default(),
            clock: DefaultClock::default(),
        }
    }

    /// Lets somebody try a password, for as long as the answer is kept.
    ///
    /// # Errors
    /// [`Refusal::Throttled`]
    pub fn may_try(&self, client: Option<IpAddr>, user: &str) -> Result<Checking<'_>, Refusal> {
        let client = client.map(client_key);
        let is_suspect = client.as_ref().is_none_or(|client| self.suspects.contains_key(client));
        let keys: Vec<String> = client.into_iter().chain(is_suspect.then(|| user_key(user))).collect();
        for key in &keys {
            let until = self.waiting.get(key);
            let left = until.map(|until| until.saturating_duration_since(std::time::Instant::now()));
            if let Some(left) = left.filter(|left| !left.is_zero()) {
                return Err(Refusal::Throttled(left));
            }
        }
        let mut checking = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        let most = if is_suspect { MAX_CONCURRENT_CHECKS } else { MAX_CONCURRENT_INNOCENT_CHECKS };
        if keys.iter().any(|key| checking.get(key).is_some_and(|count| *count >= most)) {
            return Err(Refusal::Throttled(Duration::from_secs(1)));
        }
        for key in &keys {
            *checking.entry(key.clone()).or_default() += 1;
        }
        Ok(Checking { limits: self, keys })
    }

    /// Somebody has failed; the refusal that they get: `refusal`, until they have failed too often.
    pub fn failed(&self, client: Option<IpAddr>, user: Option<&str>, refusal: Refusal) -> Refusal {
        let client = client.map(client_key);
        if let Some(client) = &client {
            self.suspects.insert(client.clone(), ());
        }
        let mut longest = None;
        for (counter, key) in [(&self.clients, client), (&self.users, user.map(user_key))] {
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
        longest.map_or(refusal, Refusal::Throttled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Rejection;

    fn fail(limits: &Limits, client: IpAddr, user: &str) -> Refusal {
        limits.failed(Some(client), Some(user), Rejection::WrongPassword.into())
    }

    #[test]
    fn who_fails_too_often_waits_and_nobody_else_does() {
        let limits = Limits::new();
        let (client, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut refused = 0;
        for i in 0..1000 {
            let user = format!("user{i}");
            if limits.may_try(Some(client), &user).is_err()
                || matches!(fail(&limits, client, &user), Refusal::Throttled(_))
            {
                refused += 1;
            }
        }
        assert!(refused >= 1000 - 62, "{refused}");
        assert!(limits.may_try(Some(client), "alice").is_err());
        assert!(limits.may_try(Some(other), "alice").is_ok());
        // One name, from everywhere: whoever guesses waits, and its owner, who doesn't, never.
        for i in 0..100 {
            fail(&limits, IpAddr::from([198, 51, 100, i]), "alice");
        }
        assert!(limits.may_try(Some(IpAddr::from([198, 51, 100, 1])), "Alice").is_err());
        assert!(limits.may_try(Some(other), "Alice").is_ok());
        assert!(limits.may_try(Some(other), "bob").is_ok());
        let _guesses: Vec<_> = (0..MAX_CONCURRENT_CHECKS)
            .map(|i| {
                let guesser = IpAddr::from([203, 0, 113, u8::try_from(i).unwrap_or_default()]);
                fail(&limits, guesser, "bob");
                limits.may_try(Some(guesser), "bob").expect("room")
            })
            .collect();
        assert!(limits.may_try(Some(other), "bob").is_ok());
    }

    #[test]
    fn only_so_many_passwords_are_checked_at_once() {
        let limits = Limits::new();
        let mut checking: Vec<_> =
            (0..MAX_CONCURRENT_CHECKS).map(|_| limits.may_try(None, "alice").expect("room")).collect();
        assert!(matches!(limits.may_try(None, "alice"), Err(Refusal::Throttled(_))));
        assert!(limits.may_try(None, "bob").is_ok());
        checking.pop();
        assert!(limits.may_try(None, "alice").is_ok());
        checking.clear();
        assert!(limits.checking.lock().expect("unpoisoned").is_empty());
    }
}
