-- Who is there, as an identity provider pushes it by SCIM (RFC 7643): its users and groups, in their own words.
CREATE TABLE scim_resources (
    id          TEXT   NOT NULL PRIMARY KEY,
    provider    TEXT   NOT NULL,
    kind        TEXT   NOT NULL,            -- User, or Group
    external_id TEXT   NOT NULL DEFAULT '',
    name        TEXT   NOT NULL,            -- userName, or displayName
    name_lower  TEXT   NOT NULL,
    active      BIGINT NOT NULL DEFAULT 1,  -- of users
    document    TEXT   NOT NULL,            -- JSON object
    version     BIGINT NOT NULL DEFAULT 1,
    created_at  BIGINT NOT NULL,
    changed_at  BIGINT NOT NULL
);
CREATE UNIQUE INDEX scim_resources_by_name ON scim_resources (provider, kind, name_lower);
CREATE UNIQUE INDEX scim_resources_by_external_id ON scim_resources (provider, kind, external_id) WHERE external_id <> '';

CREATE TABLE scim_members (
    group_id TEXT NOT NULL REFERENCES scim_resources (id),
    user_id  TEXT NOT NULL,            -- whoever is pushed first: the user need not be there
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX scim_members_by_user ON scim_members (user_id);

-- Users that were deleted, by what links them to people: until they are pushed again, they are out.
CREATE TABLE scim_gone (
    provider TEXT   NOT NULL,
    link     TEXT   NOT NULL,
    gone_at  BIGINT NOT NULL,
    PRIMARY KEY (provider, link)
);
