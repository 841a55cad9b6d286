//! Creates and upgrades the tables, and checks that the file's version fits this build.

use std::path::Path;

use sqlx::{AssertSqlSafe, Executor, SqliteConnection};

use super::db;
use crate::{Error, ErrorKind, Result};

/// Marks the file as a task store (`BBtq`), in SQLite's own header field for application ids.
const APPLICATION: i64 = 0x4242_7471;
/// The version of the tables below.
const VERSION: i64 = 2;

// Times are milliseconds since the Unix epoch. Each index holds only rows in the states it serves, so that a
// claim costs the same with a thousand or a million pending tasks, and finished tasks slow down no statement.
const TABLES: &str = "
CREATE TABLE tasks (
  seq INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  name TEXT NOT NULL,
  queue TEXT NOT NULL,
  state TEXT NOT NULL,
  args TEXT NOT NULL,
  kwargs TEXT,
  priority INTEGER NOT NULL,
  created INTEGER NOT NULL,
  due INTEGER NOT NULL,
  expires INTEGER,
  errors INTEGER NOT NULL DEFAULT 0,
  crashes INTEGER NOT NULL DEFAULT 0,
  max_retries INTEGER NOT NULL,
  max_crashes INTEGER NOT NULL,
  unique_key TEXT,
  headers TEXT NOT NULL,
  result_ttl INTEGER NOT NULL,
  worker BLOB,
  fence INTEGER NOT NULL DEFAULT 0,
  started INTEGER,
  finished INTEGER,
  keep_until INTEGER,
  cancel INTEGER NOT NULL DEFAULT 0,
  result TEXT,
  error TEXT,
  attempts TEXT NOT NULL DEFAULT '[]',
  dropped INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX tasks_running ON tasks (worker) WHERE state = 'running';
CREATE INDEX tasks_keep ON tasks (keep_until) WHERE keep_until IS NOT NULL;
CREATE UNIQUE INDEX tasks_unique ON tasks (name, unique_key)
  WHERE unique_key IS NOT NULL AND state IN ('queued', 'scheduled', 'running');
CREATE TABLE workers (
  id BLOB PRIMARY KEY,
  info TEXT NOT NULL,
  name TEXT NOT NULL,
  started INTEGER NOT NULL,
  heartbeat INTEGER NOT NULL,
  lease_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE paused (queue TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE schedules (
  name TEXT PRIMARY KEY,
  plan TEXT NOT NULL,
  timing TEXT NOT NULL,
  next INTEGER,
  last INTEGER,
  fired INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE firings (
  schedule TEXT NOT NULL,
  nominal INTEGER NOT NULL,
  task BLOB NOT NULL,
  PRIMARY KEY (schedule, nominal)
) STRICT, WITHOUT ROWID;
CREATE INDEX firings_nominal ON firings (nominal);
";

/// The additions of the second version. A worker claims by kind, so the index of due tasks is ordered by queue and
/// kind: a claim never steps over tasks of other kinds, however many wait.
const SECOND: &str = "
CREATE INDEX tasks_queued ON tasks (queue, name, priority DESC, due, seq) WHERE state = 'queued';
CREATE INDEX tasks_scheduled ON tasks (due, queue) WHERE state = 'scheduled';
CREATE INDEX tasks_dead ON tasks (seq, queue) WHERE state = 'dead';
CREATE INDEX tasks_expiring ON tasks (expires)
  WHERE expires IS NOT NULL AND started IS NULL AND state IN ('queued', 'scheduled');
CREATE TABLE kinds (name TEXT PRIMARY KEY, kind TEXT NOT NULL, seen INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// Inserts the kinds of waiting and running tasks when the file is upgraded: their workers may not have registered
/// them yet, so they count as seen now.
const KNOWN: &str = "INSERT INTO kinds (name, kind, seen) \
    SELECT DISTINCT name, '{}', unixepoch() * 1000 FROM tasks WHERE state IN ('queued', 'scheduled', 'running')";

/// The changes from the first version to the second.
const FIRST_TO_SECOND: &str = "
DROP INDEX tasks_queued;
DROP INDEX tasks_scheduled;
DROP INDEX tasks_dead;
DROP INDEX tasks_expiring;
ALTER TABLE tasks ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
";

/// Creates the tables in a new file and upgrades those of an earlier version; refuses files of other programs and
/// of later versions. Processes of an earlier build that have the file open can continue to use it.
pub(super) async fn prepare(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    let doing = |error| db(&format!("preparing the task store {}", path.display()), error);
    // The usual case takes no write lock, so that opening does not wait for another process's write.
    if marks(connection).await.map_err(doing)? == (APPLICATION, VERSION) {
        return Ok(());
    }
    // The write lock is taken first: of two processes that open a new file, one creates the tables and the other
    // finds them.
    connection.execute("BEGIN IMMEDIATE").await.map_err(doing)?;
    let outcome = async {
        let (application, version) = marks(connection).await.map_err(doing)?;
        if (application, version) == (APPLICATION, VERSION) {
            return Ok(());
        }
        let tables: i64 =
            sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await.map_err(doing)?;
        let changes: &[&str] = match (application, version) {
            (APPLICATION, 1) => &[FIRST_TO_SECOND, SECOND, KNOWN],
            (0, _) if tables == 0 => &[TABLES, SECOND],
            _ => &[],
        };
        if !changes.is_empty() {
            for change in changes {
                connection.execute(AssertSqlSafe(*change)).await.map_err(doing)?;
            }
            let marks = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}");
            connection.execute(AssertSqlSafe(marks)).await.map_err(doing)?;
            return Ok(());
        }
        if application == APPLICATION {
            let text = format!(
                "the task store {} has version {version} and this build reads versions up to {VERSION}: use the \
                 build that wrote it, or another file",
                path.display()
            );
            return Err(Error::new(ErrorKind::Version, text));
        }
        let text = format!("{} is another program's database: give the task store a file of its own", path.display());
        Err(Error::new(ErrorKind::Corrupt, text))
    }
    .await;
    let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
    connection.execute(end).await.map_err(doing)?;
    outcome
}

/// Returns the file's application id and version.
async fn marks(connection: &mut SqliteConnection) -> Result<(i64, i64), sqlx::Error> {
    let application = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await?;
    let version = sqlx::query_scalar("PRAGMA user_version").fetch_one(connection).await?;
    Ok((application, version))
}
