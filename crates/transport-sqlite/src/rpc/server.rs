//! The server's side: takes requests of other processes, calls the local members and writes the frames of the replies.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use sqlx::Row;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::codec::{self, Reader};
use super::super::database::Database;
use super::super::error::{Sql, damaged};
use super::super::script::Script;
use super::calls::{Calls, FRAMES};
use super::frame::write_frame;
use super::local::Local;
use event_transport::Frame;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::subject::Subject;
use event_transport::sync::lock;

/// The highest number of requests that one query takes.
const TAKEN: i64 = 256;
/// The pause between two checks whether a slow caller has read more frames.
const LOOK: Duration = Duration::from_millis(2);

/// Announces a new member to the other processes.
pub(super) async fn announce(calls: &Calls, service: &str, subjects: &[Subject]) -> Result<SmolStr> {
    let database = &calls.database;
    let id = event_transport::consumer_name();
    let (me, service) = (database.processes.me().to_owned(), service.to_owned());
    let (row, subjects) = (id.to_string(), subjects.to_vec());
    calls.announced.fetch_add(1, Ordering::AcqRel);
    let announced = database.write("serve", move |connection| {
        Box::pin(async move {
            let mut script = Script::default();
            script.rows(
                "INSERT INTO rpc_server (id, process, service, subject, used) SELECT *, 0 FROM",
                4,
                "",
                subjects,
                |script, subject| {
                    script.bind(row.as_str()).bind(me.as_str()).bind(service.as_str()).bind(subject.as_str());
                },
            );
            script.run(connection).await.map(drop)
        })
    });
    announced.await?;
    Ok(id)
}

/// Deletes the announcement of a member that has ended.
pub(super) async fn withdraw(calls: &Calls, id: SmolStr) {
    let database = &calls.database;
    calls.announced.fetch_sub(1, Ordering::AcqRel);
    let gone = database.write("serve", move |connection| {
        Box::pin(async move {
            sqlx::query("DELETE FROM rpc_server WHERE id = ?")
                .bind(id.as_str())
                .execute(connection)
                .await
                .map(drop)
        })
    });
    // This fails while the bus closes. The next caller then finds that this process has ended and deletes its rows.
    let _ = gone.await;
}

/// Takes requests of other processes, and cancels those whose caller has deleted them.
pub(super) async fn take(calls: &Arc<Calls>, here: &Arc<Local>) -> Result<()> {
    let database = &calls.database;
    let explain = |error: sqlx::Error| database.explain(&error, "serve");
    let me = database.processes.me().to_owned();
    let rows = sqlx::query("SELECT id, taken FROM rpc_request WHERE process = ?")
        .bind(me.as_str())
        .fetch_all(&database.readers)
        .await
        .map_err(explain)?;
    let rows = rows.iter().map(|row| Ok((SmolStr::new(row.try_get::<&str, _>(0)?), row.try_get(1)?)));
    let rows = rows.collect::<Sql<Vec<(SmolStr, bool)>>>().map_err(explain)?;
    let asked: HashSet<&SmolStr> = rows.iter().map(|(id, _)| id).collect();
    lock(&calls.running).retain(|id, gone| {
        let wanted = asked.contains(id);
        if !wanted {
            gone.cancel();
        }
        wanted
    });
    if rows.iter().all(|(_, taken)| *taken) {
        return Ok(());
    }
    let taken = database.write("serve", move |connection| {
        Box::pin(async move {
            sqlx::query(
                "UPDATE rpc_request SET taken = 1 WHERE id IN (SELECT id FROM rpc_request WHERE process = ? AND taken = 0 ORDER BY id LIMIT ?) \
                 RETURNING id, caller, subject, expires, data",
            )
            .bind(me)
            .bind(TAKEN)
            .fetch_all(connection)
            .await
        })
    });
    for row in taken.await? {
        let read = || -> Option<(SmolStr, String, i64, Message)> {
            let subject = Subject::new(row.try_get::<&str, _>(2).ok()?).ok()?;
            let data = Bytes::copy_from_slice(row.try_get(4).ok()?);
            let (message, _) = Reader::new(data).record(subject)?;
            Some((
                row.try_get::<&str, _>(0).ok()?.into(),
                row.try_get(1).ok()?,
                row.try_get(3).ok()?,
                message,
            ))
        };
        let (id, caller, expires, message) =
            read().ok_or_else(|| explain(damaged("a request cannot be read")))?;
        let gone = CancellationToken::new();
        lock(&calls.running).insert(id.clone(), gone.clone());
        let (calls, here) = (calls.clone(), here.clone());
        tokio::spawn(async move {
            let database = &calls.database;
            tokio::select! {
                () = answer(database, &here, &id, &caller, expires, message) => {}
                () = gone.cancelled() => {}
                () = database.closing.cancelled() => {}
            }
            lock(&calls.running).remove(&id);
        });
    }
    // There may be more requests than one query takes.
    database.wake.requests.notify_one();
    Ok(())
}

/// Calls a local member with a request and writes the frames of its reply.
async fn answer(
    database: &Arc<Database>,
    here: &Local,
    id: &SmolStr,
    caller: &str,
    expires: i64,
    message: Message,
) {
    let Ok(within) = u64::try_from(expires.saturating_sub(codec::now())).map(Duration::from_nanos) else {
        return;
    };
    let mut replies = match here.call(message, within).await {
        Ok(replies) => replies,
        Err(error) => return drop(send(database, id, caller, expires, vec![Err(error)]).await),
    };
    let mut sent = 0;
    while let Some(frame) = replies.next().await {
        let mut last = frame.as_ref().map_or(true, |frame| frame.last);
        let mut frames = vec![frame];
        // Frames that are ready now are written in the same transaction.
        while !last
            && frames.len() < FRAMES / 4
            && let Some(Some(frame)) = futures_util::FutureExt::now_or_never(replies.next())
        {
            last = frame.as_ref().map_or(true, |frame| frame.last);
            frames.push(frame);
        }
        sent += frames.len();
        match send(database, id, caller, expires, frames).await {
            // The caller's process deletes the row of a frame when it has passed the frame on: the remaining rows are
            // the unread frames.
            Ok(mut unread) => {
                while unread >= FRAMES && sent >= FRAMES {
                    sleep(LOOK).await;
                    unread = unread_frames(database, id).await.unwrap_or(0);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a reply could not be written");
                return;
            }
        }
    }
}

async fn unread_frames(database: &Database, id: &str) -> Sql<usize> {
    let row =
        sqlx::query("SELECT count(*) FROM rpc_frame WHERE request = ?").bind(id).fetch_one(&database.readers);
    row.await?.try_get::<i64, _>(0).map(|count| count as usize)
}

/// Writes frames for the caller. Returns the number of frames that it has not read.
async fn send(
    database: &Arc<Database>,
    id: &SmolStr,
    caller: &str,
    expires: i64,
    frames: Vec<Result<Frame>>,
) -> Result<usize> {
    let frames: Vec<_> = frames.iter().map(write_frame).collect();
    let (id, caller) = (id.to_string(), caller.to_owned());
    let sent = database.write("reply", move |connection| {
        Box::pin(async move {
            let mut script = Script::default();
            // A deleted request has no caller any more: then no frame is stored.
            let tail = "WHERE EXISTS (SELECT 1 FROM rpc_request WHERE id = column1)";
            let head = "INSERT INTO rpc_frame (request, caller, expires, data) SELECT * FROM";
            script.rows(head, 4, tail, frames, |script, data| {
                script.bind(id.as_str()).bind(caller.as_str()).bind(expires).bind(data);
            });
            let unread = script.statement("SELECT count(*) FROM rpc_frame WHERE request = ?");
            script.bind(id.as_str());
            let answers = script.run(connection).await?;
            answers[unread].first().map_or(Ok(0), |row| row.try_get::<i64, _>(0))
        })
    });
    let unread = sent.await?;
    database.processes.call();
    Ok(unread as usize)
}
