//! Saves the keys of a Redis server in a JSON file, and restores them: each with its `DUMP` and its time to live.

use std::path::Path;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

/// Keys that end sooner than this belong to members that are gone.
const LASTING: i64 = 3_600_000;

#[derive(Serialize, Deserialize)]
struct Key {
    name: String,
    /// Milliseconds; 0 for a key that stays.
    ttl: i64,
    dump: Vec<u8>,
}

async fn connect(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

pub(super) async fn save(url: &str, file: &Path) {
    let mut server = connect(url).await;
    let mut names: Vec<String> = server.keys("*").await.unwrap();
    names.sort();
    let mut keys = Vec::new();
    for name in names {
        let ttl: i64 = server.pttl(&name).await.unwrap();
        if ttl == -1 || ttl > LASTING {
            let dump: Vec<u8> = redis::cmd("DUMP").arg(&name).query_async(&mut server).await.unwrap();
            keys.push(Key { name, ttl: ttl.max(0), dump });
        }
    }
    std::fs::write(file, serde_json::to_vec(&keys).unwrap()).unwrap();
}

pub(super) async fn restore(url: &str, file: &Path) {
    let mut server = connect(url).await;
    let keys: Vec<Key> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for key in keys {
        let mut restore = redis::cmd("RESTORE");
        restore.arg(&key.name).arg(key.ttl).arg(&key.dump[..]);
        restore.query_async::<()>(&mut server).await.unwrap_or_else(|error| panic!("{}: {error}", key.name));
    }
}
