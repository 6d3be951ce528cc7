-- Commands that wait for a second person. Times are microseconds since 1970.
CREATE TABLE approvals (
    id         TEXT PRIMARY KEY NOT NULL,
    words      TEXT NOT NULL,
    command    TEXT NOT NULL,
    permit     BIGINT NOT NULL,
    asked_by   TEXT NOT NULL,
    asked_uid  BIGINT,
    asker      TEXT NOT NULL,
    asked      BIGINT NOT NULL,
    expires    BIGINT NOT NULL,
    state      TEXT NOT NULL,
    decided_by TEXT,
    decided    BIGINT,
    outcome    TEXT
);
CREATE INDEX approvals_state ON approvals (state, expires);
CREATE INDEX approvals_asked ON approvals (asked);

-- What a drive showed that asked by itself, and another key than that of its row.
CREATE TABLE sightings (
    serial        TEXT PRIMARY KEY NOT NULL,
    shown         TEXT,
    peer          TEXT NOT NULL,
    found_by      TEXT NOT NULL,
    address       TEXT NOT NULL,
    first_seen    BIGINT NOT NULL,
    last_seen     BIGINT NOT NULL,
    times         BIGINT NOT NULL,
    other_key     TEXT,
    other_peer    TEXT,
    other_address TEXT,
    other_last    BIGINT,
    other_times   BIGINT NOT NULL
);
