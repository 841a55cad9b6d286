//! Tests login and encryption: certificates, logins without a password, and servers that do not meet the
//! requirements.

use event_client::ErrorKind;
use test_servers::{Generation, Rabbit, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{group, message, open, server};
use crate::broker::{does_everything, printed};

/// Starts a server that requires a client's certificate, and uses its common name as the user name for
/// clients that choose that mechanism.
async fn mutual(generation: Generation) -> Rabbit {
    let options = Rabbit::options().generation(generation).tls(Tls::Mutual);
    let server = options
        .plugin("rabbitmq_auth_mechanism_ssl")
        .line("auth_mechanisms.1 = PLAIN")
        .line("auth_mechanisms.2 = EXTERNAL")
        .line("ssl_cert_login_from = common_name")
        .start()
        .await
        .expect("a server");
    server.user("client", "unused").await.expect("a user");
    server.permit("client", "/", [".*"; 3]).await.expect("rights");
    server
}

#[tokio::test]
async fn tls_needs_the_right_certificates() {
    for generation in Generation::ALL {
        let server = mutual(generation).await;
        let paths = server.certificates().expect("certificates");
        let (ca, stranger) = (paths.ca.display(), paths.stranger.display());
        let own = format!("cert={}&key={}", paths.client.display(), paths.client_key.display());
        let bus = open(&format!("{}?connect_timeout=60s&ca={ca}&{own}", server.url()))
            .await
            .expect("with all of it");
        let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
        bus.publish(message("orders.placed", "secret")).await.expect("stored");
        let delivery = subscription.next().await.expect("a delivery");
        assert_eq!(&*delivery.message().payload, b"secret");
        delivery.ack().await.expect("acknowledged");
        // The certificate contains the name: the URL has neither user nor password.
        let hosts = format!("amqps://127.0.0.1:{}/%2F", server.port());
        let named = open(&format!("{hosts}?connect_timeout=60s&auth=external&ca={ca}&{own}"))
            .await
            .expect("by certificate");
        named.admin().ping().await.expect("it works");
        for (options, what) in [
            (format!("ca={stranger}&{own}"), "certificate"),
            (format!("ca={ca}"), "certificate"),
            (own.clone(), "certificate"),
        ] {
            let url = format!("{}?{options}&connect_timeout=60s", server.url());
            let error = open(&url).await.expect_err(&options);
            assert!(error.to_string().to_lowercase().contains(what), "{options}: {error}");
            assert_eq!(error.kind(), ErrorKind::Denied, "{options}: {error}");
        }
        let plain = server.url().replace("amqps://", "amqp://");
        let error = open(&format!("{plain}?connect_timeout=2s")).await.expect_err("without TLS");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unsupported), "{error}");
    }
}

#[tokio::test]
async fn the_first_host_that_lives_is_taken() {
    let server = server().await;
    let url = format!("amqp://guest:guest@127.0.0.1:1,127.0.0.1:{}/%2F?namespace=hosts", server.port());
    let bus = open(&url).await.expect("by the second host");
    bus.publish(message("orders.placed", "x")).await.expect("stored");
    let error = open("amqp://127.0.0.1:1,127.0.0.1:2").await.expect_err("both are dead");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:2"), "{error}");
}

/// Starts a listener that answers every connection with these bytes, after it has received the protocol
/// header.
async fn answering(bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut header = [0; 8];
            if stream.read_exact(&mut header).await.is_ok() {
                let _ = stream.write_all(&bytes).await;
            }
        }
    });
    port
}

/// Encodes the `connection.start` frame of a broker with this name and version.
fn greeting(product: &str, version: &str) -> Vec<u8> {
    let mut table = Vec::new();
    for (name, value) in [("product", product), ("version", version)] {
        table.push(u8::try_from(name.len()).expect("short"));
        table.extend(name.as_bytes());
        table.push(b'S');
        table.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
        table.extend(value.as_bytes());
    }
    let mut payload = vec![0, 10, 0, 10, 0, 9];
    payload.extend(u32::try_from(table.len()).expect("short").to_be_bytes());
    payload.extend(table);
    for text in ["PLAIN", "en_US"] {
        payload.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
        payload.extend(text.as_bytes());
    }
    let mut frame = vec![1, 0, 0];
    frame.extend(u32::try_from(payload.len()).expect("short").to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    frame
}

#[tokio::test]
async fn a_server_that_will_not_do_is_refused_with_what_is_needed() {
    for (bytes, what) in [
        (greeting("RabbitMQ", "3.9.27"), "RabbitMQ 3.9.27; RabbitMQ 3.10 or later is needed"),
        (greeting("LavinMQ", "2.1.0"), "LavinMQ"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "does not speak AMQP 0.9.1"),
        (b"AMQP\x00\x01\x00\x00".to_vec(), "does not speak AMQP 0.9.1"),
    ] {
        let port = answering(bytes).await;
        let error = open(&format!("amqp://127.0.0.1:{port}")).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}

/// The patterns on the operators' page are sufficient, for a service and for a client that only publishes.
#[tokio::test]
async fn the_printed_rights_suffice() {
    let page = include_str!("../../../../../ops/brokers/rabbitmq.md").replace("NS", "backbone");
    let rights = printed(&page, "## Security", "## ");
    let pattern = |of: &str| printed(printed(rights, of, "\n\n"), "`", "`");
    let (exchange, own) = (pattern("needs `write` on"), pattern("`write` and `read` on"));
    let default = pattern("the default exchange");
    for generation in Generation::ALL {
        let server = Rabbit::shared(generation).await;
        let vhost = format!("printed-{generation:?}").to_lowercase();
        server.vhost(&vhost).await.expect("a vhost");
        server.user("service", "pw").await.expect("a user");
        server.permit("service", &vhost, [own, &format!("{own}|{default}"), own]).await.expect("rights");
        let bus = open(&server.url_of("service", "pw", &vhost)).await.expect("opened");
        does_everything(&bus).await;
        bus.close().await.expect("closed");
        server.user("publisher", "pw").await.expect("a user");
        server.permit("publisher", &vhost, [exchange, exchange, "^$"]).await.expect("rights");
        let bus = open(&server.url_of("publisher", "pw", &vhost)).await.expect("opened");
        bus.publish(message("orders.placed", "x")).await.expect("published");
        let error = bus.subscribe(group("g", "orders.>")).await.expect_err("it may not consume");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    }
}
