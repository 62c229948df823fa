-- API keys that may do less than their owner, and people whom the provider doesn't know any more.
ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '[]'; -- JSON array
ALTER TABLE users ADD COLUMN suspended BIGINT NOT NULL DEFAULT 0;  -- 1: their keys wait for their next sign-in

-- Claims are renewed by one replica at a time. A session that has ended by age may go on to renew its owner's claims, for
-- the API keys that follow them; it signs nobody in.
ALTER TABLE sessions ADD COLUMN client TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN renewed_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN renewing_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN ended BIGINT NOT NULL DEFAULT 0;
CREATE INDEX sessions_by_subject ON sessions (provider, subject);

-- What a job that signed in with a JWT goes on with after that has expired.
CREATE TABLE refresh_tokens (
    id         TEXT   NOT NULL PRIMARY KEY,
    token_hash TEXT   NOT NULL UNIQUE,
    issuer     TEXT   NOT NULL, -- whose rules its claims must pass at each use
    claims     TEXT   NOT NULL, -- JSON object
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

-- Logout tokens that were used, by SHA-256 of their jti, until they have expired anyway.
CREATE TABLE logout_tokens (
    jti_hash   TEXT   NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
