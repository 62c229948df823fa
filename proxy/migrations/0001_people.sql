-- Times are seconds since 1970. Texts that end in _hash are SHA-256 of a secret, in hexadecimal; `sealed` is
-- encrypted with the key in sidecar.secretFile. What is here signs nobody in.

CREATE TABLE users (
    name        TEXT   NOT NULL PRIMARY KEY,
    provider    TEXT   NOT NULL,
    subject     TEXT   NOT NULL,
    user_groups TEXT   NOT NULL, -- JSON array
    claims      TEXT   NOT NULL, -- JSON object
    seen_at     BIGINT NOT NULL
);

CREATE TABLE sessions (
    id_hash     TEXT   NOT NULL PRIMARY KEY,
    user_name   TEXT   NOT NULL REFERENCES users (name),
    provider    TEXT   NOT NULL,
    subject     TEXT   NOT NULL,
    sid         TEXT,            -- the provider's name for its own session
    sealed      TEXT   NOT NULL, -- the provider's tokens
    user_agent  TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    used_at     BIGINT NOT NULL
);
CREATE INDEX sessions_by_user ON sessions (user_name);

CREATE TABLE api_keys (
    id          TEXT   NOT NULL PRIMARY KEY,
    key_hash    TEXT   NOT NULL UNIQUE,
    user_name   TEXT   NOT NULL REFERENCES users (name),
    label       TEXT   NOT NULL,
    user_agent  TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT,
    used_at     BIGINT
);
CREATE INDEX api_keys_by_user ON api_keys (user_name);
