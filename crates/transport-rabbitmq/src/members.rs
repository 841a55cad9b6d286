//! The members of this connection, and queries and commands to the members of all connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::BasicProperties;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::client::Client;
use super::mailbox::{Mailbox, numbered};
use super::queries::{Ask, Holding, Queries, Question};
use super::settle::Command;
use event_transport::error::Result;
use event_transport::subject::Group;
use event_transport::sync::lock;

/// How long members may take to answer a query.
const ANSWERED: Duration = Duration::from_secs(1);

/// The members of this connection.
#[derive(Debug)]
pub(super) struct Members {
    client: Arc<Client>,
    mailbox: Arc<Mailbox>,
    queries: Arc<Queries>,
    present: Mutex<HashMap<u64, (String, mpsc::UnboundedSender<Command>)>>,
    /// Notified when a connection publishes with delay.
    pub(super) delays: Notify,
}

/// The entry of one member; the member is removed when it is dropped.
pub(super) struct Entry {
    members: Arc<Members>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.members.present).remove(&self.id);
    }
}

impl Members {
    /// Starts to answer the queries of other connections, which arrive in `asked`.
    pub(super) fn start(
        client: Arc<Client>,
        mailbox: Arc<Mailbox>,
        queries: Arc<Queries>,
        mut asked: mpsc::UnboundedReceiver<Question>,
    ) -> Arc<Self> {
        let members =
            Arc::new(Self { client, mailbox, queries, present: Mutex::default(), delays: Notify::new() });
        let this = members.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(question) = asked.recv() => drop(tokio::spawn(this.clone().answer(question))),
                    () = this.client.closing.cancelled() => return,
                }
            }
        });
        members
    }

    /// Adds a member of the group, which receives its commands through `commands`.
    pub(super) fn join(self: &Arc<Self>, group: &Group, commands: mpsc::UnboundedSender<Command>) -> Entry {
        let id = self.mailbox.number();
        lock(&self.present).insert(id, (group.to_string(), commands));
        Entry { members: self.clone(), id }
    }

    /// Waits until this connection has no members.
    pub(super) async fn ended(&self) {
        while !lock(&self.present).is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn answer(self: Arc<Self>, question: Question) {
        let present: Vec<_> = lock(&self.present).values().cloned().collect();
        let mut answers = Vec::new();
        for (group, member) in present {
            let (answer, told) = oneshot::channel();
            let command = match &question.ask {
                Ask::Status => Command::Status(answer),
                Ask::GiveUp(moved) if *moved == group => Command::GiveUp(answer),
                Ask::End(ended) if *ended == group => Command::End(answer),
                _ => continue,
            };
            if member.send(command).is_ok() {
                answers.push(told);
            }
        }
        if question.ask == Ask::Delays {
            self.delays.notify_one();
        }
        let holdings: Vec<Holding> = join_all(answers).await.into_iter().flatten().collect();
        let bytes = serde_json::to_vec(&holdings).expect("plain data");
        let _ = self.mailbox.tell(question.to.into(), numbered("answer", question.number), &bytes).await;
    }

    /// Sends a query to all connections and waits for all answers, at most [`ANSWERED`].
    pub(super) async fn ask(&self, ask: Ask) -> Result<Vec<Holding>> {
        let to = self.mailbox.inbox().await?.to_string();
        let number = self.mailbox.number();
        let answers = self.queries.open(number);
        let result = self.collect(Question { ask, to, number }, answers).await;
        self.queries.end(number);
        result
    }

    async fn collect(
        &self,
        question: Question,
        mut answers: mpsc::UnboundedReceiver<Vec<Holding>>,
    ) -> Result<Vec<Holding>> {
        let peers = self.client.declarer.consumers(self.client.names.roster()).await?;
        let properties = BasicProperties::default().with_type("ask".into());
        let bytes = serde_json::to_vec(&question).expect("plain data");
        self.mailbox.send(self.client.names.sys(), "".into(), properties, &bytes).await?;
        let end = Instant::now() + ANSWERED;
        let mut all = Vec::new();
        for _ in 0..peers {
            match timeout_at(end, answers.recv()).await {
                Ok(Some(holdings)) => all.extend(holdings),
                _ => {
                    tracing::debug!("a connected process does not answer; its messages are not counted");
                    break;
                }
            }
        }
        Ok(all)
    }
}
