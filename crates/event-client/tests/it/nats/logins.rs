//! Tests the ways to log in: each works, wrong credentials give a clear error, and no output contains a
//! secret.

use event_client::{Error, ErrorKind};
use test_servers::{Nats, Tls};

use super::{message, open, refused};

/// Connects, publishes a message, and checks that no debug output contains the secret.
async fn works(url: &str, secret: &str) {
    let bus = open(url).await.expect("opened");
    bus.publish(message("orders.placed", "x")).await.expect("stored");
    let shown = format!("{bus:?}");
    assert!(!shown.contains(secret), "{shown}");
}

/// Returns the full text of an error and of its causes.
fn words(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(" {error} {error:?}");
        cause = error.source();
    }
    text
}

/// Checks that the login is denied for its credentials, and that the error does not contain the secret.
async fn denied(url: &str, secret: &str) {
    let error = open(url).await.expect_err("wrong credentials");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("credentials"), "{error}");
    assert!(!words(&error).contains(secret), "{error:?}");
}

#[tokio::test]
async fn user_and_password() {
    let server = Nats::options().user("app", "s3cr3t").start().await.expect("a server");
    works(&server.url(), "s3cr3t").await;
    denied(&server.url_of("app", "wr0ng-one"), "wr0ng-one").await;
    denied(&server.bare_url(), "s3cr3t").await;
    // Characters with a meaning in a URL are escaped.
    let odd = Nats::options().user("app", "p@ss:w/rd?").start().await.expect("a server");
    works(&odd.url_of("app", "p%40ss%3Aw%2Frd%3F"), "p@ss:w/rd?").await;
}

#[tokio::test]
async fn a_token() {
    let server = Nats::options().token("t0k3n").start().await.expect("a server");
    works(&server.url(), "t0k3n").await;
    works(&format!("{}?token=t0k3n", server.bare_url()), "t0k3n").await;
    denied(&format!("{}?token=wr0ng-one", server.bare_url()), "wr0ng-one").await;
}

#[tokio::test]
async fn an_nkey() {
    let server = Nats::options().nkey().start().await.expect("a server");
    let seed = server.nkey_seed().expect("a seed").to_owned();
    let file = |name: &str, text: &str| {
        let path = server.folder().join(name);
        std::fs::write(&path, text).expect("written");
        format!("{}?nkey={}", server.bare_url(), path.display())
    };
    works(&file("right.nk", &format!("{seed}\n")), &seed).await;
    let stranger = Nats::options().nkey().start().await.expect("another server");
    let other = stranger.nkey_seed().expect("a seed").to_owned();
    denied(&file("other.nk", &other), &other).await;
    let error = open(&file("broken.nk", "SUnonsense")).await.expect_err("no seed");
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("broken.nk") && !words(&error).contains("SUnonsense"), "{error:?}");
    refused(&format!("{}?nkey=/no/such/file", server.bare_url()), ErrorKind::Config, "/no/such/file").await;
}

#[tokio::test]
async fn a_credentials_file() {
    let server = Nats::options().creds().start().await.expect("a server");
    let creds = server.creds_file().expect("a file");
    let text = std::fs::read_to_string(creds).expect("read");
    let seed = text.lines().find(|line| line.starts_with("SU")).expect("a seed").to_owned();
    works(&format!("{}?creds={}", server.bare_url(), creds.display()), &seed).await;
    let stranger = Nats::options().creds().start().await.expect("another server");
    let other = stranger.creds_file().expect("a file").display();
    denied(&format!("{}?creds={other}", server.bare_url()), &seed).await;
    let broken = server.folder().join("broken.creds");
    std::fs::write(&broken, "nothing of use").expect("written");
    let url = format!("{}?creds={}", server.bare_url(), broken.display());
    refused(&url, ErrorKind::Config, "broken.creds").await;
    refused(&format!("{}?creds=/no/such/file", server.bare_url()), ErrorKind::Config, "/no/such/file").await;
}

#[tokio::test]
async fn tls_and_the_wrong_authority() {
    let server = Nats::options().tls(Tls::Server).user("app", "s3cr3t").start().await.expect("a server");
    let files = server.certificates().expect("certificates");
    works(&format!("{}?ca={}", server.url(), files.ca.display()), "s3cr3t").await;
    for options in [String::new(), format!("?ca={}", files.stranger.display())] {
        let error = open(&format!("{}{options}", server.url())).await.expect_err("not trusted");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("TLS"), "{error}");
    }
    // The wrong password over TLS is still reported as such.
    denied(&format!("{}?ca={}", server.url_of("app", "wr0ng-one"), files.ca.display()), "wr0ng-one").await;
    refused(&format!("{}?ca=/no/such/file", server.url()), ErrorKind::Config, "/no/such/file").await;
    // A server that requires TLS gets TLS, or the connection fails: the password is never sent unencrypted.
    let plain = server.url().replace("tls://", "nats://");
    let error = open(&plain).await.expect_err("no authority to trust");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn mutual_tls_and_no_certificate() {
    let server = Nats::options().tls(Tls::Mutual).start().await.expect("a server");
    let files = server.certificates().expect("certificates");
    let (ca, cert, key) = (files.ca.display(), files.client.display(), files.client_key.display());
    works(&format!("{}?ca={ca}&cert={cert}&key={key}", server.url()), "PRIVATE KEY").await;
    let error = open(&format!("{}?ca={ca}", server.url())).await.expect_err("no certificate");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("`cert`"), "{error}");
    // A file that is not a key, and a certificate in its place.
    let url = format!("{}?ca={ca}&cert={cert}&key={cert}", server.url());
    let error = open(&url).await.expect_err("no key");
    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Unavailable), "{error:?}");
    assert!(error.to_string().contains("`key`"), "{error}");
}
