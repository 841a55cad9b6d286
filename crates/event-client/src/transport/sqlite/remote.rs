//! Calls between processes, through three tables: who serves, what is asked, what is answered.
//!
//! The caller writes its request for the process whose turn it is and taps it on the shoulder. That process hands
//! it to its own members as any local call, and writes the frames back. Rows go when they are read, or run out.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use sqlx::Row;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::codec::{self, Reader};
use super::connection::{Database, Script, json};
use super::error::{Sql, damaged};
use super::requests::nobody;
use super::subscribe::POLL;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Headers, Message};
use crate::subject::Subject;
use crate::transport::{Frame, MemoryTransport, Replies, Transport};

/// Frames of one answer between the server and the caller's hands.
const FRAMES: usize = 64;
/// Requests that one look takes.
const TAKEN: i64 = 256;
/// How long the rows of a call may outlive its deadline.
const GRACE: i64 = 10_000_000_000;
/// How often a server looks whether a caller that reads slowly has read on.
const LOOK: Duration = Duration::from_millis(2);

/// The calls of this process to others, and of others to this one.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Waiting callers by request.
    out: Mutex<HashMap<SmolStr, Call>>,
    /// What members here work on for callers elsewhere.
    running: Mutex<HashMap<SmolStr, CancellationToken>>,
    /// How many members this process has announced: without any there is nothing to look for.
    announced: std::sync::atomic::AtomicUsize,
    /// Signalled when another process calls, or when there is room for more frames.
    pub(super) called: Notify,
}

#[derive(Debug)]
struct Call {
    process: String,
    frames: mpsc::Sender<Result<Frame>>,
}

/// Tells the other processes of a new member.
pub(super) async fn announce(
    database: &Arc<Database>,
    service: &str,
    subjects: &[Subject],
) -> Result<SmolStr> {
    let id = crate::transport::consumer_name();
    let (me, service) = (database.peers.me().to_owned(), service.to_owned());
    let (row, subjects) = (id.to_string(), subjects.to_vec());
    database.calls.announced.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
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

/// The member is gone.
pub(super) async fn withdraw(database: &Arc<Database>, id: SmolStr) {
    database.calls.announced.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
    let gone = database.write("serve", move |connection| {
        Box::pin(async move {
            sqlx::query("DELETE FROM rpc_server WHERE id = ?")
                .bind(id.as_str())
                .execute(connection)
                .await
                .map(drop)
        })
    });
    // A bus that closes takes all its rows away by itself.
    let _ = gone.await;
}

/// Sends `request` to the process whose turn it is.
pub(super) async fn call(database: &Arc<Database>, request: Message, within: Duration) -> Result<Replies> {
    let id = SmolStr::new(uuid::Uuid::now_v7().to_string());
    let expires = codec::now().saturating_add(i64::try_from(within.as_nanos()).unwrap_or(i64::MAX));
    let (frames, replies) = mpsc::channel(FRAMES + 1);
    let gone = CancellationToken::new();
    let process = loop {
        let mut record = Vec::new();
        codec::encode(&mut record, &request, None);
        let (row, subject, me) = (id.clone(), request.subject.clone(), database.peers.me().to_owned());
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
        if process != database.peers.me() && database.peers.lives(&process) {
            break process;
        }
        // It died, or is ours and about to go: its rows go, and the next one has its turn.
        forget_process(database, process).await?;
    };
    let waiting = Call { process, frames: frames.clone() };
    database.calls.out.lock().expect("not poisoned").insert(id.clone(), waiting);
    database.peers.call();
    // The answer may have come before anybody waited for it.
    database.calls.called.notify_one();
    tokio::spawn(watch(database.clone(), id, frames, gone.clone(), within, request.subject));
    Ok(Replies::new(replies, Some(gone)))
}

/// Ends a call: when it is answered, when nobody waits, or when its time is up.
async fn watch(
    database: Arc<Database>,
    id: SmolStr,
    frames: mpsc::Sender<Result<Frame>>,
    gone: CancellationToken,
    within: Duration,
    subject: Subject,
) {
    let answered = async {
        while database.calls.out.lock().expect("not poisoned").contains_key(&id) {
            sleep(POLL).await;
        }
    };
    let error = tokio::select! {
        () = gone.cancelled() => None,
        () = answered => None,
        () = sleep(within) => Some(
            Error::new(ErrorKind::Timeout, "no answer within the deadline").with("subject", subject),
        ),
        () = database.closing.cancelled() => Some(super::error::closed("request")),
    };
    database.calls.out.lock().expect("not poisoned").remove(&id);
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
    // What stays behind runs out by itself.
    let _ = ended.await;
    database.peers.call();
}

/// Carries requests in and frames out until the database closes.
pub(super) async fn run(database: Arc<Database>, here: Arc<MemoryTransport>) {
    loop {
        tokio::select! {
            _ = timeout(POLL, database.calls.called.notified()) => {}
            () = database.closing.cancelled() => return,
        }
        let round = async {
            receive(&database).await?;
            if database.calls.announced.load(std::sync::atomic::Ordering::Acquire) > 0 {
                take(&database, &here).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = round.await {
            tracing::warn!(%error, "cannot exchange calls with other processes; trying again");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Hands frames to the callers that wait for them and have room.
async fn receive(database: &Arc<Database>) -> Result<()> {
    let open: Vec<(SmolStr, String, usize)> = {
        let mut out = database.calls.out.lock().expect("not poisoned");
        out.retain(|_, call| !call.frames.is_closed());
        out.iter().map(|(id, call)| (id.clone(), call.process.clone(), call.frames.capacity())).collect()
    };
    if open.is_empty() {
        return Ok(());
    }
    for (id, process, _) in &open {
        if !database.peers.lives(process)
            && let Some(call) = database.calls.out.lock().expect("not poisoned").remove(id)
        {
            let error = Error::new(ErrorKind::Unavailable, "the server's process ended before it answered");
            let _ = call.frames.try_send(Err(error.during("request")));
        }
    }
    // One place is left for an error.
    let room: HashMap<SmolStr, usize> =
        open.into_iter().map(|(id, _, room)| (id, room.saturating_sub(1))).collect();
    let wanted: Vec<&str> = room.iter().filter(|(_, room)| **room > 0).map(|(id, _)| id.as_str()).collect();
    let wanted = serde_json::to_string(&wanted).unwrap_or_default();
    let rows = sqlx::query(
        "SELECT id, request, data FROM rpc_frame WHERE caller = ? AND request IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 1024",
    )
    .bind(database.peers.me())
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
        let mut out = database.calls.out.lock().expect("not poisoned");
        let Some(call) = out.get(&request) else { continue };
        let _ = call.frames.try_send(frame);
        if last {
            out.remove(&request);
        }
    }
    for (request, _) in left.into_iter().filter(|(_, room)| *room == 0) {
        let out = database.calls.out.lock().expect("not poisoned");
        let Some(frames) = out.get(&request).map(|call| call.frames.clone()) else { continue };
        let database = database.clone();
        tokio::spawn(async move {
            // Two, for the one that is kept for an error. Nobody reads: then nobody is told.
            if frames.reserve_many(2).await.is_ok() {
                database.calls.called.notify_one();
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
    // There may be more than one look takes.
    database.calls.called.notify_one();
    Ok(())
}

/// Takes requests of other processes, and lets go of those whose caller has.
async fn take(database: &Arc<Database>, here: &Arc<MemoryTransport>) -> Result<()> {
    let explain = |error: sqlx::Error| database.explain(&error, "serve");
    let me = database.peers.me().to_owned();
    let rows = sqlx::query("SELECT id, taken FROM rpc_request WHERE process = ?")
        .bind(me.as_str())
        .fetch_all(&database.readers)
        .await
        .map_err(explain)?;
    let rows = rows.iter().map(|row| Ok((SmolStr::new(row.try_get::<&str, _>(0)?), row.try_get(1)?)));
    let rows = rows.collect::<Sql<Vec<(SmolStr, bool)>>>().map_err(explain)?;
    let asked: HashSet<&SmolStr> = rows.iter().map(|(id, _)| id).collect();
    database.calls.running.lock().expect("not poisoned").retain(|id, gone| {
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
        database.calls.running.lock().expect("not poisoned").insert(id.clone(), gone.clone());
        let (database, here) = (database.clone(), here.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = answer(&database, &here, &id, &caller, expires, message) => {}
                () = gone.cancelled() => {}
                () = database.closing.cancelled() => {}
            }
            database.calls.running.lock().expect("not poisoned").remove(&id);
        });
    }
    // There may be more than one look takes.
    database.calls.called.notify_one();
    Ok(())
}

/// Has a request answered by a member here and sends its frames back.
async fn answer(
    database: &Arc<Database>,
    here: &MemoryTransport,
    id: &SmolStr,
    caller: &str,
    expires: i64,
    message: Message,
) {
    let Ok(within) = u64::try_from(expires - codec::now()).map(Duration::from_nanos) else { return };
    let mut replies = match here.requests().call(message, within).await {
        Ok(replies) => replies,
        Err(error) => return drop(send(database, id, caller, expires, vec![Err(error)]).await),
    };
    let mut sent = 0;
    while let Some(frame) = replies.next().await {
        let mut last = frame.as_ref().map_or(true, |frame| frame.last);
        let mut frames = vec![frame];
        // What is there already travels together.
        while !last
            && frames.len() < FRAMES / 4
            && let Some(Some(frame)) = futures_util::FutureExt::now_or_never(replies.next())
        {
            last = frame.as_ref().map_or(true, |frame| frame.last);
            frames.push(frame);
        }
        sent += frames.len();
        match send(database, id, caller, expires, frames).await {
            // A row is deleted when its frame is in the caller's hands: what is left says how far it is.
            Ok(mut unread) => {
                while unread >= FRAMES && sent >= FRAMES {
                    sleep(LOOK).await;
                    unread = unread_frames(database, id).await.unwrap_or(0);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "an answer could not be sent");
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

/// Writes frames for the caller; answers how many it has not read.
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
            // Nobody waits any more when the request is gone.
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
    database.peers.call();
    Ok(unread as usize)
}

/// Deletes all that a dead process promised.
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

/// Adds the statements that delete what has run out.
pub(super) fn purge(script: &mut Script, now: i64) {
    for table in ["rpc_request", "rpc_frame"] {
        script.statement(&format!("DELETE FROM {table} WHERE expires < ?"));
        script.bind(now.saturating_sub(GRACE));
    }
}

/// The kinds of error that cross to another process as they are.
const KINDS: [ErrorKind; 6] = [
    ErrorKind::Unavailable,
    ErrorKind::Timeout,
    ErrorKind::NoResponder,
    ErrorKind::TooLarge,
    ErrorKind::Closed,
    ErrorKind::Remote,
];

fn write_frame(frame: &Result<Frame>) -> Vec<u8> {
    let mut out = Vec::new();
    match frame {
        Ok(frame) => {
            out.push(u8::from(frame.last));
            codec::put_text(&mut out, &frame.content_type);
            codec::put_number(&mut out, frame.headers.len() as u64);
            for (name, value) in frame.headers.iter() {
                codec::put_text(&mut out, name);
                codec::put_text(&mut out, value);
            }
            out.extend_from_slice(&frame.payload);
        }
        Err(error) => {
            let kind = KINDS.iter().position(|kind| *kind == error.kind()).unwrap_or(0);
            out.push(2 + kind as u8);
            codec::put_text(&mut out, &error.to_string());
        }
    }
    out
}

fn read_frame(row: &sqlx::sqlite::SqliteRow) -> Sql<(i64, SmolStr, Result<Frame>)> {
    let request = SmolStr::new(row.try_get::<&str, _>(1)?);
    let frame = parse_frame(Bytes::copy_from_slice(row.try_get(2)?));
    Ok((row.try_get(0)?, request, frame.ok_or_else(|| damaged("a frame cannot be read"))?))
}

fn parse_frame(bytes: Bytes) -> Option<Result<Frame>> {
    let flag = *bytes.first()?;
    let mut reader = Reader::new(bytes.slice(1..));
    if flag >= 2 {
        let kind = *KINDS.get(flag as usize - 2)?;
        return Some(Err(Error::new(kind, reader.text()?.to_string()).during("request")));
    }
    let content_type = reader.text()?;
    let mut headers = Headers::new();
    for _ in 0..reader.number()? {
        headers.restore(reader.text()?, reader.text()?);
    }
    Some(Ok(Frame { headers, content_type, payload: reader.rest(), last: flag == 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let mut headers = Headers::new();
        headers.set("status", "ok").unwrap();
        let payload = Bytes::from_static(b"\0\x01hello");
        for last in [true, false] {
            let frame = Frame {
                headers: headers.clone(),
                content_type: "text/x".into(),
                payload: payload.clone(),
                last,
            };
            let read = parse_frame(write_frame(&Ok(frame.clone())).into()).unwrap();
            assert_eq!(read.unwrap(), frame);
        }
        for kind in KINDS {
            let read = parse_frame(write_frame(&Err(Error::new(kind, "no"))).into()).unwrap().unwrap_err();
            assert_eq!(read.kind(), kind);
        }
        assert!(parse_frame(Bytes::new()).is_none() && parse_frame(Bytes::from_static(&[99])).is_none());
    }
}
