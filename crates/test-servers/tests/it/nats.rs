//! Tests NATS: logins, and refusals by a server that is too small or too old.

use async_nats::{Client, ConnectOptions, connect, jetstream};
use test_servers::{Generation, Nats, Tls};

/// Returns the stream's context; creates the stream when it does not exist.
pub(crate) async fn stream(url: &str) -> jetstream::Context {
    stream_of(connect(url).await.unwrap()).await
}

async fn stream_of(client: Client) -> jetstream::Context {
    let context = jetstream::new(client);
    let config = jetstream::stream::Config {
        name: "KEPT".into(),
        subjects: vec!["kept.>".into()],
        ..Default::default()
    };
    context.get_or_create_stream(config).await.unwrap();
    context
}

/// Returns the number of messages in that stream.
pub(crate) async fn stored(url: &str) -> u64 {
    stream(url).await.get_stream("KEPT").await.unwrap().cached_info().state.messages
}

/// Makes a round trip to the server, which fails for a client that is refused.
async fn reaches(options: ConnectOptions, url: &str) -> bool {
    match options.connect(url).await {
        Ok(client) => client.flush().await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn passwords_and_permissions() {
    for generation in Generation::ALL {
        let options = Nats::options().generation(generation).user("ann", "right");
        let server = options.restricted_user("bob", "right", &["secret.>"]).start().await.unwrap();
        // The client takes names from its options, not from the URL.
        let named =
            |name: &str, password: &str| ConnectOptions::with_user_and_password(name.into(), password.into());
        assert_eq!(server.url(), server.url_of("ann", "right"));
        assert!(reaches(named("ann", "right"), &server.url()).await);
        assert!(!reaches(named("ann", "wrong"), &server.url()).await);
        assert!(!reaches(ConnectOptions::new(), &server.bare_url()).await);

        let (refused, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let options = named("bob", "right").event_callback(move |event| {
            let _ = refused.send(event.to_string());
            async {}
        });
        let bob = options.connect(server.bare_url()).await.unwrap();
        bob.publish("secret.one", "1".into()).await.unwrap();
        bob.flush().await.unwrap();
        let said = async {
            loop {
                let event = seen.recv().await.unwrap();
                if event.to_lowercase().contains("permissions violation") {
                    break;
                }
            }
        };
        tokio::time::timeout(crate::DEADLINE, said).await.expect("the server reports its refusal");
    }
}

#[tokio::test]
async fn tokens_keys_and_credential_files() {
    for generation in Generation::ALL {
        let options = || Nats::options().generation(generation);
        let server = options().token("right").start().await.unwrap();
        assert!(reaches(ConnectOptions::with_token("right".into()), &server.bare_url()).await);
        assert!(!reaches(ConnectOptions::with_token("wrong".into()), &server.bare_url()).await);

        let server = options().nkey().start().await.unwrap();
        let seed = server.nkey_seed().unwrap().to_owned();
        assert!(reaches(ConnectOptions::with_nkey(seed), &server.url()).await);
        let other = nkeys::KeyPair::new_user().seed().unwrap();
        assert!(!reaches(ConnectOptions::with_nkey(other), &server.url()).await);

        let server = options().creds().start().await.unwrap();
        let creds = || ConnectOptions::new().credentials_file(server.creds_file().unwrap());
        assert!(!reaches(ConnectOptions::new(), &server.url()).await);
        let client = creds().await.unwrap().connect(server.url()).await.unwrap();
        stream_of(client).await.publish("kept.one", "1".into()).await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn tls() {
    for generation in Generation::ALL {
        let server = Nats::options().generation(generation).tls(Tls::Server).start().await.unwrap();
        let files = server.certificates().unwrap();
        let trusting = |ca: &std::path::Path| ConnectOptions::new().add_root_certificates(ca.to_owned());
        assert!(reaches(trusting(&files.ca), &server.url()).await);
        assert!(!reaches(trusting(&files.stranger), &server.url()).await);

        let server = Nats::options().generation(generation).tls(Tls::Mutual).start().await.unwrap();
        let files = server.certificates().unwrap();
        let known =
            trusting(&files.ca).add_client_certificate(files.client.clone(), files.client_key.clone());
        assert!(reaches(known, &server.url()).await);
        assert!(!reaches(trusting(&files.ca), &server.url()).await);
    }
}

#[tokio::test]
async fn limits() {
    let server = Nats::options().max_payload(2048).without_jetstream().start().await.unwrap();
    let client = connect(server.url()).await.unwrap();
    assert_eq!(client.server_info().max_payload, 2048);
    assert!(jetstream::new(client).query_account().await.is_err());

    let server = Nats::options().generation(Generation::New).fsync().data_limit(8).start().await.unwrap();
    let context = stream(&server.url()).await;
    let mut stored = 0;
    let full = loop {
        match context.publish("kept.one", vec![0; 512 * 1024].into()).await.unwrap().await {
            Ok(_) if stored < 32 => stored += 1,
            Ok(_) => break false,
            Err(_) => break true,
        }
    };
    assert!(full, "a disk of 8 MiB holds {stored} times 512 KiB");
}
