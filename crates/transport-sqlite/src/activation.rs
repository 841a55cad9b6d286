//! Selects the active member of a keyed group.

use sqlx::Row;

use super::error::Sql;
use super::group;
use super::member::Member;
use super::postponed::Postponed;
use event_transport::error::Result;

/// Makes `member` the active member of its keyed group if there is no other. Returns whether it is active.
pub(super) async fn activate(member: &Member) -> Result<bool> {
    if member.membership.is_active() {
        return Ok(true);
    }
    let (group, id) = (member.feed.id, member.membership.id());
    const FREE: &str =
        "(keyed = 0 OR active IS NULL OR active = ? OR NOT EXISTS (SELECT 1 FROM member WHERE id = active))";
    let free = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {FREE} FROM consumer_group WHERE id = ?")))
        .bind(id)
        .bind(group)
        .fetch_optional(&member.database.readers)
        .await
        .and_then(|row| row.map(|row| row.try_get::<bool, _>(0)).transpose())
        .map_err(|error| member.database.explain(&error, "fetch"))?;
    match free {
        None => {
            group::restore(member).await?;
            return Ok(false);
        }
        Some(false) => return Ok(false),
        Some(true) => {}
    }
    let ours = member
        .database
        .write("fetch", move |connection| {
            Box::pin(async move {
                let sql = format!(
                    "UPDATE consumer_group SET active = ? WHERE {FREE} AND id = ? AND EXISTS (SELECT 1 FROM member WHERE id = ?) RETURNING id"
                );
                let row = sqlx::query(sqlx::AssertSqlSafe(sql))
                    .bind(id)
                    .bind(id)
                    .bind(group)
                    .bind(id)
                    .fetch_optional(connection)
                    .await?;
                Ok(row.is_some())
            })
        })
        .await?;
    if ours {
        // Another member may have been active meanwhile.
        if let Some(lanes) = &member.lanes {
            lanes.lock().set_postponed(Postponed::default());
        }
        member.membership.set_active(true);
        member.feed.look_for_redeliveries();
    }
    Ok(ours)
}

/// To be called after a refused claim: whether `member` has lost its row or its active place, so that it must not claim
/// again.
pub(super) async fn is_fenced(member: &Member) -> Sql<bool> {
    let id = member.membership.id();
    let row = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM member WHERE id = ?), \
         (SELECT keyed = 0 OR active = ? FROM consumer_group WHERE id = ?)",
    )
    .bind(id)
    .bind(id)
    .bind(member.feed.id)
    .fetch_one(&member.database.readers)
    .await?;
    let (exists, active): (bool, Option<bool>) = (row.try_get(0)?, row.try_get(1)?);
    if !exists {
        member.membership.lose();
    }
    if active != Some(true) {
        member.membership.set_active(false);
    }
    Ok(!exists || active != Some(true))
}
