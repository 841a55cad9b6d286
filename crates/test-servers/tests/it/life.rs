//! Start, kill, pause and restart, for each server and generation.

use test_servers::{Generation, Nats, Postgres, Process, Rabbit, Redis};

/// The signals that every server must obey; it runs before and after.
async fn obeys(process: &Process) {
    let (port, first) = (process.port(), process.id());
    process.kill().await.unwrap();
    assert!(!process.is_running());
    process.start().await.unwrap();
    assert_eq!(process.port(), port);
    assert_ne!(process.id(), first);

    process.pause().unwrap();
    assert!(process.is_running());
    process.resume().unwrap();
    process.ready().await.unwrap();
    assert!(process.memory().unwrap() > 100_000);

    process.restart().await.unwrap();
}

#[tokio::test]
async fn nats() {
    for generation in Generation::ALL {
        obeys(&Nats::options().generation(generation).start().await.unwrap()).await;
    }
}

#[tokio::test]
async fn redis() {
    for generation in Generation::ALL {
        obeys(&Redis::options().generation(generation).start().await.unwrap()).await;
    }
}

#[tokio::test]
async fn rabbit_old() {
    obeys(&Rabbit::options().start().await.unwrap()).await;
}

#[tokio::test]
async fn rabbit_new() {
    obeys(&Rabbit::options().generation(Generation::New).start().await.unwrap()).await;
}

#[tokio::test]
async fn postgres() {
    obeys(&Postgres::options().start().await.unwrap()).await;
}
