-- The last number that was given out: what was written down later has a higher one.
CREATE TABLE event_order (last BIGINT NOT NULL);
INSERT INTO event_order (last) VALUES (0);

-- What a request is about to change, until it is known what became of it.
CREATE TABLE event_intents (
    id         TEXT   NOT NULL PRIMARY KEY,
    position   BIGINT NOT NULL,
    stream     TEXT   NOT NULL, -- the repository, in which what happens is told in its order
    change     TEXT   NOT NULL, -- JSON
    holder     TEXT   NOT NULL, -- the process that serves the request; empty if nobody does any more
    touched_at BIGINT NOT NULL  -- when that process last said that it is there, or let go
);
CREATE INDEX event_intents_by_stream ON event_intents (stream, position);

-- What is to be told, to each sink by itself.
CREATE TABLE events (
    sink     TEXT   NOT NULL, -- its address
    id       TEXT   NOT NULL,
    position BIGINT NOT NULL,
    part     BIGINT NOT NULL, -- of what happened at one position
    stream   TEXT   NOT NULL,
    kind     TEXT   NOT NULL,
    at       BIGINT NOT NULL,
    data     TEXT   NOT NULL, -- JSON
    PRIMARY KEY (sink, id)
);
CREATE INDEX events_by_position ON events (sink, position, part);
CREATE INDEX events_by_stream ON events (sink, stream, position, part);

-- Which process sends to a sink, and until when nobody else does; and which reads what the registry tells.
CREATE TABLE event_leases (
    name       TEXT   NOT NULL PRIMARY KEY,
    holder     TEXT   NOT NULL,
    held_until BIGINT NOT NULL
);
