//! Tests the set-up of logging in child processes, because a process can do it only once.

use crate::child::{Process, role};
use serde_json::Value;
use service_kit::ErrorKind;
use service_kit::config::Loader;
use service_kit::telemetry::{BoxedLayer, Settings, init};
use tracing::{Event, Subscriber, debug, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Program {
    log: Settings,
}

/// Replaces a log shipper: it only reports that it received an event.
struct Shipper;

impl<S: Subscriber> Layer<S> for Shipper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        eprintln!("shipped {}", event.metadata().level());
    }
}

fn program() {
    let settings = Loader::new("kit").load::<Program>().unwrap().into_inner();
    init(&settings.log, vec![Box::new(Shipper) as BoxedLayer]).unwrap();
    debug!("not for this level");
    info!(order = 7, "placed");
    warn!("odd");
    let _ = std::thread::spawn(|| panic!("a row")).join();
    assert_eq!(init(&settings.log, Vec::new()).unwrap_err().kind(), ErrorKind::Telemetry);
    eprintln!("done");
}

#[tokio::test]
async fn lines_are_json_and_layers_see_what_passes_the_filter() {
    if role().is_some() {
        return program();
    }
    let variables = [("LOG_LEVEL", "INFO"), ("RUST_LOG", ""), ("KIT__LOG__FORMAT", "json")];
    let mut process =
        Process::start("telemetry::lines_are_json_and_layers_see_what_passes_the_filter", "log", &variables);
    assert!(process.line("").await.contains("shipped INFO"), "the first line is not about debug");
    let line: Value = serde_json::from_str(&process.line("placed").await).unwrap();
    assert_eq!(
        (&line["level"], &line["message"], &line["order"]),
        (&"INFO".into(), &"placed".into(), &7.into())
    );
    process.line("shipped WARN").await;
    process.line("odd").await;
    process.line("shipped ERROR").await;
    let line: Value = serde_json::from_str(&process.line("panicked: a row").await).unwrap();
    assert!(line["panic.place"].as_str().unwrap().contains("telemetry.rs"), "{line}");
    process.line("done").await;
    assert!(process.exit().await.success());
}
