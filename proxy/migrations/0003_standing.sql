-- A person is a provider and a subject there. A name is held by one person at a time; whoever else brings it is refused.
CREATE TABLE people (
    provider          TEXT   NOT NULL,
    subject           TEXT   NOT NULL,
    name              TEXT   NOT NULL UNIQUE,
    user_groups       TEXT   NOT NULL,            -- JSON array
    claims            TEXT   NOT NULL,            -- JSON object
    seen_at           BIGINT NOT NULL,            -- when they last signed in
    -- How they stand with their provider. `sealed` holds the refresh token by which it is asked; empty if there is none.
    sealed            TEXT   NOT NULL DEFAULT '',
    renewed_at        BIGINT NOT NULL DEFAULT 0,  -- when the provider last vouched for them
    renew_after       BIGINT NOT NULL DEFAULT 0,  -- when it is asked again
    renewing_until    BIGINT NOT NULL DEFAULT 0,  -- somebody asks; not 0 and over: the answer was lost
    unconfirmed_since BIGINT NOT NULL DEFAULT 0,  -- since when the provider can't be asked about them any more
    suspended_at      BIGINT NOT NULL DEFAULT 0,
    suspended_why     TEXT   NOT NULL DEFAULT '', -- refused, or unconfirmed
    PRIMARY KEY (provider, subject)
);

-- Of one person who had two names, the newer one.
INSERT INTO people (provider, subject, name, user_groups, claims, seen_at, sealed, renewed_at, renew_after, suspended_at,
                    suspended_why)
SELECT u.provider, u.subject, u.name, u.user_groups, u.claims, u.seen_at,
       COALESCE((SELECT s.sealed FROM sessions s WHERE s.user_name = u.name AND s.renewed_at > 0
                 ORDER BY s.created_at DESC LIMIT 1), ''),
       u.seen_at, u.seen_at,
       CASE WHEN u.suspended = 1 THEN u.seen_at ELSE 0 END,
       CASE WHEN u.suspended = 1 THEN 'refused' ELSE '' END
FROM users u
WHERE NOT EXISTS (SELECT 1 FROM users n WHERE n.provider = u.provider AND n.subject = u.subject
                  AND (n.seen_at > u.seen_at OR (n.seen_at = u.seen_at AND n.name > u.name)));

CREATE TABLE persons_sessions (
    id_hash    TEXT   NOT NULL PRIMARY KEY,
    provider   TEXT   NOT NULL,
    subject    TEXT   NOT NULL,
    sid        TEXT,            -- the provider's name for its own session
    sealed     TEXT   NOT NULL, -- the ID token, shown to the provider when signing out
    user_agent TEXT   NOT NULL,
    client     TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    used_at    BIGINT NOT NULL,
    FOREIGN KEY (provider, subject) REFERENCES people (provider, subject)
);
INSERT INTO persons_sessions (id_hash, provider, subject, sid, sealed, user_agent, client, created_at, used_at)
SELECT s.id_hash, s.provider, s.subject, s.sid, s.sealed, s.user_agent, s.client, s.created_at, s.used_at
FROM sessions s JOIN people p ON p.provider = s.provider AND p.subject = s.subject
WHERE s.ended = 0;

CREATE TABLE persons_keys (
    id         TEXT   NOT NULL PRIMARY KEY,
    key_hash   TEXT   NOT NULL UNIQUE,
    provider   TEXT   NOT NULL,
    subject    TEXT   NOT NULL,
    label      TEXT   NOT NULL,
    user_agent TEXT   NOT NULL,
    scopes     TEXT   NOT NULL, -- JSON array
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    used_at    BIGINT,
    FOREIGN KEY (provider, subject) REFERENCES people (provider, subject)
);
INSERT INTO persons_keys (id, key_hash, provider, subject, label, user_agent, scopes, created_at, expires_at, used_at)
SELECT k.id, k.key_hash, u.provider, u.subject, k.label, k.user_agent, k.scopes, k.created_at, k.expires_at, k.used_at
FROM api_keys k JOIN users u ON u.name = k.user_name;

DROP TABLE sessions;
DROP TABLE api_keys;
DROP TABLE users;
ALTER TABLE persons_sessions RENAME TO sessions;
ALTER TABLE persons_keys RENAME TO api_keys;
CREATE INDEX sessions_by_person ON sessions (provider, subject);
CREATE INDEX sessions_by_sid ON sessions (provider, sid);
CREATE INDEX api_keys_by_person ON api_keys (provider, subject);
