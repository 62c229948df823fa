-- Where an API key was last used from.
ALTER TABLE api_keys ADD COLUMN used_from TEXT NOT NULL DEFAULT '';
