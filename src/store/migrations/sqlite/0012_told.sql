-- The number of the newest change of a KEK's state (kek_states.id) that a server's table had when it
-- told of itself: what it gives out from then on is by that.
ALTER TABLE servers ADD COLUMN knows INTEGER NOT NULL DEFAULT 0;

-- What was given another key a moment ago: a job that wrote nothing takes that back.
CREATE INDEX eedk_states_superseded ON eedk_states (at) WHERE state = 'superseded';
