//! outside
//! A commit turned into the few bulk statements that write it, before any lock is taken.
//! Pure translation: the same commit always gives the same texts and the same digest.

use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

use super::bytes::{Framed, hex, sha256_hex};
use super::chain::RowText;
use crate::journal::{CanaryRow, Commit, KeyRow, Order, OrderSlot, OrderWrite, Record, StoreFault};
use crate::key::KeyId;
use crate::notify::{OutboxRow, OutboxState};

/// Rows in one statement.
pub(super) const ROWS: usize = 1000;

const LOWER: &str =
    "INSERT INTO orders (workspace, slot, ordered_by, key, provider, reference, access, cause, sequence, since, reason, actor,
    expires_at, message, release, orphaned, shard, epoch)
  SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8, value->>9, value->>10,
    value->>11, value->>12, value->>13, value->>14, value->>15, 0, 1 FROM json_each(?1) WHERE true
  ON CONFLICT (workspace, slot) DO UPDATE SET ordered_by = excluded.ordered_by, key = excluded.key, provider = excluded.provider,
    reference = excluded.reference, access = excluded.access, cause = excluded.cause, sequence = excluded.sequence,
    since = excluded.since, reason = excluded.reason, actor = excluded.actor, expires_at = excluded.expires_at,
    message = excluded.message, release = excluded.release, orphaned = excluded.orphaned
  WHERE excluded.sequence >= orders.sequence";
const KEYS: &str = "INSERT INTO keys (key, shard, epoch, state) SELECT value->>0, value->>1, 1, value->>2 FROM json_each(?1) WHERE true
  ON CONFLICT (key) DO UPDATE SET shard = excluded.shard, state = excluded.state";
const KEYS_GONE: &str = "DELETE FROM keys WHERE key IN (SELECT value FROM json_each(?1))";
const CANARIES: &str = "INSERT INTO canaries (key, version, wrapped, digest, wrapped_version, sealed_with, identity, created_at, checksum)
  SELECT value->>0, value->>1, unhex(value->>2), unhex(value->>3), value->>4, value->>5, value->>6, value->>7, value->>8
  FROM json_each(?1) WHERE true
  ON CONFLICT (key, version) DO UPDATE SET wrapped = excluded.wrapped, digest = excluded.digest,
    wrapped_version = excluded.wrapped_version, sealed_with = excluded.sealed_with, identity = excluded.identity,
    created_at = excluded.created_at, checksum = excluded.checksum";
const CANARIES_GONE: &str = "DELETE FROM canaries WHERE (key, version) IN (SELECT value->>0, value->>1 FROM json_each(?1))";
const OUTBOX: &str = "INSERT INTO outbox (id, receiver, position, notice, created_at, state, attempts, next_at, last_error, written_at)
  SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8, ?2
  FROM json_each(?1) WHERE true
  ON CONFLICT (id, receiver) DO UPDATE SET position = excluded.position, notice = excluded.notice, created_at = excluded.created_at,
    state = excluded.state, attempts = excluded.attempts, next_at = excluded.next_at, last_error = excluded.last_error,
    written_at = excluded.written_at";
const META: &str = "INSERT INTO meta (name, value) SELECT value->>0, value->>1 FROM json_each(?1) WHERE true
  ON CONFLICT (name) DO UPDATE SET value = excluded.value";
const META_GONE: &str = "DELETE FROM meta WHERE name IN (SELECT value FROM json_each(?1))";

/// One bulk statement with its rows as a JSON array.
pub(super) enum Statement<'a> {
    Plain {
        sql: &'static str,
        rows: String,
    },
    /// Also takes the time of writing.
    Timed {
        sql: &'static str,
        rows: String,
    },
    Lift {
        rows: String,
        slots: Vec<&'a OrderSlot>,
    },
}

pub(super) struct Prepared<'a> {
    /// Orders, keys, canaries.
    pub before: Vec<Statement<'a>>,
    /// Not yet numbered nor sealed.
    pub records: Vec<RowText>,
    /// Outbox, meta.
    pub after: Vec<Statement<'a>>,
    /// Tells a retry of a batch from another commit under the same number.
    pub digest: String,
}

/// SQLite's JSON functions end a text at NUL, and the chain must be over the very bytes stored.
fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

fn clean_opt(text: Option<&str>) -> Option<Cow<'_, str>> {
    text.map(clean)
}

fn json_fault(error: &serde_json::Error) -> StoreFault {
    StoreFault::Unavailable(format!("a row cannot be written as json: {error}"))
}

pub(super) fn prepare(commit: &Commit) -> Result<Prepared<'_>, StoreFault> {
    let mut before = Vec::new();
    orders(&commit.orders, &mut before)?;
    let keys: BTreeMap<&KeyId, &KeyRow> = commit.keys.iter().map(|row| (&row.key, row)).collect();
    plain(KEYS_GONE, keys.values().filter(|r| r.state.is_none()).map(|r| json!(r.key)), &mut before)?;
    let live = keys.values().filter_map(|r| r.state.as_ref().map(|state| json!([r.key, r.shard.0, &**state])));
    plain(KEYS, live, &mut before)?;
    // Dropped first: a canary that the same commit replaces must stay.
    plain(CANARIES_GONE, commit.canaries_dropped.iter().map(|(key, version)| json!([key, clean(version.as_str())])), &mut before)?;
    plain(CANARIES, commit.canaries.iter().map(canary), &mut before)?;

    let mut after = Vec::new();
    let outbox = commit.outbox.iter().map(outbox).collect::<Result<Vec<_>, _>>()?;
    for chunk in outbox.chunks(ROWS) {
        after.push(Statement::Timed { sql: OUTBOX, rows: text(chunk)? });
    }
    plain(META_GONE, commit.meta.iter().filter(|(_, v)| v.is_none()).map(|(name, _)| json!(clean(name))), &mut after)?;
    let set = commit.meta.iter().filter_map(|(name, v)| v.as_ref().map(|v| json!([clean(name), clean(v)])));
    plain(META, set, &mut after)?;

    let records = commit.records.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    let digest = digest(&before, &commit.records, &after)?;
    Ok(Prepared { before, records, after, digest })
}

fn text(rows: &[Value]) -> Result<String, StoreFault> {
    serde_json::to_string(rows).map_err(|e| json_fault(&e))
}

fn plain<'a>(sql: &'static str, rows: impl Iterator<Item = Value>, into: &mut Vec<Statement<'a>>) -> Result<(), StoreFault> {
    let rows: Vec<Value> = rows.collect();
    for chunk in rows.chunks(ROWS) {
        into.push(Statement::Plain { sql, rows: text(chunk)? });
    }
    Ok(())
}

fn orders<'a>(writes: &'a [OrderWrite], into: &mut Vec<Statement<'a>>) -> Result<(), StoreFault> {
    let lowers = |write: &OrderWrite| matches!(write, OrderWrite::Lower(_));
    // Runs of one kind, so that a lock, its lift and the next lock of one commit keep their order.
    for run in writes.chunk_by(|a, b| lowers(a) == lowers(b)) {
        for chunk in run.chunks(ROWS) {
            let (mut lower, mut lift, mut slots) = (Vec::new(), Vec::new(), Vec::new());
            for write in chunk {
                match write {
                    OrderWrite::Lower(order) => lower.push(order_row(order)),
                    OrderWrite::Lift { slot, sequence } => {
                        lift.push(json!([slot.workspace, slot_name(slot), sequence.0]));
                        slots.push(slot);
                    }
                }
            }
            if !lower.is_empty() {
                into.push(Statement::Plain { sql: LOWER, rows: text(&lower)? });
            }
            if !lift.is_empty() {
                into.push(Statement::Lift { rows: text(&lift)?, slots });
            }
        }
    }
    Ok(())
}

/// `manual`, or provider and reference; a provider's name holds no space.
pub(super) fn slot_name(slot: &OrderSlot) -> String {
    match &slot.key {
        None => "manual".to_owned(),
        Some((provider, reference)) => format!("{provider} {}", clean(reference)),
    }
}

fn order_row(order: &Order) -> Value {
    let key = order.key.as_ref();
    json!([
        order.workspace,
        slot_name(&order.slot()),
        order.by,
        key.map(|k| &k.id),
        key.map(|k| &k.provider),
        key.map(|k| clean(&k.reference)),
        order.access,
        order.cause,
        order.sequence.0,
        order.since,
        clean_opt(order.reason.as_deref()),
        clean_opt(order.actor.as_deref()),
        order.expires_at,
        clean_opt(order.message.as_deref()),
        order.release,
        order.orphaned,
    ])
}

fn canary(row: &CanaryRow) -> Value {
    let (version, sealed_with) = (clean(row.version.as_str()), clean(&row.wrapped.sealed_with));
    let wrapped_version = clean_opt(row.wrapped.version.as_ref().map(crate::key::KeyVersion::as_str));
    let (identity, created_at) = (clean_opt(row.identity.as_deref()), row.created_at.to_string());
    let checksum = canary_checksum(&CanaryText {
        key: row.key.as_str(),
        version: &version,
        wrapped: &row.wrapped.bytes,
        digest: &row.wrapped.digest,
        wrapped_version: wrapped_version.as_deref(),
        sealed_with: &sealed_with,
        identity: identity.as_deref(),
        created_at: &created_at,
    });
    let (wrapped, digest) = (hex(&row.wrapped.bytes), hex(&row.wrapped.digest));
    json!([row.key, version, wrapped, digest, wrapped_version, sealed_with, identity, created_at, checksum])
}

/// A canary row as stored.
pub(super) struct CanaryText<'a> {
    pub key: &'a str,
    pub version: &'a str,
    pub wrapped: &'a [u8],
    pub digest: &'a [u8],
    pub wrapped_version: Option<&'a str>,
    pub sealed_with: &'a str,
    pub identity: Option<&'a str>,
    pub created_at: &'a str,
}

pub(super) fn canary_checksum(row: &CanaryText<'_>) -> String {
    let framed = Framed::new("cmek-canary-1")
        .text(Some(row.key))
        .text(Some(row.version))
        .field(Some(row.wrapped))
        .field(Some(row.digest))
        .text(row.wrapped_version)
        .text(Some(row.sealed_with))
        .text(row.identity)
        .text(Some(row.created_at));
    sha256_hex(framed.bytes())
}

pub(super) const fn state_word(state: OutboxState) -> &'static str {
    match state {
        OutboxState::Pending => "pending",
        OutboxState::InFlight => "in_flight",
        OutboxState::Done => "done",
        OutboxState::Dead => "dead",
        OutboxState::Folded => "folded",
    }
}

fn outbox(row: &OutboxRow) -> Result<Value, StoreFault> {
    let notice = serde_json::to_string(&*row.notice).map_err(|e| json_fault(&e))?;
    Ok(json!([
        clean(&row.id.0),
        row.receiver,
        row.position,
        notice,
        row.created_at,
        state_word(row.state),
        row.attempts,
        row.next_at,
        clean_opt(row.last_error.as_deref()),
    ]))
}

pub(super) fn record(record: &Record) -> Result<RowText, StoreFault> {
    let own = |text: Option<&str>| clean_opt(text).map(Cow::into_owned);
    Ok(RowText {
        sequence: 0,
        at: record.at.to_string(),
        event: record.event.as_str().to_owned(),
        key: own(record.key.as_ref().map(KeyId::as_str)),
        workspace: own(record.workspace.as_ref().map(crate::key::WorkspaceId::as_str)),
        version: own(record.version.as_ref().map(crate::key::KeyVersion::as_str)),
        actor: own(record.actor.as_deref()),
        event_id: own(record.event_id.as_deref()),
        correlation_id: own(record.correlation_id.as_deref()),
        detail: serde_json::to_string(&record.detail).map_err(|e| json_fault(&e))?,
    })
}

fn digest(before: &[Statement<'_>], records: &[Record], after: &[Statement<'_>]) -> Result<String, StoreFault> {
    let mut framed = Framed::new("cmek-batch-1");
    for statement in before.iter().chain(after) {
        framed = match statement {
            Statement::Plain { sql, rows } | Statement::Timed { sql, rows } => framed.text(Some(sql)).text(Some(rows)),
            Statement::Lift { rows, slots: _ } => framed.text(Some("lift")).text(Some(rows)),
        };
    }
    let records = serde_json::to_vec(records).map_err(|e| json_fault(&e))?;
    Ok(sha256_hex(framed.field(Some(&records)).bytes()))
}
