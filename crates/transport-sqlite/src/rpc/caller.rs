//! The caller's side: writes a request for the least recently used server process and passes its frames to the caller.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use sqlx::Row;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::codec;
use super::super::database::Database;
use super::super::error::closed;
use super::super::script::{Script, json};
use super::super::wake::POLL;
use super::calls::{Call, Calls, FRAMES};
use super::frame::read_frame;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Message;
use event_transport::subject::Subject;
use event_transport::sync::lock;
use event_transport::{Frame, Replies};

/// Sends `request` to the member that was used least recently.
pub(super) async fn call(calls: &Arc<Calls>, request: Message, within: Duration) -> Result<Replies> {
    let database = &calls.database;
    let id = SmolStr::new(uuid::Uuid::now_v7().to_string());
    let expires = codec::now_and(within);
    let (frames, replies) = mpsc::channel(FRAMES + 1);
    let gone = CancellationToken::new();
    let process = loop {
        let mut record = Vec::new();
        codec::encode(&mut record, &request, None);
        let (row, subject, me) = (id.clone(), request.subject.clone(), database.processes.me().to_owned());
        let sent = database.write("request", move |connection| {
            Box::pin(async move {
                let server = sqlx::query(
                    "UPDATE rpc_server SET used = (SELECT max(used) FROM rpc_server WHERE subject = ?) + 1 \
                     WHERE subject = ? AND id = (SELECT id FROM rpc_server WHERE subject = ? ORDER BY used, id LIMIT 1) \
                     RETURNING id, process",
                )
                .bind(subject.as_str())
                .bind(subject.as_str())
                .bind(subject.as_str())
                .fetch_optional(&mut *connection)
                .await?;
                let Some(server) = server else { return Ok(None) };
                let (server, process): (String, String) = (server.try_get(0)?, server.try_get(1)?);
                sqlx::query("INSERT INTO rpc_request VALUES (?, ?, ?, ?, ?, ?, 0, ?)")
                    .bind(row.as_str())
                    .bind(server)
                    .bind(process.as_str())
                    .bind(me)
                    .bind(subject.as_str())
                    .bind(expires)
                    .bind(record)
                    .execute(connection)
                    .await?;
                Ok(Some(process))
            })
        });
        let process = sent.await?.ok_or_else(|| nobody(&request))?;
        if process != database.processes.me() && database.processes.lives(&process) {
            break process;
        }
        // The process has ended, or it is this one and its member is being withdrawn: delete its rows and try the next
        // member.
        forget_process(database, process).await?;
    };
    let waiting = Call { process, frames: frames.clone() };
    lock(&calls.out).insert(id.clone(), waiting);
    database.processes.call();
    // Frames may have arrived before the call was registered: read once more.
    database.wake.requests.notify_one();
    tokio::spawn(watch(calls.clone(), id, frames, gone.clone(), within, request.subject));
    Ok(Replies::new(replies, Some(gone)))
}

/// Waits for the end of a call (the last frame, a caller that dropped the replies, the deadline or the end of the
/// database), then deletes its rows.
async fn watch(
    calls: Arc<Calls>,
    id: SmolStr,
    frames: mpsc::Sender<Result<Frame>>,
    gone: CancellationToken,
    within: Duration,
    subject: Subject,
) {
    let database = &calls.database;
    let answered = async {
        while lock(&calls.out).contains_key(&id) {
            sleep(POLL).await;
        }
    };
    let error = tokio::select! {
        () = gone.cancelled() => None,
        () = answered => None,
        () = sleep(within) => Some(
            Error::new(ErrorKind::Timeout, "no answer within the deadline").with("subject", subject),
        ),
        () = database.closing.cancelled() => Some(closed("request")),
    };
    lock(&calls.out).remove(&id);
    if let Some(error) = error {
        let _ = frames.try_send(Err(error.during("request")));
    }
    drop(frames);
    let ended = database.write("request", move |connection| {
        Box::pin(async move {
            let mut script = Script::default();
            script.statement("DELETE FROM rpc_request WHERE id = ?");
            script.bind(id.as_str());
            script.statement("DELETE FROM rpc_frame WHERE request = ?");
            script.bind(id.as_str());
            script.run(connection).await.map(drop)
        })
    });
    // If this fails, the purge deletes the rows after they expire.
    let _ = ended.await;
    database.processes.call();
}

/// Passes frames to the callers that wait for them and have room.
pub(super) async fn receive(calls: &Calls) -> Result<()> {
    let database = &calls.database;
    let open: Vec<(SmolStr, String, usize)> = {
        let mut out = lock(&calls.out);
        out.retain(|_, call| !call.frames.is_closed());
        out.iter().map(|(id, call)| (id.clone(), call.process.clone(), call.frames.capacity())).collect()
    };
    if open.is_empty() {
        return Ok(());
    }
    for (id, process, _) in &open {
        if !database.processes.lives(process)
            && let Some(call) = lock(&calls.out).remove(id)
        {
            let error = Error::new(ErrorKind::Unavailable, "the server's process ended before it answered");
            let _ = call.frames.try_send(Err(error.during("request")));
        }
    }
    // One place in the channel is reserved for an error.
    let room: HashMap<SmolStr, usize> =
        open.into_iter().map(|(id, _, room)| (id, room.saturating_sub(1))).collect();
    let wanted: Vec<&str> = room.iter().filter(|(_, room)| **room > 0).map(|(id, _)| id.as_str()).collect();
    let wanted = serde_json::to_string(&wanted).unwrap_or_default();
    let rows = sqlx::query(
        "SELECT id, request, data FROM rpc_frame WHERE caller = ? AND request IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 1024",
    )
    .bind(database.processes.me())
    .bind(wanted)
    .fetch_all(&database.readers)
    .await
    .map_err(|error| database.explain(&error, "request"))?;
    let mut read = Vec::new();
    let mut left = room;
    for row in &rows {
        let (id, request, frame) = read_frame(row).map_err(|error| database.explain(&error, "request"))?;
        let Some(room) = left.get_mut(&request).filter(|room| **room > 0) else { continue };
        *room -= 1;
        read.push(id);
        let last = frame.as_ref().map_or(true, |frame| frame.last);
        let mut out = lock(&calls.out);
        let Some(call) = out.get(&request) else { continue };
        let _ = call.frames.try_send(frame);
        if last {
            out.remove(&request);
        }
    }
    for (request, _) in left.into_iter().filter(|(_, room)| *room == 0) {
        let out = lock(&calls.out);
        let Some(frames) = out.get(&request).map(|call| call.frames.clone()) else { continue };
        let database = database.clone();
        tokio::spawn(async move {
            // Two places, because one is reserved for an error. If the caller has dropped the replies, this fails and
            // nothing is signalled.
            if frames.reserve_many(2).await.is_ok() {
                database.wake.requests.notify_one();
            }
        });
    }
    if read.is_empty() {
        return Ok(());
    }
    let deleted = database.write("request", move |connection| {
        Box::pin(async move {
            sqlx::query("DELETE FROM rpc_frame WHERE id IN (SELECT value FROM json_each(?))")
                .bind(json(read))
                .execute(connection)
                .await
                .map(drop)
        })
    });
    deleted.await?;
    // There may be more frames than one query reads.
    database.wake.requests.notify_one();
    Ok(())
}

/// Deletes the server and request rows of a process that has ended.
async fn forget_process(database: &Arc<Database>, process: String) -> Result<()> {
    let forgotten = database.write("request", move |connection| {
        Box::pin(async move {
            let mut script = Script::default();
            for table in ["rpc_server", "rpc_request"] {
                script.statement(&format!("DELETE FROM {table} WHERE process = ?"));
                script.bind(process.as_str());
            }
            script.run(connection).await.map(drop)
        })
    });
    forgotten.await
}

/// The error for a request whose subject no member serves, in this or another process.
fn nobody(request: &Message) -> Error {
    Error::new(ErrorKind::NoResponder, "no member serves this subject")
        .during("request")
        .with("subject", &request.subject)
}
