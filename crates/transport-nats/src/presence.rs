//! The presence of members: each connection has a record and answers for its members, so a dead one is detected at
//! once.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use tokio::sync::OnceCell;

use super::api::Failure;
use super::client::Client;
use super::kv;
use super::streams::{self, Kind};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;
use event_transport::sync::lock;

/// The status of one member, as its connection reports it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MemberStatus {
    pub(super) group: SmolStr,
    /// Number of deliveries held by consumers.
    pub(super) out: u64,
}

/// A member, as its connection uses it.
pub(super) trait Participant: Send + Sync {
    /// Returns its status; `None` when it no longer takes part.
    fn status(&self) -> Option<MemberStatus>;

    /// Stops it, and releases the messages that it holds.
    fn close(&self) -> BoxFuture<'_, ()>;
}

#[derive(Serialize, Deserialize)]
struct Present {
    pid: u32,
}

/// The members of this connection, and the answers to requests for their status.
pub(super) struct Presence {
    client: Arc<Client>,
    members: Mutex<Vec<Weak<dyn Participant>>>,
    /// Set once this connection answers status requests about its members.
    announced: OnceCell<()>,
}

impl Presence {
    pub(super) fn new(client: &Arc<Client>) -> Arc<Self> {
        Arc::new(Self { client: client.clone(), members: Mutex::default(), announced: OnceCell::new() })
    }

    /// Registers a member.
    pub(super) fn add(&self, member: &Arc<dyn Participant>) {
        lock(&self.members).push(Arc::downgrade(member));
    }

    /// Returns the members that still exist.
    fn members(&self) -> Vec<Arc<dyn Participant>> {
        let mut members = lock(&self.members);
        members.retain(|member| member.strong_count() > 0);
        members.iter().filter_map(Weak::upgrade).collect()
    }

    /// Stops all members, and removes the record of this connection.
    pub(super) async fn close(&self) {
        let members = self.members();
        futures_util::future::join_all(members.iter().map(|member| member.close())).await;
        if self.announced.initialized() {
            let _ = kv::purge(&self.client, &self.client.names.state(), &self.record()).await;
        }
    }

    /// Writes the record of this connection, and answers requests for the status of its members from now on.
    pub(super) async fn open(self: &Arc<Self>) -> Result<()> {
        self.announced
            .get_or_try_init(|| async {
                let client = &self.client;
                streams::ensure(client, Kind::State).await?;
                let mut questions = client.subscribe(client.names.presence(&client.id)).await?;
                let (presence, closed) = (Arc::downgrade(self), client.closed.clone());
                client.vital("nats presence", async move {
                    loop {
                        let question = tokio::select! {
                            question = questions.next() => question,
                            () = closed.cancelled() => None,
                        };
                        let (Some(question), Some(presence)) = (question, presence.upgrade()) else { return };
                        if let Some(reply) = question.reply {
                            let answer = serde_json::to_vec(&presence.own()).expect("plain data");
                            presence.client.outbound.send_bare(reply, None, answer.into());
                        }
                    }
                });
                self.announce().await
            })
            .await
            .map(drop)
    }

    /// Writes the record of this connection; called again after the state stream was lost.
    pub(super) async fn announce(&self) -> Result<()> {
        kv::write(&self.client, &self.record(), &Present { pid: std::process::id() }, 0).await.map(drop)
    }

    fn record(&self) -> String {
        self.client.names.record("conn", &self.client.id)
    }

    fn own(&self) -> Vec<MemberStatus> {
        self.members().iter().filter_map(|member| member.status()).collect()
    }

    /// Returns the status of every present member, of all groups.
    pub(super) async fn all(&self) -> Result<Vec<MemberStatus>> {
        let client = &self.client;
        let prefix = client.names.record("conn", "");
        let records = kv::subjects(client, &client.names.state(), &client.names.record("conn", ">")).await?;
        let asks = records.iter().filter_map(|(subject, _)| {
            let id = subject.strip_prefix(&prefix)?;
            Some(async move {
                if id == client.id {
                    return Ok(self.own());
                }
                let patience = Duration::from_secs(2);
                match client.ask(client.names.presence(id), bytes::Bytes::new(), patience).await {
                    Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
                    Err(Failure::NoResponder) => {
                        // It ended without removing its record.
                        let _ = kv::purge(client, &client.names.state(), subject).await;
                        Ok(Vec::new())
                    }
                    // It may be suspended or slow: its messages are not known.
                    Err(Failure::Other(error)) if error.kind() == ErrorKind::Timeout => Ok(Vec::new()),
                    Err(failure) => Err(Error::from(failure)),
                }
            })
        });
        let mut all = Vec::new();
        for members in futures_util::future::join_all(asks).await {
            all.extend(members?);
        }
        Ok(all)
    }

    /// Returns the number of present members of a group.
    pub(super) async fn count(&self, group: &Group) -> Result<u64> {
        let all = self.all().await?;
        Ok(all.iter().filter(|member| member.group == group.as_str()).count() as u64)
    }
}
