//! One round of fetching for a member: first due redeliveries, then postponed messages, then fresh ones, up to its
//! free permits.

use std::sync::Arc;

use super::member::Member;
use super::{activation, fresh, redelivery, resume};
use event_transport::error::Result;
use event_transport::subscription::Feed;

/// Fetches and delivers messages. Returns whether there were any.
pub(super) async fn fetch(member: &Arc<Member>, feed: &Feed) -> Result<bool> {
    if member.lanes.is_some() && !activation::activate(member).await? {
        return Ok(false);
    }
    let mut fetched = member.hand_over_ready(feed);
    if member.feed.takes_look(member.database.wake.redeliveries()) {
        if let Some(lanes) = &member.lanes {
            lanes.lock().postponed.unblock();
        }
        match redelivery::fetch(member, feed).await {
            Ok(any) => fetched |= any,
            Err(error) => {
                member.feed.look_for_redeliveries();
                return Err(error);
            }
        }
    }
    if let Some(lanes) = &member.lanes {
        resume::load(member, lanes).await?;
        fetched |= resume::fetch(member, lanes, feed).await?;
    }
    if feed.free() > 0 {
        fetched |= fresh::fetch(member, feed).await?;
    }
    Ok(fetched)
}
