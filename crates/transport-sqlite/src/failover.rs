//! Failover: returns the deliveries of a dead consumer to its group.

use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::codec;
use super::database::Database;
use super::error::{Sql, damaged};
use super::schema::{NEVER, POSTPONED};
use super::script::{Script, json};
use super::{lease, scan};
use event_transport::error::Result;

/// A member's row as it was last read.
pub(super) struct Seen {
    pub(super) id: i64,
    pub(super) process: String,
    pub(super) until: i64,
}

/// Reads the members of `groups`.
pub(super) async fn members(connection: &mut SqliteConnection, groups: &[i64]) -> Sql<Vec<Seen>> {
    let rows =
        sqlx::query("SELECT id, process, until FROM member WHERE grp IN (SELECT value FROM json_each(?)) AND process <> ?")
            .bind(json(groups.iter().copied()))
            .bind(POSTPONED)
            .fetch_all(connection)
            .await?;
    rows.iter()
        .map(|row| Ok(Seen { id: row.try_get(0)?, process: row.try_get(1)?, until: row.try_get(2)? }))
        .collect()
}

/// Returns to their groups the deliveries of the members in `seen` whose lease ran out or whose process has ended.
pub(super) async fn dead_letter(database: &Arc<Database>, seen: &[Seen]) -> Result<()> {
    let now = codec::now();
    for member in seen {
        let gone = !database.processes.lives(&member.process);
        if !gone && member.until > now {
            continue;
        }
        let id = member.id;
        let buried = database.write("renew", move |connection| {
            Box::pin(async move {
                // Since it was read, it may have renewed its lease, or another process may have removed it.
                let still = sqlx::query("SELECT 1 FROM member WHERE id = ? AND (? OR until <= ?)")
                    .bind(id)
                    .bind(gone)
                    .bind(now)
                    .fetch_optional(&mut *connection)
                    .await?;
                if still.is_some() {
                    reap(connection, id).await?;
                }
                Ok(still.is_some())
            })
        });
        if buried.await? {
            tracing::warn!(member = id, process = %member.process, "a consumer's lease ran out or its process ended; its deliveries go to other consumers");
            database.wake_everywhere();
        }
    }
    Ok(())
}

/// Returns the deliveries of `member` to its group and deletes its rows. Each of these deliveries counts as an attempt,
/// apart from postponed messages.
pub(super) async fn reap(connection: &mut SqliteConnection, member: i64) -> Sql<()> {
    let leases = sqlx::query("SELECT grp, at, pending FROM lease WHERE member = ?")
        .bind(member)
        .fetch_all(&mut *connection)
        .await?;
    for row in leases {
        let (group, at): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let delivered = at != NEVER;
        let seqs = lease::decode(row.try_get(2)?).ok_or_else(|| damaged("a lease cannot be read"))?;
        let found = scan::find(connection, &seqs).await?;
        let mut script = Script::default();
        script.rows(
            "INSERT INTO redelivery (grp, seq, key, attempts, due, subject, published, first_at, replayed, error, data) SELECT * FROM",
            11,
            "",
            found,
            |script, stored| {
                let mut record = Vec::new();
                codec::encode(&mut record, &stored.message, None);
                script.bind(group).bind(stored.seq);
                script.bind(stored.message.key.as_ref().map(|key| key.to_string()));
                script.bind(i64::from(delivered)).bind(0);
                script.bind(stored.message.subject.as_str()).bind(stored.published);
                script.bind(delivered.then_some(at)).bind(0);
                script.bind(if delivered { "the consumer went away" } else { "" }).bind(record);
            },
        );
        script.run(connection).await?;
    }
    let mut script = Script::default();
    script.statement("DELETE FROM lease WHERE member = ?");
    script.bind(member);
    script.statement("UPDATE redelivery SET member = NULL, due = 0 WHERE member = ?");
    script.bind(member);
    script.statement("DELETE FROM member WHERE id = ?");
    script.bind(member);
    script.run(connection).await.map(drop)
}
