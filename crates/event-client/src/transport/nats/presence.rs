//! The presence of members: each connection has a record and answers for its members, so a dead one is detected at
//! once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::api::Failure;
use super::connection::Connection;
use super::streams::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Group;

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

impl Connection {
    /// Writes the record of this connection, and answers requests for the status of its members from now on.
    pub(super) async fn announce_presence(self: &Arc<Self>) -> Result<()> {
        self.present
            .get_or_try_init(|| async {
                self.ensure_stream(Kind::State).await?;
                let questions =
                    self.client.subscribe(self.names.presence(&self.id)).await.map_err(|error| {
                        Error::new(ErrorKind::Unavailable, "the subscription did not reach the server")
                            .because(error)
                    })?;
                let connection = Arc::downgrade(self);
                let closed = self.closed.clone();
                self.vital("nats presence", async move {
                    let mut questions = questions;
                    loop {
                        let question = tokio::select! {
                            question = questions.next() => question,
                            () = closed.cancelled() => None,
                        };
                        let (Some(question), Some(connection)) = (question, connection.upgrade()) else {
                            return;
                        };
                        if let Some(reply) = question.reply {
                            let answer = serde_json::to_vec(&connection.own_members()).expect("plain data");
                            connection.outbound.send_bare(reply, None, answer.into());
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
        let record = self.names.record("conn", &self.id);
        self.write(&record, &Present { pid: std::process::id() }, 0).await.map(drop)
    }

    pub(super) async fn withdraw_presence(&self) {
        if self.present.initialized() {
            let _ = self.purge(&self.names.state(), &self.names.record("conn", &self.id)).await;
        }
    }

    fn own_members(&self) -> Vec<MemberStatus> {
        self.live_members().iter().filter_map(|member| member.status()).collect()
    }

    /// Returns the status of every present member, of all groups.
    pub(super) async fn all_members(&self) -> Result<Vec<MemberStatus>> {
        let prefix = self.names.record("conn", "");
        let records = self.subjects(&self.names.state(), &self.names.record("conn", ">")).await?;
        let asks = records.iter().filter_map(|(subject, _)| {
            let id = subject.strip_prefix(&prefix)?;
            Some(async move {
                if id == self.id {
                    return Ok(self.own_members());
                }
                match self.ask(self.names.presence(id), bytes::Bytes::new(), Duration::from_secs(2)).await {
                    Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
                    Err(Failure::NoResponder) => {
                        // It ended without removing its record.
                        let _ = self.purge(&self.names.state(), subject).await;
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

    pub(super) async fn count_members(&self, group: &Group) -> Result<u64> {
        let all_members = self.all_members().await?;
        Ok(all_members.iter().filter(|member| member.group == group.as_str()).count() as u64)
    }
}
