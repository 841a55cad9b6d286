//! Request and reply between handles of one process, in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::SqliteTransport;
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::Subject;
use crate::transport::{Frame, IncomingRequest, Replies, Requests, Respond, Responder, Serve};

/// Frames that a caller has not read yet; a server that awaits its confirmations is held back by them.
const FRAMES: usize = 64;
/// Frames that wait beyond that; more are refused.
const MAX_WAITING: usize = 1024;

/// Who serves what in this process.
#[derive(Debug, Default)]
pub(super) struct Calls {
    servers: Mutex<HashMap<Subject, Servers>>,
    /// Signalled when another process calls.
    pub(super) called: Notify,
}

#[derive(Debug, Default)]
struct Servers {
    members: Vec<mpsc::Sender<IncomingRequest>>,
    next: usize,
}

impl Calls {
    /// The members that serve `subject`, the one whose turn it is first.
    fn turn(&self, subject: &Subject) -> Vec<mpsc::Sender<IncomingRequest>> {
        let mut servers = self.servers.lock().expect("not poisoned");
        let Some(found) = servers.get_mut(subject) else { return Vec::new() };
        found.members.retain(|member| !member.is_closed());
        if found.members.is_empty() {
            servers.remove(subject);
            return Vec::new();
        }
        found.next = (found.next + 1) % found.members.len();
        let mut turn = found.members.clone();
        turn.rotate_left(found.next);
        turn
    }
}

impl Requests for SqliteTransport {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            let open = self.live("request")?;
            let members = open.calls.turn(&request.subject);
            if members.is_empty() {
                return Err(Error::new(ErrorKind::NoResponder, "nobody serves this subject now")
                    .during("request")
                    .with("subject", &request.subject));
            }
            hand_over(members, request, within).await
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move {
            let open = self.live("serve")?;
            let (sender, receiver) = mpsc::channel(spec.credit.max(1));
            let mut servers = open.calls.servers.lock().expect("not poisoned");
            for subject in spec.subjects {
                servers.entry(subject).or_default().members.push(sender.clone());
            }
            Ok(receiver)
        })
    }
}

/// Gives a request to the first member with room, or to the first that gets some.
async fn hand_over(
    members: Vec<mpsc::Sender<IncomingRequest>>,
    request: Message,
    within: Duration,
) -> Result<Replies> {
    let (frames, replies) = mpsc::channel(FRAMES);
    let gone = CancellationToken::new();
    let subject = request.subject.clone();
    let late = tokio::time::sleep(within);
    let message = Arc::new(request);
    let started = tokio::time::Instant::now();
    let incoming = |left: Duration| IncomingRequest {
        message: message.clone(),
        within: left,
        responder: Responder::new(Box::new(Answering::new(frames.clone())), gone.clone()),
    };
    let with_room = members.iter().find_map(|member| member.try_reserve().ok());
    match with_room {
        Some(room) => room.send(incoming(within)),
        None => {
            let waiting = async {
                for member in &members {
                    if let Ok(room) = member.reserve().await {
                        room.send(incoming(within.saturating_sub(started.elapsed())));
                        return true;
                    }
                }
                false
            };
            let sent = tokio::time::timeout(within, waiting).await.map_err(|_| {
                Error::new(ErrorKind::Timeout, "every server was busy until the deadline")
                    .during("request")
                    .with("subject", &subject)
            })?;
            if !sent {
                return Err(Error::new(ErrorKind::NoResponder, "nobody serves this subject any more")
                    .during("request")
                    .with("subject", &subject));
            }
        }
    }
    // The server learns of the deadline even when the caller still holds the replies.
    let deadline = gone.clone();
    let watched = frames.clone();
    drop(frames);
    tokio::spawn(async move {
        tokio::select! {
            () = late => deadline.cancel(),
            () = watched.closed() => deadline.cancel(),
            () = deadline.cancelled() => {}
        }
    });
    Ok(Replies::new(replies, Some(gone)))
}

/// The server's end of an answer within this process.
struct Answering {
    frames: mpsc::Sender<Result<Frame>>,
    waiting: Option<mpsc::Sender<(Frame, Answer<()>)>>,
}

impl Answering {
    fn new(frames: mpsc::Sender<Result<Frame>>) -> Self {
        Self { frames, waiting: None }
    }
}

fn caller_gone() -> Error {
    Error::new(ErrorKind::Closed, "the caller does not wait any more").during("reply")
}

impl Respond for Answering {
    fn send(&mut self, frame: Frame) -> Confirm<()> {
        let frame = match &self.waiting {
            Some(_) => frame,
            None => match self.frames.try_send(Ok(frame)) {
                Ok(()) => return Confirm::ready(Ok(())),
                Err(mpsc::error::TrySendError::Closed(_)) => return Confirm::ready(Err(caller_gone())),
                Err(mpsc::error::TrySendError::Full(Ok(frame))) => frame,
                Err(mpsc::error::TrySendError::Full(Err(error))) => return Confirm::ready(Err(error)),
            },
        };
        let waiting = self.waiting.get_or_insert_with(|| {
            let (sender, mut receiver) = mpsc::channel::<(Frame, Answer<()>)>(MAX_WAITING);
            let frames = self.frames.clone();
            tokio::spawn(async move {
                while let Some((frame, answer)) = receiver.recv().await {
                    let _ = answer.send(frames.send(Ok(frame)).await.map_err(|_| caller_gone()));
                }
            });
            sender
        });
        let (answer, confirm) = Confirm::channel();
        match waiting.try_send((frame, answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(Error::new(
                ErrorKind::Full,
                "the caller reads slower than the frames come; await their confirmations",
            )
            .during("reply"))),
        }
    }

    fn abandoned(&mut self) {
        let error = Error::new(ErrorKind::Remote, "the server dropped the request without an answer")
            .during("request");
        let frames = self.frames.clone();
        if let Err(mpsc::error::TrySendError::Full(error)) = frames.try_send(Err(error)) {
            tokio::spawn(async move { frames.send(error).await });
        }
    }
}
