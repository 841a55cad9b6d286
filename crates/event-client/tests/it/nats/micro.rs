//! Tests the requests of NATS' own command line: `nats micro ls|ping|info|stats` and `nats request` (ADR-32).

use event_client::Bus;
use event_client::service::{Msg, Running, Service, State};
use futures_util::StreamExt;
use serde_json::{Value, json};
use test_servers::{Generation, Nats};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{plain, shared};
use crate::events::{OrderPlaced, placed};
use crate::requests::quote;

/// The version of the service, not of this library.
const VERSION: &str = "3.1.4-rc.1+build.5";

async fn pricing(bus: &Bus) -> Running {
    let service = Service::new("pricing").version(VERSION).bus(bus.clone()).reply(quote);
    service.start().await.expect("started")
}

/// Returns all replies to a request that is sent to all services, as the command line collects them.
async fn all(client: &async_nats::Client, question: &str, count: usize) -> Vec<Value> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribed");
    client.publish_with_reply(question.to_owned(), inbox, "".into()).await.expect("asked");
    let mut all = Vec::new();
    while all.len() < count {
        let answer = answers.next().await.expect("an answer");
        assert_eq!(answer.status, None, "no service answers {question}");
        all.push(serde_json::from_slice(&answer.payload).expect("JSON"));
    }
    all
}

/// Returns the endpoint that gives quotes.
fn quotes(answer: &Value) -> &Value {
    let endpoints = answer["endpoints"].as_array().expect("endpoints");
    let quotes = |endpoint: &&Value| endpoint["subject"] == "backbone.rpc.pricing.get-quote.v1";
    endpoints.iter().find(quotes).unwrap_or_else(|| panic!("not listed: {answer}"))
}

async fn tell(State(tell): State<UnboundedSender<u64>>, Msg(order): Msg<OrderPlaced>) {
    let _ = tell.send(order.order_id);
}

#[tokio::test]
async fn services_are_listed_pinged_and_counted() {
    for generation in Generation::ALL {
        let server = Nats::options().generation(generation).start().await.expect("a server");
        let (one, other) =
            (Bus::connect(&server.url()).await.unwrap(), Bus::connect(&server.url()).await.unwrap());
        let (first, second) = (pricing(&one).await, pricing(&other).await);
        let client = plain(&server.url()).await;
        let pings = all(&client, "$SRV.PING", 2).await;
        let ids: Vec<&str> = pings.iter().map(|ping| ping["id"].as_str().expect("an id")).collect();
        assert_ne!(ids[0], ids[1]);
        for ping in &pings {
            assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
            assert_eq!((&ping["name"], &ping["metadata"]), (&json!("pricing"), &json!({})));
            assert_eq!(ping["version"], VERSION);
        }
        // By the service's name, and by one instance's id.
        assert_eq!(all(&client, "$SRV.PING.pricing", 2).await.len(), 2);
        let question = format!("$SRV.INFO.pricing.{}", ids[0]);
        let info = client.request(question, "".into()).await.expect("one answer");
        let info: Value = serde_json::from_slice(&info.payload).expect("JSON");
        assert_eq!((&info["type"], &info["id"]), (&json!("io.nats.micro.v1.info_response"), &json!(ids[0])));
        assert!(info["description"].is_string());
        assert_eq!(info["version"], VERSION);
        let endpoint = quotes(&info);
        assert_eq!((&endpoint["queue_group"], &endpoint["metadata"]), (&json!("q"), &json!({})));
        assert!(
            endpoint["name"].as_str().expect("a name").chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        );
        // Ten valid calls and two invalid ones, to any member.
        for sku in std::iter::repeat_n("tea", 10).chain(["gold", "gold"]) {
            let body = json!({ "sku": sku }).to_string();
            let answer =
                client.request("backbone.rpc.pricing.get-quote.v1", body.into()).await.expect("answered");
            let headers = answer.headers.expect("headers");
            assert!(headers.get("ce-id").is_none(), "an answer is no event: {headers:?}");
            if sku == "tea" {
                assert!(headers.get("Nats-Service-Error").is_none(), "{headers:?}");
                let body: Value = serde_json::from_slice(&answer.payload).expect("JSON");
                assert_eq!(body, json!({ "cents": 250 }));
            } else {
                assert_eq!(headers.get("Nats-Service-Error").expect("a text").as_str(), "no such sku: gold");
                assert_eq!(headers.get("Nats-Service-Error-Code").expect("a code").as_str(), "404");
            }
        }
        let (mut requests, mut errors) = (0, 0);
        for stats in all(&client, "$SRV.STATS", 2).await {
            assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");
            assert_eq!(stats["version"], VERSION);
            let started = stats["started"].as_str().expect("a time");
            started.parse::<jiff::Timestamp>().expect("RFC 3339");
            // Python's `%f` requires one to six digits, and its `Z` a literal `Z`.
            let digits =
                started.rsplit_once('.').and_then(|(_, rest)| rest.strip_suffix('Z')).expect("a fraction");
            assert_eq!(digits.len(), 3, "{started}");
            let endpoint = quotes(&stats);
            assert_eq!(endpoint["queue_group"], "q");
            let number = |name: &str| endpoint[name].as_u64().unwrap_or_else(|| panic!("{name}: {endpoint}"));
            requests += number("num_requests");
            errors += number("num_errors");
            if number("num_requests") > 0 {
                assert_eq!(
                    number("average_processing_time"),
                    number("processing_time") / number("num_requests")
                );
            }
            if number("num_errors") > 0 {
                assert!(endpoint["last_error"].as_str().expect("a text").contains("no such sku: gold"));
            } else {
                assert_eq!(endpoint.get("last_error"), Some(&Value::Null), "there, and nothing in it");
            }
            assert_eq!(endpoint.get("data"), Some(&Value::Null), "there, and nothing in it");
        }
        assert_eq!((requests, errors), (12, 2));
        let error = client.request("backbone.rpc.nobody.is-here.v1", "{}".into()).await.expect_err("nobody");
        assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders, "reported at once");
        for service in [first, second] {
            service.drain().await.expect("drained");
        }
    }
}

/// NATS' own JavaScript client can list a service and call it.
#[tokio::test]
async fn the_javascript_client_lists_and_calls_a_service() {
    let clients = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients");
    for generation in Generation::ALL {
        let server = Nats::options().generation(generation).start().await.expect("a server");
        let bus = Bus::connect(&server.url()).await.expect("connected");
        let service = pricing(&bus).await;
        let mut node = tokio::process::Command::new("node");
        node.current_dir(clients).arg("nats-services.mjs").arg(server.url()).arg("pricing");
        let output = node.args(["backbone.rpc.pricing.get-quote.v1", r#"{"sku":"tea"}"#]).output().await;
        let output = output.expect("node runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n(ops/test installs its packages: npm ci in {clients})");
        let read: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(read["reply"], json!({ "cents": 250 }));
        for part in ["ping", "info", "stats"] {
            let told = (&read[part]["name"], &read[part]["version"], &read[part]["id"]);
            assert_eq!(told, (&json!("pricing"), &json!(VERSION), &read["ping"]["id"]), "{part}");
        }
        assert_eq!(quotes(&read["info"])["queue_group"], "q");
        assert_eq!(quotes(&read["stats"])["num_requests"], 1);
        assert!(read["headers"].get("ce-id").is_none(), "{}", read["headers"]);
        service.drain().await.expect("drained");
    }
}

/// Every service answers health requests, which is not one of its author's endpoints. A service without other
/// endpoints is not listed.
#[tokio::test]
async fn only_endpoints_that_somebody_made_are_listed() {
    let server = Nats::options().start().await.expect("a server");
    let bus = Bus::connect(&server.url()).await.unwrap();
    let (sender, _told) = unbounded_channel();
    let listener = Service::new("billing").bus(bus.clone()).on(tell).with_state(sender);
    let (_listener, _pricing) = (listener.start().await.expect("started"), pricing(&bus).await);
    let client = plain(&server.url()).await;
    for question in ["$SRV.INFO", "$SRV.STATS"] {
        let answer = all(&client, question, 1).await.remove(0);
        let endpoints = answer["endpoints"].as_array().expect("endpoints");
        let subjects: Vec<_> = endpoints.iter().map(|endpoint| &endpoint["subject"]).collect();
        assert_eq!(subjects, ["backbone.rpc.pricing.get-quote.v1"], "{question}");
    }
    assert!(client.request("$SRV.INFO.billing", "".into()).await.is_err(), "it has no endpoint");
    bus.health("billing").await.expect("it answers how it is");
}

#[tokio::test]
async fn a_version_is_a_semantic_version() {
    let bus = crate::requests::memory();
    for wrong in ["1", "v1.0.0", "1.0", "01.0.0", "latest", ""] {
        let service = Service::new("pricing").version(wrong).bus(bus.clone()).reply(quote);
        let error = service.start().await.expect_err("it is none");
        assert_eq!(error.kind(), event_client::ErrorKind::Config, "{wrong}: {error}");
    }
    let service = Service::new("pricing").version(VERSION).bus(bus).reply(quote);
    drop(service.start().await.expect("it is one"));
}

/// A service answers the subject that the operators' page shows.
#[tokio::test]
async fn the_request_that_the_page_shows_is_answered() {
    let page = include_str!("../../../../../ops/brokers/nats.md");
    let line = page.lines().find(|line| line.starts_with("$ nats request ")).expect("a line");
    let mut words = line.trim_start_matches("$ nats request ").split_whitespace();
    let (subject, body) =
        (words.next().expect("a subject"), words.next().expect("a body").trim_matches('\''));
    let server = Nats::options().start().await.expect("a server");
    let bus = Bus::connect(&format!("{}?namespace=shop", server.url())).await.unwrap();
    let _service = pricing(&bus).await;
    let client = plain(&server.url()).await;
    let answer = client.request(subject.to_owned(), body.to_owned().into()).await.expect("a reply");
    assert!(answer.headers.expect("headers").get("content-type").is_some());
}

/// A plain client can read and write events as `ops/brokers/nats.md` describes.
#[tokio::test]
async fn a_plain_client_reads_and_writes_typed_events() {
    let (url, namespace) = shared().await;
    let bus = Bus::connect(&url).await.expect("opened");
    let client = plain(&url).await;
    let mut seen = client.subscribe(format!("{namespace}.evt.orders.>")).await.expect("subscribed");
    client.flush().await.expect("subscribed");
    let (sender, mut told) = unbounded_channel();
    let service = Service::new("billing").bus(bus.clone()).on(tell).with_state(sender);
    let _service = service.start().await.expect("started");
    bus.publish(placed(7)).await.expect("published");
    let event = seen.next().await.expect("an event");
    assert_eq!(event.subject.as_str(), format!("{namespace}.evt.orders.placed.v1"));
    let headers = event.headers.expect("headers");
    assert_eq!(headers.get("content-type").expect("a type").as_str(), "application/cloudevents+json");
    let mut body: Value = serde_json::from_slice(&event.payload).expect("JSON");
    assert_eq!(body["id"], headers.get("ce-id").expect("an id").as_str());
    assert_eq!((&body["specversion"], &body["type"]), (&json!("1.0"), &json!("orders.placed.v1")));
    assert_eq!(body["data"]["order_id"], 7);
    assert_eq!(told.recv().await, Some(7));
    // The same with another number and only a content type.
    body["data"]["order_id"] = json!(8);
    body["id"] = json!("written-by-hand");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("content-type", "application/cloudevents+json");
    let subject = format!("{namespace}.evt.orders.placed.v1");
    client.publish_with_headers(subject, headers, body.to_string().into()).await.expect("sent");
    assert_eq!(told.recv().await, Some(8));
}
