-- The number of the newest change of a KEK's state (kek_states.id) that a server's table had when it
-- told of itself: what it gives out from then on is by that. A table of its own, as a program of an
-- earlier version goes on reading the rows of servers while this one is there.
CREATE TABLE server_knows (
    node  TEXT PRIMARY KEY NOT NULL,
    state INTEGER NOT NULL
) STRICT;

-- What was given another key a moment ago: a job that wrote nothing takes that back.
CREATE INDEX eedk_states_superseded ON eedk_states (at) WHERE state = 'superseded';
