//! Tests the listener when the address cannot be bound, and the server's rules and shutdown.

use crate::client::get;
use axum::Router;
use axum::routing::get as route;
use service_kit::http::{Settings, bind, serve};
use service_kit::shutdown::{self, Parts, Shutdown};
use service_kit::{Error, ErrorKind};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

fn on(host: &str, port: u16) -> Settings {
    Settings { host: host.into(), port, ..Settings::default() }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = bind(&on("127.0.0.1", 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let error: Error = bind(&on("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddressInUse);
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(error.to_string().contains("http.port"), "{error}");
}

#[tokio::test]
async fn a_foreign_address_is_named() {
    let settings = Settings { allow_unauthenticated: true, ..on("192.0.2.1", 0) };
    let error = bind(&settings).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bind);
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
    let mut parts =
        Parts::new(shutdown.clone(), shutdown::Settings { drain: crate::DEADLINE, ..Default::default() });
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
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    arrived.acquire().await.unwrap().forget();
    shutdown.ask("the test says so");
    let report = run.await.unwrap();
    assert_eq!(report.finished, ["http"], "{report}");
}

#[tokio::test]
async fn readiness_fails_before_the_listener_closes() {
    let listener = bind(&on("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let settings = shutdown::Settings { drain: crate::DEADLINE, notice: crate::DEADLINE };
    let router = service_kit::health::Health::new("shop", "1").watch(&shutdown).router();
    let mut parts = Parts::new(shutdown.clone(), settings);
    parts.add("http", |stop| serve(listener, router, stop));
    let run = tokio::spawn(parts.run());
    assert_eq!(get(address, "/ready").await.0, 200);
    shutdown.ask("the test asks");
    // New connections are still accepted and answered with 503.
    assert_eq!(get(address, "/ready").await.0, 503);
    assert_eq!(get(address, "/ready").await.0, 503);
    shutdown.force();
    run.await.unwrap();
}

/// A served router, and the handle that stops it.
struct Served {
    address: std::net::SocketAddr,
    shutdown: Shutdown,
    run: tokio::task::JoinHandle<shutdown::Report>,
}

async fn served(router: Router) -> Served {
    let listener = bind(&on("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let mut parts =
        Parts::new(shutdown.clone(), shutdown::Settings { drain: crate::DEADLINE, ..Default::default() });
    parts.add("http", |stop| serve(listener, router, stop));
    Served { address, shutdown, run: tokio::spawn(parts.run()) }
}

/// Sends bytes and returns all received bytes until the server closes the connection.
async fn exchange(address: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    let reading = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer);
    tokio::time::timeout(crate::DEADLINE, reading).await.expect("it closes").expect("it is no reset");
    answer
}

#[tokio::test]
async fn more_than_loopback_has_to_be_asked_for() {
    for host in ["0.0.0.0", "::", "192.0.2.1"] {
        let error = bind(&on(host, 0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotLoopback, "{host}");
        assert!(error.to_string().contains("LOGTHON_ALLOW_UNAUTHENTICATED=true"), "{error}");
    }
    for host in ["127.0.0.1", "127.0.0.2", "localhost"] {
        bind(&on(host, 0)).await.expect("loopback");
    }
    bind(&Settings { allow_unauthenticated: true, ..on("0.0.0.0", 0) }).await.expect("explicitly allowed");
}

#[tokio::test]
async fn every_route_is_guarded_and_every_answer_is_shaped() {
    let served = served(Router::new().route("/here", route(|| async { "text" }))).await;
    for path in ["/here", "/nowhere"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: rebound.example:5000\r\nConnection: close\r\n\r\n");
        let answer = exchange(served.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
        assert!(answer.contains("add it to LOGTHON_ALLOWED_HOSTS"), "{answer}");
    }
    for (request, status, body) in [
        ("GET /here", "200", "text"),
        ("GET /nowhere", "404", r#"{"detail":"Not Found"}"#),
        ("DELETE /here", "405", r#"{"detail":"Method Not Allowed"}"#),
    ] {
        let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange(served.address, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with(body), "{answer}");
        assert!(answer.to_lowercase().contains("x-content-type-options: nosniff"), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_reaches_a_sender_whose_body_nobody_reads() {
    let served = served(Router::new()).await;
    // More than the socket buffers of both sides can hold.
    let body = vec![b'x'; 32 * 1024 * 1024];
    for (host, status) in [("localhost", "404"), ("rebound.example", "421")] {
        let head = format!(
            "POST /none HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let answer = exchange(served.address, &[head.as_bytes(), &body].concat()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    // A sender that waits for `100 Continue` receives the response before it sends the body.
    let head =
        "POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\nExpect: 100-continue\r\n\r\n";
    let answer = exchange(served.address, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn half_a_head_is_not_waited_for_without_end() {
    let served = served(Router::new()).await;
    for half in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(served.address).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The paused clock of the test advances whenever all tasks wait, so this takes no real time.
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.expect("closed");
    }
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let served = served(Router::new().route("/here", route(|| async { "text" }))).await;
    let mut idle = tokio::net::TcpStream::connect(served.address).await.unwrap();
    idle.write_all(b"GET /here HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    tokio::io::AsyncReadExt::read_exact(&mut idle, &mut [0; 12]).await.unwrap();
    served.shutdown.ask("the test says so");
    let report = served.run.await.unwrap();
    assert!(report.is_clean(), "{report}");
}
