-- KEKs of business partners: public halves that an operator confirmed. Each row is sealed by keys
-- on the tokens (seals, JSON), because an EEDK under such a KEK cannot be proved.

CREATE TABLE partners (
    folded      TEXT PRIMARY KEY NOT NULL,
    label       TEXT NOT NULL,
    hash        TEXT NOT NULL,
    spki        BYTEA NOT NULL,
    certificate BYTEA NOT NULL,
    vouched     TEXT NOT NULL,
    operator    TEXT NOT NULL,
    confirmed   TEXT NOT NULL,
    seals       TEXT NOT NULL
);

-- Certificates of our own KEKs that a token did not take.

CREATE TABLE kek_certificates (
    hash        TEXT PRIMARY KEY NOT NULL,
    certificate BYTEA NOT NULL,
    created     TEXT NOT NULL
);
