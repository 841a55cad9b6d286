//! Tests what a group's lag costs the server, and that an idle group leaves the server alone.

use std::time::Duration;

use event_client::transport::{GroupStatus, Transport};
use redis::aio::MultiplexedConnection;
use tokio::time::sleep;

use super::{group, message, open, plain};

/// The number of calls of a command on the server, those from scripts included.
async fn calls(client: &mut MultiplexedConnection, command: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(client).await.expect("statistics");
    let line = info.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let calls = line.and_then(|line| line.split(['=', ',']).nth(1));
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

async fn status(bus: &dyn Transport, name: &str) -> GroupStatus {
    let groups = bus.admin().groups().await.expect("groups");
    groups.into_iter().find(|status| status.group.as_str() == name).expect("the group")
}

/// Two groups are behind by the same 7,000 messages: the one that wants all has an exact lag, the one that wants half of
/// them an estimate beyond 5,000.
#[tokio::test]
async fn a_large_lag_is_known_without_a_read_of_the_whole_backlog() {
    let server = test_servers::Redis::options().start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let mut client = plain(&server.url()).await;
    for (name, pattern) in [("topic", "orders.>"), ("half", "orders.a"), ("all", ">")] {
        drop(bus.subscribe(group(name, pattern)).await.expect("subscribed"));
    }
    let subject = |number: usize| if number.is_multiple_of(2) { "orders.a" } else { "orders.b" };
    let confirms: Vec<_> =
        (0..7_000).map(|number| bus.publish(message(subject(number), &number.to_string()))).collect();
    for confirm in confirms {
        confirm.await.expect("published");
    }
    let before = calls(&mut client, "xrange").await;
    for (name, waiting) in [("all", 7_000), ("topic", 7_000), ("half", 3_500)] {
        let status = status(&*bus, name).await;
        assert_eq!(status.waiting + status.in_flight, waiting, "{name}: {status:?}");
        assert!(status.oldest_unsettled.is_some(), "{status:?}");
    }
    // Each of the three calls reads 5,000 entries in pages of 250 once for both groups, and the first unread entry of
    // each group.
    let reads = calls(&mut client, "xrange").await - before;
    assert!(reads <= 3 * (20 + 3), "{reads} reads");
}

/// A member of a group over many topics asks the server rarely while nothing happens.
#[tokio::test]
async fn an_idle_group_over_many_topics_sends_few_commands() {
    let server = test_servers::Redis::options().start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let mut client = plain(&server.url()).await;
    for topic in 0..100 {
        bus.publish(message(&format!("topic{topic}.a"), "x")).await.expect("published");
    }
    let subscription = bus.subscribe(group("idle", ">")).await.expect("subscribed");
    let sum = async |client: &mut MultiplexedConnection| {
        let mut sum = 0;
        for command in ["xpending", "xinfo|consumers", "zrangebyscore", "evalsha", "xlen"] {
            sum += calls(client, command).await;
        }
        sum
    };
    sleep(Duration::from_secs(1)).await;
    let before = sum(&mut client).await;
    sleep(Duration::from_secs(6)).await;
    let sent = sum(&mut client).await - before;
    assert!(sent < 60, "{sent} commands in 6 s for 100 topics");
    drop(subscription);
}
