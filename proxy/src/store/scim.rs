//! Users and groups as an identity provider pushes them.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{Store, StoreError, now};

/// How a pushed user is known to be a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScimLink {
    /// By `externalId`, which is their subject.
    #[default]
    ExternalId,
    /// By `userName`, which is their name.
    UserName,
}

/// A user or a group.
#[derive(Clone, Debug)]
pub struct ScimResource {
    /// Its name here.
    pub id: String,
    /// `User` or `Group`
    pub kind: &'static str,
    /// What we keep of it.
    pub document: Map<String, Value>,
    /// Grows with each change.
    pub version: i64,
    /// When it was pushed first.
    pub created_at: i64,
    /// When it was changed.
    pub changed_at: i64,
}

impl ScimResource {
    fn from_row(row: &AnyRow, kind: &'static str) -> Result<Self, sqlx::Error> {
        let document = serde_json::from_str(row.try_get("document")?).map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
        let (id, version) = (row.try_get("id")?, row.try_get("version")?);
        Ok(Self {
            id,
            kind,
            document,
            version,
            created_at: row.try_get("created_at")?,
            changed_at: row.try_get("changed_at")?,
        })
    }

    fn text(&self, key: &str) -> &str {
        self.document.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.text(if self.kind == "User" { "userName" } else { "displayName" })
    }

    pub fn is_active(&self) -> bool {
        self.document.get("active").and_then(Value::as_bool).unwrap_or(true)
    }

    /// What links a user to a person.
    fn link(&self, by: ScimLink) -> String {
        match by {
            ScimLink::ExternalId => self.text("externalId").to_owned(),
            ScimLink::UserName => self.name().to_lowercase(),
        }
    }
}

/// Why a resource wasn't kept.
#[derive(Debug, thiserror::Error)]
pub enum ScimRefused {
    /// Another one has its name, or its `externalId`.
    #[error("another one has this name or externalId")]
    Taken,
    /// It was changed or deleted meanwhile.
    #[error("it was changed meanwhile")]
    Changed,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for ScimRefused {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) if cause.is_unique_violation() => Self::Taken,
            _ => Self::Store(error.into()),
        }
    }
}

/// What was pushed of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provisioned {
    /// Nothing.
    Unknown,
    /// They are there, in these groups.
    Active(Vec<String>),
    /// They are deactivated, or were deleted.
    Out,
}

macro_rules! select_resources {
    ($rest:literal) => {
        concat!("SELECT id, document, version, created_at, changed_at FROM scim_resources WHERE provider = $1 AND kind = $2 ", $rest)
    };
}

impl Store {
    /// The resource of this id.
    pub async fn scim_resource(
        &self,
        provider: &str,
        kind: &'static str,
        id: &str,
    ) -> Result<Option<ScimResource>, StoreError> {
        let query = sqlx::query(select_resources!("AND id = $3")).bind(provider).bind(kind).bind(id);
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        Ok(row.map(|row| ScimResource::from_row(&row, kind)).transpose()?)
    }

    /// The resource with this name, or this `externalId`.
    pub async fn scim_by(
        &self,
        provider: &str,
        kind: &'static str,
        by: ScimLink,
        text: &str,
    ) -> Result<Option<ScimResource>, StoreError> {
        let query = match by {
            ScimLink::ExternalId => {
                sqlx::query(select_resources!("AND external_id = $3")).bind(provider).bind(kind).bind(text.to_owned())
            }
            ScimLink::UserName => sqlx::query(select_resources!("AND name_lower = $3"))
                .bind(provider)
                .bind(kind)
                .bind(text.to_lowercase()),
        };
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        Ok(row.map(|row| ScimResource::from_row(&row, kind)).transpose()?)
    }

    /// How many there are, and a page of them.
    pub async fn scim_page(
        &self,
        provider: &str,
        kind: &'static str,
        offset: i64,
        count: i64,
    ) -> Result<(i64, Vec<ScimResource>), StoreError> {
        let total = sqlx::query("SELECT COUNT(*) AS n FROM scim_resources WHERE provider = $1 AND kind = $2");
        let total = self.within(total.bind(provider).bind(kind).fetch_one(&self.pool)).await?;
        let query = sqlx::query(select_resources!("ORDER BY created_at, id LIMIT $3 OFFSET $4"));
        let rows = self.within(query.bind(provider).bind(kind).bind(count).bind(offset).fetch_all(&self.pool)).await?;
        let page = rows.iter().map(|row| ScimResource::from_row(row, kind)).collect::<Result<_, _>>()?;
        Ok((total.try_get("n")?, page))
    }

    /// Keeps a new resource, or a changed one if `known` is still its version. Whoever is out with it has no session any more.
    pub async fn scim_keep(
        &self,
        provider: &str,
        resource: &ScimResource,
        known: Option<i64>,
        members: Option<&BTreeSet<String>>,
        link: ScimLink,
    ) -> Result<(), ScimRefused> {
        self.within(async { Ok(self.scim_keep_now(provider, resource, known, members, link).await) }).await?
    }

    async fn scim_keep_now(
        &self,
        provider: &str,
        resource: &ScimResource,
        known: Option<i64>,
        members: Option<&BTreeSet<String>>,
        link: ScimLink,
    ) -> Result<(), ScimRefused> {
        let mut transaction = self.begin().await?;
        let mut document = resource.document.clone();
        document.remove("members");
        let document = Value::Object(document).to_string();
        let (external_id, name) = (resource.text("externalId"), resource.name());
        let statement = match known {
            None => {
                "INSERT INTO scim_resources (id, provider, kind, external_id, name, name_lower, active, document, version,
                     created_at, changed_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)"
            }
            Some(_) => {
                "UPDATE scim_resources SET external_id = $4, name = $5, name_lower = $6, active = $7, document = $8,
                     version = $9, changed_at = $10
                 WHERE id = $1 AND provider = $2 AND kind = $3 AND version = $11"
            }
        };
        let query = sqlx::query(statement)
            .bind(&resource.id)
            .bind(provider)
            .bind(resource.kind)
            .bind(external_id)
            .bind(name)
            .bind(name.to_lowercase())
            .bind(i64::from(resource.is_active()))
            .bind(document)
            .bind(resource.version)
            .bind(resource.changed_at);
        // Of a new one there is no version before; PostgreSQL takes no more values than are used.
        let query = match known {
            None => query,
            Some(known) => query.bind(known),
        };
        let written = query.execute(&mut *transaction).await?;
        if written.rows_affected() != 1 {
            return Err(ScimRefused::Changed);
        }
        if let Some(members) = members {
            set_members(&mut transaction, &resource.id, members).await?;
        }
        if resource.kind == "User" {
            let by = resource.link(link);
            let back = sqlx::query("DELETE FROM scim_gone WHERE provider = $1 AND link = $2").bind(provider).bind(&by);
            back.execute(&mut *transaction).await?;
            if !resource.is_active() {
                end_sessions(&mut transaction, provider, link, &by).await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Deletes a resource; whether there was one. Of a user it is kept that they are gone.
    pub async fn scim_delete(
        &self,
        provider: &str,
        resource: &ScimResource,
        link: ScimLink,
    ) -> Result<bool, StoreError> {
        self.within(self.scim_delete_now(provider, resource, link)).await
    }

    async fn scim_delete_now(
        &self,
        provider: &str,
        resource: &ScimResource,
        link: ScimLink,
    ) -> Result<bool, sqlx::Error> {
        let mut transaction = self.begin().await?;
        let members = sqlx::query("DELETE FROM scim_members WHERE group_id = $1 OR user_id = $1");
        members.bind(&resource.id).execute(&mut *transaction).await?;
        let query = sqlx::query("DELETE FROM scim_resources WHERE id = $1 AND provider = $2 AND kind = $3");
        let query = query.bind(&resource.id).bind(provider).bind(resource.kind);
        let there = query.execute(&mut *transaction).await?.rows_affected() == 1;
        let by = resource.link(link);
        if there && resource.kind == "User" && !by.is_empty() {
            let gone = "INSERT INTO scim_gone (provider, link, gone_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            sqlx::query(gone).bind(provider).bind(&by).bind(now()).execute(&mut *transaction).await?;
            end_sessions(&mut transaction, provider, link, &by).await?;
        }
        transaction.commit().await?;
        Ok(there)
    }

    /// The users of a group, or the groups of a user: ids and names.
    pub async fn scim_relations(&self, kind: &'static str, id: &str) -> Result<Vec<(String, String)>, StoreError> {
        let query = match kind {
            "Group" => {
                "SELECT m.user_id AS id, COALESCE(r.name, '') AS name FROM scim_members m LEFT JOIN scim_resources r ON r.id = m.user_id WHERE m.group_id = $1 ORDER BY m.user_id"
            }
            _ => {
                "SELECT r.id, r.name FROM scim_members m JOIN scim_resources r ON r.id = m.group_id WHERE m.user_id = $1 ORDER BY r.name_lower"
            }
        };
        let rows = self.within(sqlx::query(query).bind(id).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("name")?))).collect::<Result<_, sqlx::Error>>()?)
    }

    /// What was pushed of a person.
    pub async fn provisioned(&self, provider: &str, by: ScimLink, text: &str) -> Result<Provisioned, StoreError> {
        self.within(self.provisioned_now(provider, by, text)).await
    }

    async fn provisioned_now(&self, provider: &str, by: ScimLink, text: &str) -> Result<Provisioned, sqlx::Error> {
        let (query, text) = match by {
            ScimLink::ExternalId => (
                "SELECT id, active FROM scim_resources WHERE provider = $1 AND kind = 'User' AND external_id = $2",
                text.to_owned(),
            ),
            ScimLink::UserName => (
                "SELECT id, active FROM scim_resources WHERE provider = $1 AND kind = 'User' AND name_lower = $2",
                text.to_lowercase(),
            ),
        };
        let Some(row) = sqlx::query(query).bind(provider).bind(&text).fetch_optional(&self.pool).await? else {
            let gone = sqlx::query("SELECT 1 AS one FROM scim_gone WHERE provider = $1 AND link = $2");
            let gone = gone.bind(provider).bind(&text).fetch_optional(&self.pool).await?;
            return Ok(gone.map_or(Provisioned::Unknown, |_| Provisioned::Out));
        };
        if row.try_get::<i64, _>("active")? == 0 {
            return Ok(Provisioned::Out);
        }
        let groups = "SELECT g.name FROM scim_members m JOIN scim_resources g ON g.id = m.group_id WHERE m.user_id = $1 ORDER BY g.name";
        let groups = sqlx::query(groups).bind(row.try_get::<String, _>("id")?).fetch_all(&self.pool).await?;
        Ok(Provisioned::Active(groups.iter().map(|row| row.try_get("name")).collect::<Result<_, _>>()?))
    }

    /// The names of all groups that a provider has pushed.
    pub async fn scim_group_names(&self, provider: &str) -> Result<HashSet<String>, StoreError> {
        let query =
            sqlx::query("SELECT name FROM scim_resources WHERE provider = $1 AND kind = 'Group'").bind(provider);
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(|row| row.try_get("name")).collect::<Result<_, _>>()?)
    }
}

/// Writes only what differs.
async fn set_members(
    connection: &mut AnyConnection,
    group: &str,
    members: &BTreeSet<String>,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query("SELECT user_id FROM scim_members WHERE group_id = $1").bind(group);
    let rows = rows.fetch_all(&mut *connection).await?;
    let before = rows.iter().map(|row| row.try_get("user_id")).collect::<Result<BTreeSet<String>, _>>()?;
    for gone in before.difference(members) {
        let query = sqlx::query("DELETE FROM scim_members WHERE group_id = $1 AND user_id = $2");
        query.bind(group).bind(gone).execute(&mut *connection).await?;
    }
    for new in members.difference(&before) {
        let query = sqlx::query("INSERT INTO scim_members (group_id, user_id) VALUES ($1, $2)");
        query.bind(group).bind(new).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Ends sessions and terminals, also those that were let in and have not heard of it; API keys wait.
async fn end_sessions(
    connection: &mut AnyConnection,
    provider: &str,
    link: ScimLink,
    by: &str,
) -> Result<(), sqlx::Error> {
    let statements = match link {
        ScimLink::ExternalId => [
            "DELETE FROM sessions WHERE provider = $1 AND subject = $2",
            "DELETE FROM terminals WHERE provider = $1 AND subject = $2",
            "DELETE FROM device_codes WHERE provider = $1 AND subject = $2",
        ],
        ScimLink::UserName => [
            "DELETE FROM sessions WHERE provider = $1
             AND subject IN (SELECT subject FROM people WHERE provider = $1 AND LOWER(name) = $2)",
            "DELETE FROM terminals WHERE provider = $1
             AND subject IN (SELECT subject FROM people WHERE provider = $1 AND LOWER(name) = $2)",
            "DELETE FROM device_codes WHERE provider = $1
             AND subject IN (SELECT subject FROM people WHERE provider = $1 AND LOWER(name) = $2)",
        ],
    };
    for statement in statements {
        sqlx::query(statement).bind(provider).bind(by).execute(&mut *connection).await?;
    }
    Ok(())
}
