//! Tests missing permissions: only the operation that lacks one is refused, also when it is revoked while the
//! service runs.

use std::time::Duration;

use event_client::ErrorKind;
use event_client::subject::Subject;
use event_client::transport::Serve;
use test_servers::{Generation, Nats};

use super::{group, message, open};
use crate::broker::{does_everything, keeps_to_its_namespace, printed};

#[tokio::test]
async fn a_missing_permission_harms_one_topic_only() {
    let denied = ["backbone.evt.secret.>"];
    let server = Nats::options().restricted_user("app", "pw", &denied).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    let window = [
        bus.publish(message("orders.a", "before")),
        bus.publish(message("secret.a", "x")),
        bus.publish(message("orders.a", "after")),
    ];
    let mut results = Vec::new();
    for confirm in window {
        results.push(confirm.await);
    }
    let error = results.remove(1).expect_err("not allowed");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("backbone.evt.secret.a"), "{error}");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    for want in ["before", "after"] {
        let delivery = subscription.next().await.expect("a delivery");
        assert_eq!(delivery.message().payload, want);
        delivery.ack().await.expect("acknowledged");
    }
}

/// JetStream's API requests are subjects with permissions, too.
#[tokio::test]
async fn a_missing_right_to_make_streams_or_consumers() {
    let denied = ["$JS.API.STREAM.CREATE.EVT_backbone_secret", "$JS.API.CONSUMER.DURABLE.CREATE.>"];
    let server = Nats::options().restricted_user("app", "pw", &denied).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let error = bus.publish(message("secret.a", "x")).await.expect_err("not allowed");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("STREAM.CREATE.EVT_backbone_secret"), "{error}");
    bus.publish(message("orders.a", "x")).await.expect("another topic is not harmed");
    let no_api = Nats::options().restricted_user("app", "pw", &["$JS.API.>"]).start().await.expect("one");
    let error = open(&no_api.url()).await.expect_err("nothing works without it");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("$JS.API.INFO"), "{error}");
    let no_inbox = Nats::options().restricted_user("app", "pw", &["_INBOX.>"]).start().await.expect("one");
    let error = open(&no_inbox.url()).await.expect_err("no answer could reach us");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("_INBOX."), "{error}");
}

/// A service without permission for `$SRV` works all the same; without permission for its own subject it gets
/// an error.
#[tokio::test]
async fn services_and_their_rights() {
    let denied = ["$SRV.>", "backbone.rpc.secret.>"];
    let server = Nats::options().restricted_user("app", "pw", &denied).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let serve = |subject: &str| Serve::new("shop", vec![Subject::new(subject).expect("a subject")], 1);
    let mut requests = bus.requests().serve(serve("shop.quote")).await.expect("served");
    let call = bus.requests().call(message("shop.quote", "how much?"), Duration::from_secs(10));
    let answer = async {
        let request = requests.recv().await.expect("a request");
        assert_eq!(request.message.payload, "how much?");
    };
    let (_, replies) = tokio::join!(answer, call);
    drop(replies);
    let error = bus.requests().serve(serve("secret.quote")).await.expect_err("not allowed");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let error = match bus.requests().call(message("secret.quote", "x"), Duration::from_secs(20)).await {
        Ok(mut replies) => replies.next().await.expect("a reply").expect_err("not allowed"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
}

/// The operator revokes a permission and restores it: publishes fail with that reason, and the connection and
/// all else continue.
#[tokio::test]
async fn a_right_that_is_lost_while_running() {
    let server = Nats::options().restricted_user("app", "pw", &["nothing"]).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    bus.publish(message("orders.a", "before")).await.expect("stored");
    let file = server.folder().join("nats.conf");
    let reload = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&file).expect("read").replace(from, to);
        std::fs::write(&file, text).expect("written");
        let pid = server.id().expect("it runs").to_string();
        let done = std::process::Command::new("kill").args(["-HUP", &pid]).status().expect("signalled");
        assert!(done.success());
    };
    reload("\"nothing\"", "\"backbone.evt.orders.>\"");
    let mut stored = 1;
    let error = loop {
        match bus.publish(message("orders.a", "between")).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    bus.publish(message("billing.a", "x")).await.expect("another topic is not harmed");
    reload("\"backbone.evt.orders.>\"", "\"nothing\"");
    loop {
        match bus.publish(message("orders.a", "after")).await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}"),
        }
    }
    for _ in 0..=stored {
        let delivery = subscription.next().await.expect("a delivery");
        delivery.ack().await.expect("acknowledged");
    }
}

/// The permissions on the operators' page are sufficient, on both generations.
#[tokio::test]
async fn the_printed_rights_suffice() {
    let page = include_str!("../../../../../ops/brokers/nats.md").replace("<ns>", "backbone");
    let subjects = |of: &str| -> Vec<String> {
        printed(&page, of, "\n").split_whitespace().map(str::to_owned).collect()
    };
    let (publish, subscribe) = (subjects("\npublish:"), subjects("\nsubscribe:"));
    for generation in Generation::ALL {
        let options = Nats::options().generation(generation);
        let server = options.allowed_user("app", "pw", &publish, &subscribe).start().await.expect("a server");
        let bus = open(&server.url()).await.expect("opened");
        does_everything(&bus).await;
        bus.close().await.expect("closed");
        keeps_to_its_namespace(&server.url()).await;
    }
}
