-- The servers that share this state: when each was last there, and what its tokens hold (JSON).
CREATE TABLE servers (
    node     TEXT PRIMARY KEY NOT NULL,
    instance TEXT NOT NULL,
    version  TEXT NOT NULL,
    started  TEXT NOT NULL,
    seen     TEXT NOT NULL,
    tokens   TEXT NOT NULL,
    defaults TEXT NOT NULL
);
