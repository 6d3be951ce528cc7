-- Which server gave a data key, for which job, and when, as microseconds since 1970: what the
-- history is searched by. schema: the least version of these tables that a program must know.
ALTER TABLE generations ADD COLUMN server TEXT NOT NULL DEFAULT '';
ALTER TABLE generations ADD COLUMN job TEXT;
ALTER TABLE generations ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
ALTER TABLE eedks ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
UPDATE generations SET made = CAST(ROUND((julianday(created) - 2440587.5) * 86400000) AS INTEGER) * 1000;
UPDATE eedks SET made =
    (SELECT made FROM generations g WHERE g.dki = eedks.dki AND g.generation = eedks.generation);

CREATE INDEX generations_made ON generations (made);
CREATE INDEX generations_drive ON generations (drive, made);
CREATE INDEX eedks_kek ON eedks (kek_hash, made);

INSERT INTO settings (name, value) VALUES ('schema', '5');
