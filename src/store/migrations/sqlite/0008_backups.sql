-- When a setting was changed, where that matters to a server beside; partners that were removed, so
-- that they do not come back with an older list.
ALTER TABLE settings ADD COLUMN updated TEXT NOT NULL DEFAULT '';

CREATE TABLE removed_partners (
    folded  TEXT PRIMARY KEY NOT NULL,
    label   TEXT NOT NULL,
    hash    TEXT NOT NULL,
    removed TEXT NOT NULL
) STRICT;

-- Backups that were made and read back, with the KEKs in them (JSON); and for each KEK the newest.
CREATE TABLE backups (
    id       TEXT PRIMARY KEY NOT NULL,
    at       TEXT NOT NULL,
    server   TEXT NOT NULL,
    file     TEXT NOT NULL,
    bytes    INTEGER NOT NULL,
    digest   TEXT NOT NULL,
    contents TEXT NOT NULL,
    keks     TEXT NOT NULL
) STRICT;
CREATE INDEX backups_at ON backups (at);

CREATE TABLE backed_keks (
    kek    TEXT PRIMARY KEY NOT NULL,
    backup TEXT NOT NULL REFERENCES backups (id)
) STRICT;
