//! Session tickets (RFC 8446, section 4.6.1; RFC 5077 for TLS 1.2): who comes back shakes hands without a signature, at whichever
//! replica. All that share a secret open them; nothing is kept, and nothing is asked.
//!
//! A key is good for a period and is derived from the installation's own, so replicas agree without a word. A connection that TLS 1.3
//! resumes has fresh keys all the same (`psk_dhe_ke`): whoever gets the secret later reads nothing of it.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::server::ProducesTickets;

use crate::secrets::{RootKey, Sealer};

/// How long tickets are made under one key. They are opened for as long again.
const PERIOD_SECONDS: u32 = 6 * 60 * 60;

/// Seals and opens tickets.
pub struct Tickets {
    root: RootKey,
    sealers: RwLock<Arc<Sealers>>,
}

/// Those of one period, by a clock that may be a little wrong.
struct Sealers {
    period: u64,
    now: Sealer,
    before: Sealer,
    after: Sealer,
}

impl Sealers {
    fn new(root: &RootKey, period: u64) -> Self {
        let sealer = |period: u64| Sealer::new(root, &format!("period {period}"));
        let (before, after) = (period.saturating_sub(1), period.saturating_add(1));
        Self { period, now: sealer(period), before: sealer(before), after: sealer(after) }
    }
}

fn period() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / u64::from(PERIOD_SECONDS)
}

impl Tickets {
    /// The tickets of an installation.
    pub fn new(root: &RootKey) -> Self {
        let root = root.branch("tls session tickets");
        let sealers = RwLock::new(Arc::new(Sealers::new(&root, period())));
        Self { root, sealers }
    }

    fn at(&self, period: u64) -> Arc<Sealers> {
        let current = Arc::clone(&self.sealers.read().unwrap_or_else(PoisonError::into_inner));
        if current.period == period {
            return current;
        }
        let next = Arc::new(Sealers::new(&self.root, period));
        *self.sealers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        next
    }

    fn open(&self, ticket: &[u8], period: u64) -> Option<Vec<u8>> {
        let (text, sealers) = (std::str::from_utf8(ticket).ok()?, self.at(period));
        [&sealers.now, &sealers.before, &sealers.after].iter().find_map(|sealer| sealer.open(text).ok())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        PERIOD_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.at(period()).now.seal(plain).ok().map(String::into_bytes)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, period())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_for_two_periods_at_every_replica_of_one_secret_and_nowhere_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = |name: &str| RootKey::load_or_create(&folder.path().join(name)).expect("a key");
        let (one, two, other) = (Tickets::new(&root("a")), Tickets::new(&root("a")), Tickets::new(&root("b")));
        let ticket = one.encrypt(b"a session").expect("a ticket");
        assert!(!ticket.windows(7).any(|part| part == b"session"));
        let now = period();
        for (at, opens) in [(now - 2, false), (now - 1, true), (now, true), (now + 1, true), (now + 2, false)] {
            assert_eq!(two.open(&ticket, at).is_some(), opens, "{at} of {now}");
        }
        assert_eq!(two.decrypt(&ticket).as_deref(), Some(&b"a session"[..]));
        assert!(other.decrypt(&ticket).is_none());
        for hostile in [&b""[..], b"x", &[0xff; 300], &ticket[..ticket.len() - 1]] {
            assert!(two.decrypt(hostile).is_none());
        }
    }
}
