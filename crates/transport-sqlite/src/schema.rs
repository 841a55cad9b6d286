//! The tables and their version; refuses a file of another program or of a newer version.

use sqlx::{Connection, Row, SqliteConnection};

use super::error::Sql;
use event_transport::error::{Error, ErrorKind, Result};

/// The schema version, stored in `user_version`; every change of the tables or of the record format increases it.
const VERSION: i64 = 1;
/// Stored in `application_id`: "BkBn", by which the `file` program and this library recognise a bus database.
const APPLICATION: i64 = 0x426b_426e;
/// The value of `due` for a message that waits for an earlier one of its key.
pub(super) const PARKED: i64 = i64::MAX;

/// The process of the member row of a keyed group that has its postponed messages; no process has this name. A build
/// that does not know it takes it for a member whose process has ended, and returns its messages to the group.
pub(super) const POSTPONED: &str = "(postponed)";
/// The value of `lease.at` for postponed messages, which were never delivered.
pub(super) const NEVER: i64 = 0;

/// Times are nanoseconds since 1970; `seq` is a message's position, counted over the whole file.
const TABLES: &str = "
-- Messages of one topic that were stored together; positions last-count+1 ..= last. `subjects` lists the distinct
-- subjects with their counts, `data` has the records in order. Many messages share a row, because a statement through
-- sqlx costs more than writing the bytes of a message.
CREATE TABLE segment (last INTEGER PRIMARY KEY, count INTEGER NOT NULL, at INTEGER NOT NULL, topic TEXT NOT NULL,
  subjects TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX segment_topic ON segment (topic, last);
CREATE TABLE delayed (id INTEGER PRIMARY KEY, due INTEGER NOT NULL, subject TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX delayed_due ON delayed (due);
CREATE TABLE dedup (id TEXT PRIMARY KEY, at INTEGER NOT NULL, position INTEGER) WITHOUT ROWID;
CREATE INDEX dedup_at ON dedup (at);
-- `cursor` is the last position that was leased; `revision` fences members that have read an older row;
-- `active` is the working member of a keyed group.
CREATE TABLE consumer_group (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, filters TEXT NOT NULL,
  cursor INTEGER NOT NULL, revision INTEGER NOT NULL, keyed INTEGER NOT NULL, active INTEGER);
-- One row per subscription. Its leases last until `until`; deleting the row fences the member.
CREATE TABLE member (id INTEGER PRIMARY KEY AUTOINCREMENT, grp INTEGER NOT NULL, process TEXT NOT NULL,
  until INTEGER NOT NULL);
CREATE INDEX member_grp ON member (grp);
-- Fresh messages that a member has claimed; `pending` has the positions that are not settled yet, as runs. A row of the
-- member with the process `(postponed)` has positions of one key whose earlier messages are not settled; its `at` is 0.
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, grp INTEGER NOT NULL, member INTEGER NOT NULL,
  first INTEGER NOT NULL, at INTEGER NOT NULL, pending BLOB NOT NULL);
CREATE INDEX lease_grp ON lease (grp, first);
CREATE INDEX lease_member ON lease (member);
-- Messages to deliver to one group again: retries, releases, deliveries of crashed consumers, replays, and messages
-- that wait for an earlier one of their key. Rows have their own copy, so segments can be deleted before them.
CREATE TABLE redelivery (id INTEGER PRIMARY KEY AUTOINCREMENT, grp INTEGER NOT NULL, seq INTEGER NOT NULL,
  key TEXT, attempts INTEGER NOT NULL, due INTEGER NOT NULL, member INTEGER, subject TEXT NOT NULL,
  published INTEGER NOT NULL, first_at INTEGER, replayed INTEGER NOT NULL, error TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX redelivery_due ON redelivery (grp, member, due);
CREATE INDEX redelivery_member ON redelivery (member) WHERE member IS NOT NULL;
CREATE INDEX redelivery_key ON redelivery (grp, key, seq, id) WHERE key IS NOT NULL;
CREATE TABLE dead (id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, seq INTEGER NOT NULL, key TEXT,
  subject TEXT NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL, attempts INTEGER NOT NULL,
  published INTEGER NOT NULL, first_at INTEGER, dead_at INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX dead_grp ON dead (grp, id);
-- Requests between processes: the servers of each subject, the requests that wait or are handled, the reply frames.
CREATE TABLE rpc_server (id TEXT NOT NULL, process TEXT NOT NULL, service TEXT NOT NULL, subject TEXT NOT NULL,
  used INTEGER NOT NULL, PRIMARY KEY (subject, id)) WITHOUT ROWID;
CREATE TABLE rpc_request (id TEXT PRIMARY KEY, server TEXT NOT NULL, process TEXT NOT NULL, caller TEXT NOT NULL,
  subject TEXT NOT NULL, expires INTEGER NOT NULL, taken INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX rpc_request_process ON rpc_request (process, taken);
CREATE TABLE rpc_frame (id INTEGER PRIMARY KEY, request TEXT NOT NULL, caller TEXT NOT NULL, expires INTEGER NOT NULL,
  data BLOB NOT NULL);
CREATE INDEX rpc_frame_caller ON rpc_frame (caller, id);
";

/// Creates the tables in an empty file, or checks that the file is a bus database of this version.
pub(super) async fn prepare(writer: &mut SqliteConnection) -> Sql<Result<()>> {
    let (application, version) = versions(writer).await?;
    if (application, version) == (APPLICATION, VERSION) {
        return Ok(Ok(()));
    }
    // Two processes may find the file empty at the same time: check again under the write lock.
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
    let (application, version) = versions(&mut transaction).await?;
    let tables: i64 =
        sqlx::query("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *transaction).await?.try_get(0)?;
    match (application, version, tables) {
        (APPLICATION, VERSION, _) => return Ok(Ok(())),
        (0, 0, 0) => {}
        (APPLICATION, newer, _) if newer > VERSION => {
            return Ok(Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "a newer version of this program wrote the file (schema {newer}, this one supports {VERSION}); update the program or choose another file"
                ),
            )));
        }
        _ => {
            return Ok(Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the file is an SQLite database of another program (application id {application:#x}, version {version}); choose another path"
                ),
            )));
        }
    }
    sqlx::raw_sql(TABLES).execute(&mut *transaction).await?;
    let stamp = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};");
    sqlx::raw_sql(sqlx::AssertSqlSafe(stamp)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Ok(()))
}

async fn versions(connection: &mut SqliteConnection) -> Sql<(i64, i64)> {
    let application = sqlx::query("PRAGMA application_id").fetch_one(&mut *connection).await?.try_get(0)?;
    let version = sqlx::query("PRAGMA user_version").fetch_one(&mut *connection).await?.try_get(0)?;
    Ok((application, version))
}
