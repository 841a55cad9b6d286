//! Tests the proxy's network failures: with an echo server, and with a real server.

use crate::{eventually, redis};
use std::time::{Duration, Instant};
use test_servers::{Direction, Generation, Proxy, Redis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A short time in which nothing may happen.
const MOMENT: Duration = Duration::from_millis(150);

/// Starts a server that sends back the bytes that it receives.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
            });
        }
    });
    port
}

async fn start() -> (Proxy, TcpStream) {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    assert_eq!(says(&mut stream, b"hello").await.unwrap(), b"hello");
    (proxy, stream)
}

async fn says(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn cut_and_refused() {
    let (proxy, mut stream) = start().await;
    assert_eq!(proxy.connections(), 1);
    proxy.cut();
    says(&mut stream, b"lost").await.unwrap_err();
    eventually("the connection is closed", || proxy.connections() == 0).await;
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    assert_eq!(says(&mut stream, b"again").await.unwrap(), b"again");

    proxy.refuse();
    says(&mut stream, b"lost").await.unwrap_err();
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).await;
    if let Ok(mut stream) = stream {
        says(&mut stream, b"lost").await.unwrap_err();
    }
    proxy.heal();
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    assert_eq!(says(&mut stream, b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn half_open() {
    for direction in [Direction::Up, Direction::Down, Direction::Both] {
        let (proxy, mut stream) = start().await;
        proxy.swallow(direction);
        assert!(
            timeout(MOMENT, says(&mut stream, b"lost")).await.is_err(),
            "{direction:?}: an answer, or an end"
        );
        eventually("the bytes are counted", || proxy.swallowed() == 4).await;
        proxy.heal();
        // Lost bytes are not sent again: the connection ends.
        timeout(crate::DEADLINE, says(&mut stream, b"late")).await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn held_and_slow() {
    let (proxy, mut stream) = start().await;
    proxy.hold(Direction::Down);
    assert!(timeout(MOMENT, says(&mut stream, b"held")).await.is_err());
    proxy.heal();
    let mut answer = [0; 4];
    timeout(crate::DEADLINE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"held");

    let start = Instant::now();
    proxy.slow(Direction::Both, Duration::from_millis(50), 0);
    says(&mut stream, b"slow").await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(100));
    proxy.slow(Direction::Up, Duration::ZERO, 64 * 1024);
    let start = Instant::now();
    says(&mut stream, &[0; 32 * 1024]).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

#[tokio::test]
async fn before_a_real_server() {
    let server = Redis::shared(Generation::Old).await;
    let proxy = Proxy::start(server.port()).await.unwrap();
    let url = proxy.url(&server.url());
    redis::add(&url).await.unwrap();
    proxy.refuse();
    redis::add(&url).await.unwrap_err();
    proxy.heal();
    redis::add(&url).await.unwrap();
}
