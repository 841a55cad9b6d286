//! Order per key over many processes: one member of a keyed group works, the others stand by.
//!
//! The leader is on record and renews the record each third of the lease. Whoever stands by takes over when it took
//! leave, when its connection is known to be dead, or when the record did not change for a lease by its own clock; no
//! clocks are compared. What the last leader had comes first, see `fetch.rs`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

use super::api::Failure;
use super::connection::Connection;
use super::member::{Member, Order};
use super::topology::token;
use crate::error::Result;

/// Who leads.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Leader {
    connection: SmolStr,
    member: SmolStr,
    /// It took leave and left nothing unsettled.
    #[serde(default)]
    left: bool,
    /// Makes each renewal another record.
    #[serde(default)]
    beat: u64,
}

/// Leads the group whenever it may, until the member has ended.
pub(super) async fn lead(member: Arc<Member>, gone: CancellationToken) {
    let connection = member.connection.clone();
    let subject = connection.names.record("leader", &token(member.group.as_str()));
    let own = Leader {
        connection: connection.id.clone(),
        member: connection.next_id().to_string().into(),
        left: false,
        beat: 0,
    };
    let mut ended = member.ended.subscribe();
    loop {
        let (sequence, graceful) = tokio::select! {
            taken = stand_by(&connection, &member, &subject, &own) => taken,
            _ = ended.wait_for(|ended| *ended) => return,
        };
        let _ = member.orders.send(Order::Lead { graceful });
        let mut sequence = sequence;
        let mut beat = 0;
        let lost = loop {
            let pause = tokio::time::sleep(member.lease() / 3);
            tokio::select! {
                () = pause => {}
                _ = ended.wait_for(|ended| *ended) => break false,
            }
            if gone.is_cancelled() {
                // Nobody renews what is still out: neither is this.
                continue;
            }
            beat += 1;
            match connection.write(&subject, &Leader { beat, ..own.clone() }, sequence).await {
                Ok(Some(next)) => sequence = next,
                Ok(None) => break true,
                // Whoever cannot renew is overtaken; the leases of its messages end as well.
                Err(error) => tracing::debug!(%error, group = %member.group, "leadership was not renewed"),
            }
        };
        if lost {
            let _ = member.orders.send(Order::Follow);
            continue;
        }
        member.until_idle().await;
        let closing = *member.closing.borrow();
        if member.hand().len() == 0 || closing {
            let _ = connection.write(&subject, &Leader { left: true, ..own.clone() }, sequence).await;
        }
        return;
    }
}

/// Waits until the group may be led, and takes it; whether the last leader took leave.
async fn stand_by(connection: &Arc<Connection>, member: &Member, subject: &str, own: &Leader) -> (u64, bool) {
    let mut told = connection.client.subscribe(subject.to_owned()).await.ok();
    let mut seen: Option<(u64, tokio::time::Instant)> = None;
    loop {
        match attempt(connection, member, subject, own, &mut seen).await {
            Ok(Some(taken)) => return taken,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, group = %member.group, "the group's leader is not known"),
        }
        let pause = tokio::time::sleep((member.lease() / 4).min(Duration::from_secs(2)));
        match &mut told {
            Some(told) => tokio::select! { _ = told.next() => {}, () = pause => {} },
            None => pause.await,
        }
    }
}

async fn attempt(
    connection: &Arc<Connection>,
    member: &Member,
    subject: &str,
    own: &Leader,
    seen: &mut Option<(u64, tokio::time::Instant)>,
) -> Result<Option<(u64, bool)>> {
    let last = connection.read::<Leader>(subject).await?;
    let (sequence, free, graceful) = match &last {
        None => (0, true, false),
        Some(stored) if stored.value.left => (stored.sequence, true, true),
        Some(stored) => {
            let now = tokio::time::Instant::now();
            let since = match seen {
                Some((sequence, since)) if *sequence == stored.sequence => *since,
                _ => now,
            };
            *seen = Some((stored.sequence, since));
            let silent = now.duration_since(since) >= member.lease();
            (stored.sequence, silent || is_dead(connection, &stored.value).await, false)
        }
    };
    if !free {
        return Ok(None);
    }
    Ok(connection.write(subject, own, sequence).await?.map(|sequence| (sequence, graceful)))
}

/// Whether the leader's process is known to be gone.
async fn is_dead(connection: &Connection, leader: &Leader) -> bool {
    if leader.connection == connection.id {
        return false;
    }
    let presence = connection.names.presence(&leader.connection);
    matches!(
        connection.ask(presence, bytes::Bytes::new(), Duration::from_secs(2)).await,
        Err(Failure::NoResponder)
    )
}
