-- Terminals that ask to be signed in (RFC 8628), until somebody has decided and the terminal has heard of it.
CREATE TABLE device_codes (
    device_hash    TEXT   NOT NULL PRIMARY KEY, -- SHA-256 of what the terminal asks with
    user_hash      TEXT   NOT NULL UNIQUE,      -- SHA-256 of the letters that somebody types
    name           TEXT   NOT NULL,             -- what the terminal calls itself
    scopes         TEXT   NOT NULL,             -- JSON array
    client         TEXT   NOT NULL,             -- where it asks from
    network        TEXT   NOT NULL,             -- of which there may be so many
    created_at     BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    polled_at      BIGINT NOT NULL DEFAULT 0,
    poll_interval  BIGINT NOT NULL,             -- seconds; grows with each question that comes too soon
    too_soon       BIGINT NOT NULL DEFAULT 0,   -- 1: the last question did
    decision       TEXT   NOT NULL DEFAULT '',  -- allowed, denied
    provider       TEXT   NOT NULL DEFAULT '',  -- who has decided
    subject        TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX device_codes_by_network ON device_codes (network);

-- Terminals that are signed in.
CREATE TABLE terminals (
    id           TEXT   NOT NULL PRIMARY KEY,
    generation   BIGINT NOT NULL, -- of its refresh token, which is another one after each use
    retry_hash   TEXT   NOT NULL, -- SHA-256 of what the last use may be repeated with
    provider     TEXT   NOT NULL,
    subject      TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    scopes       TEXT   NOT NULL, -- JSON array
    created_at   BIGINT NOT NULL,
    used_at      BIGINT NOT NULL,
    used_from    TEXT   NOT NULL,
    FOREIGN KEY (provider, subject) REFERENCES people (provider, subject)
);
CREATE INDEX terminals_by_person ON terminals (provider, subject);
