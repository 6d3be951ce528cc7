-- Copies of KEKs, as they were made, restored or stated. Rows are added and never changed.
CREATE TABLE kek_copies (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    kek      TEXT NOT NULL,
    kind     TEXT NOT NULL,
    ceremony TEXT,
    token    TEXT,
    serial   TEXT,
    proven   INTEGER NOT NULL,
    note     TEXT,
    at       TEXT NOT NULL
) STRICT;
