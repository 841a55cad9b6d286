//! Tests that this build opens the files and keys that version 0.1 stored, and reads, settles and replays them.
//!
//! The folder `v0.1` holds the stored data. The ignored test `records_the_stored_data` writes such a folder to `RECORD_TO`,
//! or over `v0.1` when that variable is not set:
//! `RECORD_TO=DIR cargo test -p backbone-tests --test it -- --ignored records_the_stored_data`. In `bus-tasks.db` of
//! `v0.1` the time until which the dead task is kept was then set to the year 2100.

mod bus;
mod data_dir;
mod keys;

use std::path::{Path, PathBuf};

use event_client::Bus;
use sqlx::{Connection, Executor, SqliteConnection};
use test_servers::{Generation, Redis};

/// Keeps what is stored for as long as an option can say, because the stored data only gets older.
const KEEP: &str = "retention_age=36500d";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("it/stored_data/v0.1")
}

/// A copy of the stored data in a temporary folder.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Copies a database after a checkpoint, so that the file holds all data.
async fn copy_database(file: &Path, to: &Path) {
    let mut database = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    database.close().await.unwrap();
    std::fs::copy(file, to.join(file.file_name().unwrap())).unwrap();
}

#[tokio::test]
async fn a_bus_file_of_version_0_1_is_read_settled_and_replayed() {
    let copy = copy();
    let bus = Bus::connect(&format!("sqlite:{}/bus.db?{KEEP}", copy.path().display())).await.unwrap();
    bus::read(&bus).await;
    bus.close().await.unwrap();
}

#[tokio::test]
async fn redis_keys_of_version_0_1_are_read_settled_and_replayed() {
    for generation in [Generation::Old, Generation::New] {
        let server = Redis::options().generation(generation).start().await.unwrap();
        keys::restore(&server.url(), &folder().join("redis.json")).await;
        let bus = Bus::connect(&format!("{}?{KEEP}", server.url())).await.unwrap();
        bus::read(&bus).await;
        bus.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_data_directory_of_version_0_1_is_opened_its_tasks_run_and_its_logs_are_found() {
    let copy = copy();
    let data = copy.path();
    std::fs::create_dir(data.join("logs")).unwrap();
    for entry in std::fs::read_dir(data).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with("logs-") {
            std::fs::rename(entry.path(), data.join("logs").join(entry.file_name())).unwrap();
        }
    }
    data_dir::read(data).await;
}

#[tokio::test]
#[ignore = "it writes the stored data of the present build"]
async fn records_the_stored_data() {
    let folder = std::env::var("RECORD_TO").map_or_else(|_| folder(), PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    let bus = Bus::connect(&format!("sqlite:{}/bus.db?{KEEP}", folder.display())).await.unwrap();
    bus::record(&bus).await;
    bus.close().await.unwrap();

    let server = Redis::options().start().await.unwrap();
    let bus = Bus::connect(&format!("{}?{KEEP}", server.url())).await.unwrap();
    bus::record(&bus).await;
    bus.close().await.unwrap();
    keys::save(&server.url(), &folder.join("redis.json")).await;

    let data = tempfile::tempdir().unwrap();
    data_dir::record(data.path()).await;
    std::fs::copy(data.path().join("ids.json"), folder.join("ids.json")).unwrap();
    copy_database(&data.path().join("bus-tasks.db"), &folder).await;
    for day in std::fs::read_dir(data.path().join("logs")).unwrap() {
        let day = day.unwrap().path();
        if day.extension().is_some_and(|extension| extension == "db") {
            copy_database(&day, &folder).await;
        }
    }
}
