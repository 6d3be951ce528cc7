-- Commands that wait for a second person. Times are microseconds since 1970.
CREATE TABLE approvals (
    id         TEXT PRIMARY KEY NOT NULL,
    words      TEXT NOT NULL,
    command    TEXT NOT NULL,
    permit     INTEGER NOT NULL,
    asked_by   TEXT NOT NULL,
    asked_uid  INTEGER,
    asker      TEXT NOT NULL,
    asked      INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    state      TEXT NOT NULL,
    decided_by TEXT,
    decided    INTEGER,
    outcome    TEXT
) STRICT;
CREATE INDEX approvals_state ON approvals (state, expires);
CREATE INDEX approvals_asked ON approvals (asked);

-- What a drive showed that asked by itself, and another key than that of its row.
CREATE TABLE sightings (
    serial        TEXT PRIMARY KEY NOT NULL,
    shown         TEXT,
    peer          TEXT NOT NULL,
    found_by      TEXT NOT NULL,
    address       TEXT NOT NULL,
    first_seen    INTEGER NOT NULL,
    last_seen     INTEGER NOT NULL,
    times         INTEGER NOT NULL,
    other_key     TEXT,
    other_peer    TEXT,
    other_address TEXT,
    other_last    INTEGER,
    other_times   INTEGER NOT NULL
) STRICT;
