-- EEDKs that are wrapped by RSAES-PKCS1-v1_5, were never issued here, and were opened or not. A row
-- is written for each, whatever came of it, before its answer leaves: for the budget of those that
-- do not open (of_peer, of_kek: whether it still counts there). Those that opened go after a while.
CREATE TABLE openings (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    peer    TEXT NOT NULL,
    kek     TEXT NOT NULL,
    failed  INTEGER NOT NULL,
    of_peer INTEGER NOT NULL,
    of_kek  INTEGER NOT NULL,
    at      TEXT NOT NULL
) STRICT;
