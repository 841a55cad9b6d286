//! Tests failover with Sentinel: the master is killed, and all operations continue on the replica.

use std::time::Duration;

use event_client::subject::Group;
use event_client::transport::Start;
use event_client::{ErrorKind, Result};
use test_servers::{Redis, Sentinel};
use tokio::time::{sleep, timeout};

use super::{group, message, open};

/// Starts a master, its replica and the sentinel that watches both.
async fn three() -> (Redis, Redis, Sentinel) {
    let master = Redis::options().start().await.expect("a master");
    let replica = Redis::options().replica_of(&master).start().await.expect("a replica");
    let sentinel = Sentinel::over(&master).await.expect("a sentinel");
    // The sentinel learns of replicas from the master, to which they must have connected first.
    let known = async {
        while sentinel.replicas().await.expect("an answer") == 0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(90), known).await.expect("the sentinel knows the replica");
    (master, replica, sentinel)
}

/// An entry that `WAIT` confirmed on the replica survives the master; reading and publishing continue
/// automatically.
#[tokio::test]
async fn the_replica_becomes_the_master() -> Result<()> {
    let (master, replica, sentinel) = three().await;
    let url = sentinel.url();
    let safe = open(&format!("{url}&wait_replicas=1")).await?;
    let bus = open(&url).await?;
    let mut spec = group("g", "orders.>");
    spec.start = Start::Earliest;
    spec.lease = Duration::from_secs(5);
    let subscription = bus.subscribe(spec).await?;
    for number in 0..20 {
        safe.publish(message("orders.a", &number.to_string())).await?;
    }
    master.kill().await.expect("killed");
    // Published again until it is confirmed, as an outbox would.
    let published = async {
        loop {
            match bus.publish(message("orders.a", "after")).await {
                Ok(_) => return,
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}")
                }
            }
        }
    };
    timeout(Duration::from_secs(120), published).await.expect("the replica takes over");
    assert_eq!(sentinel.master().await.expect("a master"), replica.port());
    let mut missing: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    missing.push("after".into());
    // Acknowledgements that had not reached the replica are lost, and their messages are delivered again: at
    // least once, not exactly once.
    while !missing.is_empty() {
        let next = timeout(Duration::from_secs(60), subscription.next()).await;
        let delivery = next.unwrap_or_else(|_| panic!("{missing:?} never came")).expect("a delivery");
        missing.retain(|text| delivery.message().payload != *text);
        // Fails only where the master lost the lease.
        let _ = delivery.ack().await;
    }
    // No replica has the second copy now, and a publish that requires one fails.
    let told = async {
        loop {
            let alone = safe.publish(message("orders.a", "alone")).await;
            let error = alone.expect_err("no replica is left");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            if error.to_string().contains("too few replicas") {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), told).await.expect("the new master is found");
    assert!(
        bus.admin().groups().await?.iter().any(|status| status.group == Group::new("g").expect("a group"))
    );
    Ok(())
}

#[tokio::test]
async fn sentinels_that_do_not_know_the_master_are_told_apart() {
    let (_master, _replica, sentinel) = three().await;
    let other = sentinel.url().replace("sentinel=main", "sentinel=other");
    super::refused(&other, ErrorKind::Unavailable, "no master of this name").await;
}
