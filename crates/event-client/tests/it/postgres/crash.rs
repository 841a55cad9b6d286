//! Tests relays and stagers in separate processes, and relays that are killed.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use event_client::confirm::Confirm;

use super::*;

/// Starts this test binary again, running one of the `*_as_a_child` functions.
fn child(name: &str, database: &str, settings: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("postgres::crash::{name}"), "--exact", "--ignored", "--nocapture"]);
    command.env("OUTBOX_DATABASE", database).envs(settings.iter().copied());
    command.stdout(Stdio::piped()).spawn().unwrap()
}

async fn own_database() -> Option<PgPool> {
    Some(open(&std::env::var("OUTBOX_DATABASE").ok()?).await)
}

async fn bus_in(folder: &Path) -> Bus {
    Bus::connect(&format!("sqlite:{}", folder.join("bus.db").display())).await.unwrap()
}

/// Not a test: stages one event after another.
#[tokio::test]
#[ignore = "run by other tests as a child process"]
async fn stager_as_a_child() {
    let Some(pool) = own_database().await else { return };
    for n in 0..300 {
        let mut tx = pool.begin().await.unwrap();
        outbox::stage(&mut tx, OrderPlaced { order_id: n % 5, cents: n as i64 }).await.unwrap();
        // Some transactions stay open for a while, some follow at once: so the relay goes to sleep before and
        // after a commit.
        if n % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(n % 4)).await;
        }
        tx.commit().await.unwrap();
        if n % 3 == 0 {
            tokio::time::sleep(Duration::from_micros(700 * (n % 11))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_relay_is_woken_by_other_processes_and_misses_nothing() {
    let (url, pool) = database("crash_wake").await;
    let bus = memory("pg-wake").await;
    let subscription = listen(&bus).await;
    // Two relays sleep: one of them is the active one.
    let relays = [Working::start(sleeper(&pool, &bus)), Working::start(sleeper(&pool, &bus))];
    until(&pool, ARMED, 1).await;
    let mut stager = child("stager_as_a_child", &url, &[]);
    let mut seen = vec![Vec::new(); 5];
    for _ in 0..300 {
        let order = next_order(&subscription).await;
        seen[order.order_id as usize].push(order.cents);
    }
    assert!(seen.iter().all(|of_key| of_key.is_sorted() && of_key.len() == 60), "{seen:?}");
    assert!(stager.wait().unwrap().success());
    for relay in relays {
        relay.stop().await;
    }
}

fn say() {
    let mut out = std::io::stdout().lock();
    writeln!(out, ">stored").unwrap();
    out.flush().unwrap();
}

/// Not a test: a relay whose bus confirms a given number of events and does not answer for the later ones,
/// though it stores them.
#[tokio::test]
#[ignore = "run by other tests as a child process"]
async fn relay_as_a_child() {
    let Some(pool) = own_database().await else { return };
    let bus = bus_in(Path::new(&std::env::var_os("OUTBOX_FOLDER").unwrap())).await;
    let confirmed: usize = std::env::var("OUTBOX_CONFIRMED").unwrap().parse().unwrap();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let silent = faulty(&bus, move |sqlite, message| {
        let stored = sqlite.publish(message);
        if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < confirmed {
            return stored;
        }
        Confirm::boxed(async move {
            stored.await?;
            say();
            std::future::pending().await
        })
    });
    let dedup = std::env::var_os("OUTBOX_DEDUP").is_some();
    let relay = outbox::Relay::new(pool, silent).batch(40).lease(Duration::from_millis(300)).dedup(dedup);
    relay.run_until(std::future::pending()).await.unwrap();
}

/// Kills relays between publish and mark while events are staged; returns the staged ids, and the id and
/// order of each delivery.
async fn killed_relays(name: &'static str, dedup: bool) -> (Vec<MessageId>, Vec<(MessageId, OrderPlaced)>) {
    let (url, pool) = database(name).await;
    let folder = tempfile::tempdir().unwrap();
    let bus = bus_in(folder.path()).await;
    let subscription = listen(&bus).await;
    let stager = {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut ids = Vec::new();
            for n in 0..400 {
                let order = OrderPlaced { order_id: n % 8, cents: n as i64 };
                ids.extend(stage_all(&pool, [order]).await);
            }
            ids
        })
    };
    let path = folder.path().to_str().unwrap().to_owned();
    for confirmed in ["0", "25", "47", "90"] {
        let mut settings = vec![("OUTBOX_FOLDER", path.as_str()), ("OUTBOX_CONFIRMED", confirmed)];
        settings.extend(dedup.then_some(("OUTBOX_DEDUP", "1")));
        let mut relay = child("relay_as_a_child", &url, &settings);
        let said = BufReader::new(relay.stdout.take().unwrap());
        let said = tokio::task::spawn_blocking(move || {
            said.lines().map_while(Result::ok).any(|line| line.contains(">stored"))
        });
        assert!(said.await.unwrap(), "the relay published before it died");
        relay.kill().unwrap();
        relay.wait().unwrap();
    }
    let ids = stager.await.unwrap();
    let relay = outbox::Relay::new(pool.clone(), bus.clone()).dedup(dedup).poll(Duration::from_millis(20));
    let relay = Working::start(relay);
    until(&pool, WAITING, 0).await;
    relay.stop().await;
    // Published after all events of the relays.
    bus.publish(OrderPlaced { order_id: 99, cents: 0 }).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let message = next(&subscription).await;
        let order: OrderPlaced = Envelope::read(&message).unwrap().decode().unwrap();
        if order.order_id == 99 {
            bus.close().await.unwrap();
            return (ids, seen);
        }
        seen.push((message.id.clone(), order));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_killed_between_publish_and_mark_lose_nothing_and_keep_ids_and_order() {
    let (ids, seen) = killed_relays("crash_killed", false).await;
    let mut first = vec![Vec::new(); 8];
    let mut times: HashMap<&MessageId, u32> = HashMap::new();
    for (id, order) in &seen {
        let times = times.entry(id).or_default();
        *times += 1;
        if *times == 1 {
            first[order.order_id as usize].push(order.cents);
        }
    }
    assert_eq!(times.len(), 400, "every id, and no other");
    assert!(ids.iter().all(|id| times.contains_key(id)));
    assert!(first.iter().all(|of_key| of_key.is_sorted()), "{first:?}");
    let repeats = seen.len() - 400;
    assert!((4..=4 * 40).contains(&repeats), "{repeats} repeats of four killed batches of 40");
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_killed_between_publish_and_mark_with_dedup_the_bus_keeps_one() {
    let (ids, seen) = killed_relays("crash_dedup", true).await;
    let mut seen: Vec<_> = seen.into_iter().map(|(id, _)| id.to_string()).collect();
    let mut ids: Vec<_> = ids.into_iter().map(|id| id.to_string()).collect();
    seen.sort_unstable();
    ids.sort_unstable();
    assert_eq!(seen, ids);
}
