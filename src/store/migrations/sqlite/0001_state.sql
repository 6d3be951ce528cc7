-- What a server knows. Nothing here is a key in clear. Rows of the history
-- (data_keys, generations, eedks,
-- eedk_states, requests) are added and never changed.

CREATE TABLE drives (
    serial    TEXT PRIMARY KEY NOT NULL,
    wwn       TEXT,
    kek1      TEXT,
    kek2      TEXT,
    spki      BLOB,
    certified INTEGER NOT NULL,
    form      TEXT NOT NULL,
    custody   TEXT NOT NULL,
    speakers  TEXT NOT NULL,
    state     TEXT NOT NULL,
    updated   TEXT NOT NULL,
    deleted   TEXT
) STRICT;

CREATE TABLE keks (
    folded     TEXT PRIMARY KEY NOT NULL,
    label      TEXT NOT NULL,
    hash       TEXT NOT NULL,
    spki       BLOB NOT NULL,
    bits       INTEGER NOT NULL,
    token      TEXT NOT NULL,
    custody    TEXT NOT NULL,
    provenance TEXT NOT NULL,
    created    TEXT NOT NULL
) STRICT;

CREATE TABLE settings (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT;

-- foreign: the data key was first seen in EEDKs that were not issued here, so
-- whoever made them may know it.
CREATE TABLE data_keys (
    dki     TEXT PRIMARY KEY NOT NULL,
    "foreign" INTEGER NOT NULL,
    created TEXT NOT NULL
) STRICT;

-- One create or rekey of a data key.
CREATE TABLE generations (
    dki        TEXT NOT NULL REFERENCES data_keys (dki),
    generation INTEGER NOT NULL,
    volser     TEXT NOT NULL,
    drive      TEXT NOT NULL,
    token      TEXT NOT NULL,
    custody    TEXT NOT NULL,
    created    TEXT NOT NULL,
    PRIMARY KEY (dki, generation)
) STRICT;
CREATE INDEX generations_volser ON generations (volser);

CREATE TABLE eedks (
    sha256     TEXT PRIMARY KEY NOT NULL,
    dki        TEXT NOT NULL,
    generation INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    der        BLOB NOT NULL,
    kek_label  TEXT NOT NULL,
    kek_hash   TEXT NOT NULL,
    proved     INTEGER NOT NULL,
    UNIQUE (dki, generation, position),
    FOREIGN KEY (dki, generation) REFERENCES generations (dki, generation)
) STRICT;

CREATE TABLE eedk_states (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    dki        TEXT NOT NULL,
    generation INTEGER NOT NULL,
    state      TEXT NOT NULL,
    at         TEXT NOT NULL,
    peer       TEXT NOT NULL,
    FOREIGN KEY (dki, generation) REFERENCES generations (dki, generation)
) STRICT;
CREATE INDEX eedk_states_dki ON eedk_states (dki, generation);

CREATE TABLE requests (
    peer       TEXT NOT NULL,
    request    TEXT NOT NULL,
    digest     BLOB NOT NULL,
    dki        TEXT NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (peer, request),
    FOREIGN KEY (dki, generation) REFERENCES generations (dki, generation)
) STRICT;
CREATE INDEX requests_request ON requests (request);
