//! Tests Redis: logins, and eviction.

use redis::{AsyncCommands, Client, ClientTlsConfig, RedisResult, TlsCertificates};
use std::fs::read;
use test_servers::{Certificates, Generation, Redis, Tls};

/// Adds an entry to a stream.
pub(crate) async fn add(url: &str) -> RedisResult<String> {
    let mut connection = Client::open(url)?.get_multiplexed_async_connection().await?;
    redis::cmd("XADD").arg(&["kept", "*", "field", "value"]).query_async(&mut connection).await
}

/// Returns the number of entries in that stream.
pub(crate) async fn length(url: &str) -> usize {
    let mut connection = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    redis::cmd("XLEN").arg("kept").query_async(&mut connection).await.unwrap()
}

#[tokio::test]
async fn passwords_and_permissions() {
    for generation in Generation::ALL {
        let options = Redis::options().generation(generation).user("ann", "right");
        let server = options.acl_user("bob", "right", "~kept &* +@all -xadd").start().await.unwrap();
        add(&server.url()).await.unwrap();
        add(&server.url_of("ann", "wrong")).await.unwrap_err();
        add(&server.bare_url()).await.unwrap_err();
        let error = add(&server.url_of("bob", "right")).await.unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{error}");
        assert_eq!(length(&server.url_of("bob", "right")).await, 1);
    }
}

#[tokio::test]
async fn tls() {
    for generation in Generation::ALL {
        let server = Redis::options().generation(generation).tls(Tls::Server).start().await.unwrap();
        let files = server.certificates().unwrap();
        assert!(reaches(&server, &files.ca, None).await);
        assert!(!reaches(&server, &files.stranger, None).await);

        let server = Redis::options().generation(generation).tls(Tls::Mutual).start().await.unwrap();
        let files = server.certificates().unwrap();
        assert!(reaches(&server, &files.ca, Some(files)).await);
        assert!(!reaches(&server, &files.ca, None).await);
    }
}

async fn reaches(server: &Redis, ca: &std::path::Path, client: Option<&Certificates>) -> bool {
    let client_tls = client.map(|files| ClientTlsConfig {
        client_cert: read(&files.client).unwrap(),
        client_key: read(&files.client_key).unwrap(),
    });
    let certificates = TlsCertificates { client_tls, root_cert: Some(read(ca).unwrap()) };
    let client = Client::build_with_tls(server.url(), certificates).unwrap();
    match client.get_multiplexed_async_connection().await {
        Ok(mut connection) => connection.ping::<String>().await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn memory_and_disk() {
    let server = Redis::options().evicting(8).start().await.unwrap();
    let mut connection =
        Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let policy: Vec<String> =
        redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async(&mut connection).await.unwrap();
    assert_eq!(policy, ["maxmemory-policy", "allkeys-lru"]);

    let server = Redis::options().data_limit(4).start().await.unwrap();
    let mut connection =
        Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut refused = false;
    for number in 0..64 {
        let value = vec![b'x'; 256 * 1024];
        refused |= connection.set::<_, _, ()>(number, value).await.is_err();
    }
    assert!(refused, "a disk of 4 MiB holds 16 MiB");
}
