-- States of KEKs beside the registry: rows are added, and the newest of a KEK counts.
CREATE TABLE kek_states (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    kek      TEXT NOT NULL,
    state    TEXT NOT NULL,
    reason   TEXT,
    operator TEXT NOT NULL,
    at       TEXT NOT NULL
) STRICT;
CREATE INDEX kek_states_kek ON kek_states (kek, id);

-- Volumes that an operator has given up by name: what was made for them until then (made) needs
-- no KEK any more.
CREATE TABLE write_offs (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    volser   TEXT NOT NULL,
    reason   TEXT NOT NULL,
    operator TEXT NOT NULL,
    at       TEXT NOT NULL,
    made     INTEGER NOT NULL
) STRICT;
CREATE INDEX write_offs_volser ON write_offs (volser);

-- pending: made of the catalog's EEDKs, without the cartridge; whichever drive holds it next may
-- store and confirm them. unstored: those that are not on their cartridge yet, one row a data key.
ALTER TABLE generations ADD COLUMN pending INTEGER NOT NULL DEFAULT 0;
CREATE TABLE unstored (
    dki        TEXT PRIMARY KEY NOT NULL,
    generation INTEGER NOT NULL,
    request    TEXT NOT NULL
) STRICT;

-- Rekeys of volumes. What was asked is JSON; where it is, is the last row that was looked at.
CREATE TABLE rekeys (
    id         TEXT PRIMARY KEY NOT NULL,
    asked      TEXT NOT NULL,
    operator   TEXT NOT NULL,
    began      TEXT NOT NULL,
    made       INTEGER NOT NULL,
    state      TEXT NOT NULL,
    why        TEXT,
    owner      TEXT NOT NULL,
    beat       INTEGER NOT NULL,
    place      TEXT,
    total      INTEGER NOT NULL,
    looked     INTEGER NOT NULL,
    done       INTEGER NOT NULL,
    skipped    INTEGER NOT NULL,
    failed     INTEGER NOT NULL
) STRICT;
CREATE TABLE rekey_failures (
    rekey  TEXT NOT NULL,
    dki    TEXT NOT NULL,
    volser TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     TEXT NOT NULL,
    PRIMARY KEY (rekey, dki)
) STRICT;

-- KEKs that take another's place in defaults and drive table at a time (due, microseconds since 1970).
CREATE TABLE kek_moves (
    id        TEXT PRIMARY KEY NOT NULL,
    former    TEXT NOT NULL,
    successor TEXT NOT NULL,
    due       INTEGER NOT NULL,
    operator  TEXT NOT NULL,
    state     TEXT NOT NULL,
    note      TEXT
) STRICT;

-- Rollovers by the calendar. making: the label of a key that is being made, so that one that was
-- made before a server died is used and not made twice.
CREATE TABLE kek_schedules (
    folded   TEXT PRIMARY KEY NOT NULL,
    label    TEXT NOT NULL,
    every    TEXT NOT NULL,
    due      INTEGER NOT NULL,
    operator TEXT NOT NULL,
    making   TEXT,
    owner    TEXT NOT NULL,
    beat     INTEGER NOT NULL,
    trouble  TEXT
) STRICT;
