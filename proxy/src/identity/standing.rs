//! Whether somebody is still vouched for: the one place that is asked of every credential, whatever its kind, at every
//! use, by the distribution API, the token service and the pages alike.
//!
//! Somebody whom a provider has signed in is vouched for while the provider is configured, while they are not suspended,
//! and while nobody else holds their name. A suspension ends what was vouched for before it: a token that the provider
//! itself has given out since is its newer word.

use std::{collections::HashSet, sync::Arc};

use serde_json::json;

use super::{AuthMethod, Identity, Refusal, Rejection, Verifiers, credential_cache::CredentialCache};
use crate::{
    oidc::{ProviderConfig, ScimConfig},
    store::{PASSWORD_FILE, PersonId, Provisioned, ScimLink, Standing, Store, User},
};

/// How people stand, with those in use in memory for a few seconds.
pub struct Standings {
    store: Store,
    known: CredentialCache<Arc<Vec<Standing>>>,
    /// What was pushed of whom.
    pushed: CredentialCache<Provisioned>,
    /// All groups that a provider has pushed.
    pushed_names: CredentialCache<Arc<HashSet<String>>>,
}

impl Standings {
    /// The standings in `store`.
    pub fn new(store: Store) -> Self {
        let (known, pushed, pushed_names) = (CredentialCache::new(), CredentialCache::new(), CredentialCache::new());
        Self { store, known, pushed, pushed_names }
    }

    /// The same identity, if it is still vouched for.
    ///
    /// # Errors
    /// Why it isn't, or that this can't be found out now.
    pub async fn vouch(&self, verifiers: &Verifiers, identity: Arc<Identity>) -> Result<Arc<Identity>, Refusal> {
        match (&identity.person, &identity.method) {
            (Some(id), _) if id.provider == PASSWORD_FILE => {
                if !verifiers.passwords.as_ref().is_some_and(|file| file.vouches_for(&identity)) {
                    return Err(Rejection::ChangedPassword.into());
                }
                self.check(id, &identity).await?;
            }
            (Some(id), _) => {
                let provider = verifiers.provider(&id.provider).ok_or(Rejection::UnknownProvider)?;
                self.check(id, &identity).await?;
                if let Some(scim) = &provider.config.scim {
                    let groups = self.pushed_groups(scim, id, &identity.user, &identity.groups).await?;
                    if let Some(groups) = groups.filter(|groups| *groups != identity.groups) {
                        return Ok(Arc::new(Identity { groups, ..Identity::clone(&identity) }));
                    }
                }
            }
            (None, AuthMethod::Password(fingerprint)) => {
                let passwords = verifiers.passwords.as_ref();
                if passwords.and_then(|file| file.find_by_fingerprint(&identity.user, fingerprint)).is_none() {
                    return Err(Rejection::OrphanToken.into());
                }
            }
            (None, AuthMethod::Certificate(authorities)) => {
                if !verifiers.trusts_certificates_of(authorities) {
                    return Err(Rejection::WithdrawnCertificate.into());
                }
            }
            // The rules of now have taken the claims a moment ago.
            (None, AuthMethod::Workload(_) | AuthMethod::RefreshToken(_) | AuthMethod::LoginSecret(_)) => {}
            (
                None,
                AuthMethod::Session(_)
                | AuthMethod::ApiKey(_)
                | AuthMethod::Terminal(_)
                | AuthMethod::ProviderToken
                | AuthMethod::AppPassword,
            ) => return Err(Rejection::UnknownProvider.into()),
        }
        Ok(identity)
    }

    async fn check(&self, id: &PersonId, identity: &Identity) -> Result<(), Refusal> {
        // A list in JSON, so that no two are written alike.
        let name = json!([id.provider, id.subject, identity.user]).to_string();
        let load = async {
            let standings = self.store.standings(id, &identity.user).await?;
            if !standings.is_empty() {
                return Ok(Some(Arc::new(standings)));
            }
            // Whoever comes without a browser holds their name from now on, too.
            self.store.hold_name(id, &identity.user).await?;
            Ok(Some(Arc::new(self.store.standings(id, &identity.user).await?)))
        };
        let standings = self.known.get(&name, load).await?.unwrap_or_default();
        for standing in standings.iter() {
            if standing.id != *id {
                return Err(Rejection::NameTaken(identity.user.clone()).into());
            }
            if let Some((at, cause)) = standing.suspended
                && at >= identity.vouched_at
            {
                return Err(Rejection::Suspended(cause).into());
            }
        }
        Ok(())
    }

    /// Nothing, or why a provider that pushes who is there doesn't let somebody in.
    pub async fn may_sign_in(&self, provider: &ProviderConfig, user: &User) -> Result<(), Refusal> {
        match &provider.scim {
            None => Ok(()),
            Some(scim) => self.pushed_groups(scim, &user.id, &user.name, &user.groups).await.map(drop),
        }
    }

    /// The groups of somebody of whom their provider has pushed something: those that it has pushed, and of the others those
    /// that it has claimed.
    ///
    /// # Errors
    /// If they are out, or not in.
    async fn pushed_groups(
        &self,
        scim: &ScimConfig,
        id: &PersonId,
        name: &str,
        claimed: &[String],
    ) -> Result<Option<Vec<String>>, Refusal> {
        let text = match scim.link {
            ScimLink::ExternalId => &id.subject,
            ScimLink::UserName => name,
        };
        let key = json!([id.provider, scim.link, text]).to_string();
        let load = async { Ok(Some(self.store.provisioned(&id.provider, scim.link, text).await?)) };
        let pushed = match self.pushed.get(&key, load).await? {
            Some(Provisioned::Active(groups)) => groups,
            Some(Provisioned::Out) => return Err(Rejection::Deactivated.into()),
            Some(Provisioned::Unknown) | None if scim.is_required => return Err(Rejection::NotProvisioned.into()),
            Some(Provisioned::Unknown) | None => return Ok(None),
        };
        let load = async { Ok(Some(Arc::new(self.store.scim_group_names(&id.provider).await?))) };
        let known = self.pushed_names.get(&id.provider, load).await?.unwrap_or_default();
        let others = claimed.iter().filter(|group| !known.contains(*group)).cloned();
        Ok(Some(others.chain(pushed).collect()))
    }

    /// How somebody stands, for their page.
    pub async fn of(&self, id: &PersonId, name: &str) -> Result<Option<Standing>, Refusal> {
        Ok(self.store.standings(id, name).await?.into_iter().find(|standing| standing.id == *id))
    }

    /// Looks everything up again, because somebody's standing has changed.
    pub fn refresh(&self) {
        self.known.refresh();
        self.pushed.refresh();
        self.pushed_names.refresh();
    }
}
