//! Asking the providers, again and again, whether they still know the people that they have signed in, and in which
//! groups those are now.
//!
//! It is the owner who is asked about, and not a session or a key: as long as somebody has one of either, with the refresh
//! token of their last sign-in, also after they have signed out here. A refresh token may be good only once, so of all
//! replicas one asks, and what it is given is stored before anything else. What becomes of the answer:
//!
//! - The claims of now: sessions and keys have them at once.
//! - `invalid_grant`: the person is gone, or has no right to the application any more. They are suspended.
//! - `invalid_grant` after an answer was lost: that one may have spent the refresh token, so this says nothing of the
//!   person. They are unconfirmed: good for the grace period, and then suspended until they sign in again.
//! - `invalid_grant` for everybody else who is asked about then, too: it is the provider's configuration, which doesn't
//!   allow the grant type `refresh_token`. Nobody is suspended for it. (Of one person alone, nobody else can be asked about:
//!   they count as gone.)
//! - Another name: they are suspended, since rules and keys know the old one, until they sign in with the new one.
//! - No answer, or one that says nothing of the person: what is known stays.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;

use super::Verifiers;
use crate::{
    events::Events,
    observe::{Audit, Event},
    oidc::{Provider, ProviderTokens, RenewalError, Renewed},
    secrets::Sealer,
    store::{Due, Renewability, Store, StoreError, now},
};

/// How old claims may get while nothing of their owner's is used. While something is, they are renewed when the access
/// token ends.
const MAX_UNUSED_AGE: Duration = Duration::from_mins(14);

/// How often it is tried to store what a renewal gave.
const MAX_STORE_ATTEMPTS: u32 = 20;

/// How long one replica may take for it before another one tries.
const RENEWAL_TIMEOUT: Duration = Duration::from_mins(1);

/// When somebody is asked about again whose provider wasn't there.
const UNREACHABLE_WAIT: Duration = Duration::from_secs(10);

/// When somebody is asked about again whose provider renews nobody.
const TROUBLE_WAIT: Duration = Duration::from_mins(2);

/// How many others are asked about, to tell a person who is gone from a provider that renews nobody.
const MAX_OTHERS: i64 = 3;

/// Renews what is known of people.
pub struct Renewals {
    store: Store,
    sealer: Arc<Sealer>,
    idle: Duration,
    grace: Duration,
    /// Providers that renew nobody.
    trouble: Mutex<BTreeSet<String>>,
    audit: Arc<Audit>,
    events: Option<Arc<Events>>,
}

/// What became of a question.
enum Outcome {
    /// The provider vouches for the person.
    Renewed,
    /// It doesn't.
    Refused(String),
    /// It vouches for somebody of another name.
    Renamed,
    /// An earlier answer was lost, and now the refresh token is refused.
    Spent(String),
    /// Nothing can be said.
    Unknown,
}

impl Renewals {
    /// Renewals of the people in `store`, whose sessions live `idle` unused, and who are good for `grace` without a word of
    /// their provider.
    pub fn new(
        store: Store,
        sealer: Arc<Sealer>,
        idle: Duration,
        grace: Duration,
        audit: Arc<Audit>,
        events: Option<Arc<Events>>,
    ) -> Self {
        Self { store, sealer, idle, grace, audit, events, trouble: Mutex::default() }
    }

    /// The providers that renew nobody, by their keys.
    pub fn troubled(&self) -> Vec<String> {
        self.lock_trouble().iter().cloned().collect()
    }

    fn lock_trouble(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn note_suspended(&self, provider: &str, user: &str, reason: &str) {
        self.audit.record_own(&Event::Suspended { user, reason });
        if let Some(events) = &self.events {
            events.user_deprovisioned(provider, user, reason).await;
        }
    }

    /// For how long somebody is good whose provider can't be asked about them any more.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Asks about everybody who is due.
    ///
    /// # Errors
    /// If the database fails; whoever wasn't asked about then is the next time.
    pub async fn run(&self, verifiers: &Verifiers) -> Result<(), StoreError> {
        self.lock_trouble().retain(|id| verifiers.provider(id).is_some());
        // One that hangs delays nobody else's people.
        let all = verifiers.providers.iter().map(|provider| self.run_for(provider));
        join_all(all).await.into_iter().collect::<Result<(), _>>()?;
        for (provider, user) in self.store.suspend_unconfirmed(self.grace).await? {
            tracing::warn!(user, "suspended: for too long, the identity provider could not be asked about them");
            let reason = "for too long, the identity provider could not be asked about them";
            self.note_suspended(&provider, &user, reason).await;
        }
        Ok(())
    }

    /// Asks about everybody of one provider who is due.
    async fn run_for(&self, provider: &Provider) -> Result<(), StoreError> {
        for due in self.store.people_to_renew(&provider.config.id, MAX_UNUSED_AGE, self.idle).await? {
            let outcome = self.ask(provider, &due).await?;
            self.conclude(provider, &due, outcome).await?;
        }
        Ok(())
    }

    /// Asks about one person; nobody else does at the same time.
    async fn ask(&self, provider: &Provider, due: &Due) -> Result<Outcome, StoreError> {
        if !self.store.claim_renewal(due, RENEWAL_TIMEOUT).await? {
            return Ok(Outcome::Unknown);
        }
        let user = &due.user;
        let tokens: ProviderTokens = self.sealer.open_json(&due.sealed).unwrap_or_default();
        let keep = async |renewed: &Renewed| {
            let tokens = ProviderTokens { id_token: String::new(), ..renewed.tokens.clone() };
            let next =
                Renewability { sealed: &self.sealer.seal_json(&tokens), renew_after: now() + renewed.expires_in };
            // If this is lost, the person is unconfirmed: the token that was used may be good for nothing any more.
            for _ in 0..MAX_STORE_ATTEMPTS {
                match self.store.keep_renewed(due, next).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::error!(%error, user = user.name, "a renewed sign-in can't be stored");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        };
        Ok(match provider.renew(user, &tokens, keep).await {
            Ok(user) => {
                self.store.confirm(&user, due).await?;
                self.set_trouble(provider, false);
                Outcome::Renewed
            }
            Err(RenewalError::Renamed) => Outcome::Renamed,
            Err(RenewalError::Refused(reason)) if due.lost_an_answer() => Outcome::Spent(reason),
            Err(RenewalError::Refused(reason)) => Outcome::Refused(reason),
            Err(RenewalError::Undecided(error)) => {
                tracing::warn!(%error, user = user.name, "claims can't be renewed now; they stay as they are");
                self.store.postpone_renewal(due, UNREACHABLE_WAIT).await?;
                Outcome::Unknown
            }
            // Asked, and perhaps answered: whoever asks next knows by `renewing_until` that this answer was lost.
            Err(error @ (RenewalError::Unavailable(_) | RenewalError::Token(_))) => {
                tracing::warn!(%error, user = user.name, "claims can't be renewed now; they stay as they are");
                Outcome::Unknown
            }
        })
    }

    async fn conclude(&self, provider: &Provider, due: &Due, outcome: Outcome) -> Result<(), StoreError> {
        let user = due.user.name.as_str();
        match outcome {
            Outcome::Renewed | Outcome::Unknown => {}
            Outcome::Spent(reason) => {
                self.store.cannot_confirm(due).await?;
                let grace = self.grace.as_secs();
                tracing::warn!(
                    user,
                    reason,
                    grace,
                    "an answer of the identity provider was lost, and it can't be asked about this person any more; they \
                     are good for the grace period, and then suspended until they sign in again"
                );
            }
            Outcome::Renamed => {
                if self.store.suspend(due).await? {
                    tracing::warn!(user, "suspended: the identity provider calls them by another name now");
                    let reason = "the identity provider calls them by another name now";
                    self.note_suspended(&provider.config.id, user, reason).await;
                }
            }
            Outcome::Refused(reason) => {
                if self.is_troubled(provider) || self.refuses_others(provider, due).await? {
                    return self.store.postpone_renewal(due, TROUBLE_WAIT).await;
                }
                if self.store.suspend(due).await? {
                    tracing::warn!(
                        user,
                        reason,
                        "suspended: the identity provider does not renew their sign-in any more (if it renews nobody's, allow \
                         the grant type refresh_token there)"
                    );
                    self.note_suspended(&provider.config.id, user, &reason).await;
                }
            }
        }
        Ok(())
    }

    /// Whether everybody else of this provider who can be asked about is refused as well.
    async fn refuses_others(&self, provider: &Provider, due: &Due) -> Result<bool, StoreError> {
        let mut refused = Vec::new();
        for other in self.store.others_to_ask(&due.user.id, MAX_OTHERS).await? {
            match self.ask(provider, &other).await? {
                Outcome::Renewed => {
                    // Somebody is renewed, so those who weren't are gone, too; they are asked about again at their turn.
                    for other in &refused {
                        self.store.postpone_renewal(other, Duration::ZERO).await?;
                    }
                    return Ok(false);
                }
                Outcome::Refused(_) => refused.push(other),
                // Somebody was renewed, though by another name: at their own turn they are looked at again.
                Outcome::Renamed => return Ok(false),
                Outcome::Spent(_) | Outcome::Unknown => {}
            }
        }
        for other in &refused {
            self.store.postpone_renewal(other, TROUBLE_WAIT).await?;
        }
        if refused.is_empty() {
            return Ok(false);
        }
        self.set_trouble(provider, true);
        Ok(true)
    }

    fn is_troubled(&self, provider: &Provider) -> bool {
        self.lock_trouble().contains(&provider.config.id)
    }

    fn set_trouble(&self, provider: &Provider, is_troubled: bool) {
        let id = &provider.config.id;
        let mut trouble = self.lock_trouble();
        if is_troubled && trouble.insert(id.clone()) {
            tracing::error!(
                provider = id,
                "the identity provider renews nobody's sign-in: allow the grant type refresh_token at the provider. Until \
                 then nobody is suspended, and nobody's groups change"
            );
        } else if !is_troubled && trouble.remove(id) {
            tracing::info!(provider = id, "the identity provider renews sign-ins again");
        }
    }
}
