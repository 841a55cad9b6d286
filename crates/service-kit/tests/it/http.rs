//! The listener when the address cannot be had, and the server when it stops.

use crate::client::get;
use axum::Router;
use axum::routing::get as route;
use service_kit::http::{Settings, bind, serve};
use service_kit::shutdown::{self, Parts, Shutdown};
use service_kit::{Error, Kind};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

fn on(host: &str, port: u16) -> Settings {
    Settings { host: host.into(), port }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = bind(&on("127.0.0.1", 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let error: Error = bind(&on("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::AddressInUse);
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(error.to_string().contains("http.port"), "{error}");
}

#[tokio::test]
async fn a_foreign_address_is_named() {
    let error = bind(&on("192.0.2.1", 0)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Bind);
    assert!(error.to_string().contains("http.host"), "{error}");
}

#[tokio::test]
async fn open_requests_are_answered_before_the_server_ends() {
    let (arrived, release) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (here, go) = (arrived.clone(), release.clone());
    let router = Router::new().route(
        "/slow",
        route(move || async move {
            here.add_permits(1);
            go.acquire().await.map(|_| "done").unwrap_or("closed")
        }),
    );
    let listener = bind(&on("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let mut parts = Parts::new(shutdown.clone(), shutdown::Settings { drain: crate::DEADLINE });
    parts.add("http", |stop| serve(listener, router, stop));
    let run = tokio::spawn(parts.run());
    let request = tokio::spawn(async move { get(address, "/slow").await });
    arrived.acquire().await.unwrap().forget();
    shutdown.ask("the test says so");
    release.add_permits(1);
    assert_eq!(request.await.unwrap().2, "done");
    let report = run.await.unwrap();
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_end_is_cut() {
    let arrived = Arc::new(Semaphore::new(0));
    let here = arrived.clone();
    let router = Router::new().route(
        "/endless",
        route(move || async move {
            here.add_permits(1);
            std::future::pending::<()>().await;
        }),
    );
    let listener = bind(&on("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let mut parts = Parts::new(shutdown.clone(), shutdown::Settings::default());
    parts.add("http", |stop| serve(listener, router, stop));
    let run = tokio::spawn(parts.run());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    arrived.acquire().await.unwrap().forget();
    shutdown.ask("the test says so");
    let report = run.await.unwrap();
    assert_eq!(report.finished, ["http"], "{report}");
}
