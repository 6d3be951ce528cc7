-- Audit chains: the keys that seal them, each server's seals as they are known outside its chain,
-- and its newest record.
CREATE TABLE audit_keys (
    id TEXT PRIMARY KEY,
    spki BLOB NOT NULL,
    token TEXT NOT NULL,
    made TEXT NOT NULL
);

CREATE TABLE audit_anchors (
    node TEXT NOT NULL,
    number INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    hash TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (node, number)
);

CREATE TABLE audit_heads (
    node TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    hash TEXT NOT NULL,
    at TEXT NOT NULL
);
