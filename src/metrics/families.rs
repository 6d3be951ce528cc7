//! What `/metrics` shows: each family's name, kind, labels and meaning, in one
//! list that is also the table of docs/operating.md.

use super::page::{Family, Kind};

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help,
    }
}

/// This program; always 1.
pub const BUILD: Family = family(
    "ekm_build_info",
    Kind::Gauge,
    &["version"],
    "This program; always 1",
);
/// Alarms.
pub const ALARM: Family = family(
    "ekm_alarm",
    Kind::Gauge,
    &["code"],
    "How many alarms of this code are raised now",
);
/// Requests.
pub const REQUESTS: Family = family(
    "ekm_requests_total",
    Kind::Counter,
    &["verb", "code"],
    "Requests of drives and proxies that ended, by verb and outcome: ok, an EKM code, or gone where the client left",
);
/// How long requests took.
pub const REQUEST_SECONDS: Family = family(
    "ekm_request_seconds",
    Kind::Histogram,
    &["verb"],
    "How long they took",
);
/// Places at a token.
pub const PLACES: Family = family(
    "ekm_admission_places",
    Kind::Gauge,
    &["gate"],
    "Requests that may be under way at once behind the gate: a token's name, or (state) for what is looked up before",
);
/// Places that are taken.
pub const UNDER_WAY: Family = family(
    "ekm_admission_under_way",
    Kind::Gauge,
    &["gate"],
    "Requests that are under way there",
);
/// Requests that wait.
pub const WAITING: Family = family(
    "ekm_admission_waiting",
    Kind::Gauge,
    &["gate"],
    "Requests that wait for a place",
);
/// Peers that wait.
pub const WAITING_PEERS: Family = family(
    "ekm_admission_waiting_peers",
    Kind::Gauge,
    &["gate"],
    "Peers that have a request waiting",
);
/// Requests that were refused.
pub const REFUSED: Family = family(
    "ekm_admission_refused_total",
    Kind::Counter,
    &["gate"],
    "Requests that were told that the key service is busy, because as many waited as may",
);
/// Requests that left.
pub const LEFT: Family = family(
    "ekm_admission_left_total",
    Kind::Counter,
    &["gate"],
    "Requests that left before their turn: the client went, or the request's time was over",
);
/// How long requests waited.
pub const WAIT_SECONDS: Family = family(
    "ekm_admission_wait_seconds",
    Kind::Histogram,
    &["gate"],
    "How long requests waited for their place",
);
/// Connections.
pub const CONNECTIONS: Family = family(
    "ekm_connections",
    Kind::Gauge,
    &[],
    "Connections open at the drives' door",
);
/// Most connections.
pub const CONNECTIONS_LIMIT: Family = family(
    "ekm_connections_limit",
    Kind::Gauge,
    &[],
    "Most that may be",
);
/// Connections that were let in.
pub const ACCEPTED: Family = family(
    "ekm_connections_accepted_total",
    Kind::Counter,
    &[],
    "Connections that were let in",
);
/// Connections that gave way.
pub const DISPLACED: Family = family(
    "ekm_connections_displaced_total",
    Kind::Counter,
    &[],
    "Idle connections that gave way to others",
);
/// Connections without room.
pub const UNSEATED: Family = family(
    "ekm_connections_refused_total",
    Kind::Counter,
    &[],
    "Connections that found no room",
);
/// A token's state.
pub const TOKEN_STATE: Family = family(
    "ekm_token_state",
    Kind::Gauge,
    &["token", "state"],
    "1 for the state that the token is in, 0 for the others",
);
/// A token's processes.
pub const TOKEN_BRIDGES: Family = family(
    "ekm_token_bridges",
    Kind::Gauge,
    &["token"],
    "Processes that drive the token now",
);
/// Starts of a token's processes.
pub const TOKEN_STARTS: Family = family(
    "ekm_token_bridge_starts_total",
    Kind::Counter,
    &["token"],
    "Processes that were started for it, the first ones included",
);
/// A token's requests.
pub const TOKEN_REQUESTS: Family = family(
    "ekm_token_requests",
    Kind::Gauge,
    &["token"],
    "Requests that its processes have not answered yet",
);
/// The canary's age.
pub const TOKEN_HEARD: Family = family(
    "ekm_token_heard_seconds",
    Kind::Gauge,
    &["token"],
    "Time since the token last proved that it works, by an answer or its canary; no value where it has not since its processes were started",
);
/// A token's workers.
pub const TOKEN_WORKERS: Family = family(
    "ekm_token_workers",
    Kind::Gauge,
    &["token"],
    "Workers of all its processes when all is well, each with a session",
);
/// Workers at work.
pub const TOKEN_BUSY: Family = family(
    "ekm_token_workers_busy",
    Kind::Gauge,
    &["token"],
    "Workers that are at work; as of the last 5 seconds, like the next four",
);
/// Logins.
pub const TOKEN_LOGINS: Family = family(
    "ekm_token_logins_total",
    Kind::Counter,
    &["token"],
    "Logins that the token took",
);
/// Calls.
pub const CALL_SECONDS: Family = family(
    "ekm_pkcs11_call_seconds",
    Kind::Histogram,
    &["token", "function"],
    "How long PKCS#11 calls took, by function",
);
/// Calls that failed.
pub const CALL_ERRORS: Family = family(
    "ekm_pkcs11_errors_total",
    Kind::Counter,
    &["token", "function"],
    "Calls that answered something else than CKR_OK",
);
/// Calls under way.
pub const CALL_AGE: Family = family(
    "ekm_pkcs11_call_age_seconds",
    Kind::Gauge,
    &["token", "function"],
    "How long the oldest call that has not returned has been under way, told anew each second once it is one second; no value where none is",
);
/// Calls that never returned.
pub const CALL_HANGS: Family = family(
    "ekm_pkcs11_hangs_total",
    Kind::Counter,
    &["token", "function"],
    "Processes that were killed because a call did not return, by that call's function; unknown where the process had told of none",
);
/// A token's KEKs.
pub const TOKEN_KEKS: Family = family(
    "ekm_token_keks",
    Kind::Gauge,
    &["token"],
    "KEKs on the token, as last read",
);
/// PIN flags.
pub const TOKEN_PIN: Family = family(
    "ekm_token_pin_flag",
    Kind::Gauge,
    &["token", "flag"],
    "Whether the token shows CKF_USER_PIN_COUNT_LOW, FINAL_TRY or LOCKED, as last read, also as a login failed",
);
/// Guarded openings.
pub const GUARDED: Family = family(
    "ekm_guarded_eedks_total",
    Kind::Counter,
    &[],
    "EEDKs by PKCS#1 v1.5 that were not issued here and were opened or rejected; which of the two is in the audit log only",
);
/// Guarded openings that were refused.
pub const GUARDED_REFUSED: Family = family(
    "ekm_guarded_eedks_refused_total",
    Kind::Counter,
    &[],
    "Such EEDKs that were not tried, as a budget of failures was spent",
);
/// Budgets that are spent.
pub const GUARDED_SPENT: Family = family(
    "ekm_guarded_eedks_budgets_spent",
    Kind::Gauge,
    &[],
    "Peers and KEKs whose budget is spent until an operator forgives",
);
/// The database.
pub const DATABASE_UP: Family = family(
    "ekm_database_up",
    Kind::Gauge,
    &[],
    "Whether the state database that servers share answers; no value where the state is this server's own",
);
/// The cached table's age.
pub const CACHE_AGE: Family = family(
    "ekm_database_cache_age_seconds",
    Kind::Gauge,
    &[],
    "How long ago the cached table was read from it",
);
/// The queue.
pub const BACKLOG: Family = family(
    "ekm_history_backlog",
    Kind::Gauge,
    &[],
    "Creates whose EEDKs are in this server's queue only, and not in the database yet",
);
/// Lines that do not verify.
pub const BACKLOG_REJECTED: Family = family(
    "ekm_history_backlog_rejected",
    Kind::Gauge,
    &[],
    "Lines of the queue that are not as they were written",
);
/// Differences.
pub const DIFFERENCES: Family = family(
    "ekm_fleet_differences",
    Kind::Gauge,
    &[],
    "What differs between the servers that share the database",
);
/// Records.
pub const AUDIT_RECORDS: Family = family(
    "ekm_audit_records_total",
    Kind::Counter,
    &[],
    "Audit records made durable",
);
/// Syncs.
pub const AUDIT_SYNC_SECONDS: Family = family(
    "ekm_audit_sync_seconds",
    Kind::Histogram,
    &[],
    "How long their syncs took; several records share one",
);
/// The log has failed.
pub const AUDIT_FAILED: Family = family(
    "ekm_audit_failed",
    Kind::Gauge,
    &[],
    "1 once a record could not be made durable; no key is served then",
);
/// Emergency policy.
pub const AUDIT_EMERGENCY: Family = family(
    "ekm_audit_emergency",
    Kind::Gauge,
    &[],
    "1 while the emergency policy is on: cartridges are read, nothing new is keyed",
);
/// Records in memory.
pub const AUDIT_MEMORY: Family = family(
    "ekm_audit_memory_records",
    Kind::Gauge,
    &[],
    "Records that are in memory only, as the disk takes none",
);
/// Records that were sent.
pub const OUTLET_SENT: Family = family(
    "ekm_audit_outlet_sent_total",
    Kind::Counter,
    &["to"],
    "Records that were sent to a syslog or journal",
);
/// Records that were not.
pub const OUTLET_LOST: Family = family(
    "ekm_audit_outlet_lost_total",
    Kind::Counter,
    &["to"],
    "Records that were not, because it was away or slow",
);
/// Certificates.
pub const CERTIFICATE: Family = family(
    "ekm_certificate_expiry_timestamp_seconds",
    Kind::Gauge,
    &[],
    "When the first certificate of this server or its CA expires, Unix time",
);
/// Free disk space.
pub const DISK_FREE: Family = family(
    "ekm_disk_free_bytes",
    Kind::Gauge,
    &["directory"],
    "Free bytes of the file system that state or audit is on",
);
/// Disk size.
pub const DISK_SIZE: Family = family(
    "ekm_disk_size_bytes",
    Kind::Gauge,
    &["directory"],
    "Its size",
);

/// All of them, in the order of the page.
pub const ALL: &[Family] = &[
    BUILD,
    ALARM,
    REQUESTS,
    REQUEST_SECONDS,
    PLACES,
    UNDER_WAY,
    WAITING,
    WAITING_PEERS,
    REFUSED,
    LEFT,
    WAIT_SECONDS,
    CONNECTIONS,
    CONNECTIONS_LIMIT,
    ACCEPTED,
    DISPLACED,
    UNSEATED,
    TOKEN_STATE,
    TOKEN_BRIDGES,
    TOKEN_STARTS,
    TOKEN_REQUESTS,
    TOKEN_HEARD,
    TOKEN_WORKERS,
    TOKEN_BUSY,
    TOKEN_LOGINS,
    CALL_SECONDS,
    CALL_ERRORS,
    CALL_AGE,
    CALL_HANGS,
    TOKEN_KEKS,
    TOKEN_PIN,
    GUARDED,
    GUARDED_REFUSED,
    GUARDED_SPENT,
    DATABASE_UP,
    CACHE_AGE,
    BACKLOG,
    BACKLOG_REJECTED,
    DIFFERENCES,
    AUDIT_RECORDS,
    AUDIT_SYNC_SECONDS,
    AUDIT_FAILED,
    AUDIT_EMERGENCY,
    AUDIT_MEMORY,
    OUTLET_SENT,
    OUTLET_LOST,
    CERTIFICATE,
    DISK_FREE,
    DISK_SIZE,
];
