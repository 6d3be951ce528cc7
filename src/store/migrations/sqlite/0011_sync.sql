-- Servers whose tables are taken in: how far their history was read (the row's number and what tells
-- it from a row of another history), and when a sync last came to its end.
CREATE TABLE sync_peers (
    peer    TEXT PRIMARY KEY NOT NULL,
    history INTEGER NOT NULL DEFAULT 0,
    mark    TEXT NOT NULL DEFAULT '',
    synced  TEXT NOT NULL DEFAULT ''
) STRICT;

-- The request that a generation answered, for whoever reads the history.
CREATE INDEX requests_key ON requests (dki, generation);
