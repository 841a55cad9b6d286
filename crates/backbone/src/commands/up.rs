//! `backbone up`: runs all parts in one process.

use std::process::ExitCode;
use std::time::Duration;

use service_kit::config::{Loader, Url, duration};

use crate::args::{Global, Up};
use crate::config::{self, Settings};
use crate::stack::{Options, Stack};
use terminal::Output;

pub(crate) async fn run(global: &Global, args: Up, output: Output) -> anyhow::Result<ExitCode> {
    let settings = flags(config::loader(), global, &args).load::<Settings>()?.into_inner();
    let data_dir = args.data_dir.unwrap_or(settings.data_dir);
    let options = Options {
        data_dir: data_dir.clone(),
        http: settings.http,
        url: settings.bus.url,
        log: settings.log,
        logs: settings.logs,
        shutdown: settings.shutdown,
        leftovers: Duration::ZERO,
    };
    let stack = Stack::start(options, |worker, _| worker, Vec::new()).await?;
    let viewer = format!("http://{}/", stack.address);
    if output.is_json() {
        output.json(&serde_json::json!({"viewer": viewer, "data_dir": data_dir, "bus": stack.bus.capabilities().name}))?;
    } else {
        output.line(&format!("{:<14}{}", "log viewer", output.bold(&viewer)))?;
        output.line(&format!("{:<14}{}", "data", data_dir.display()))?;
        output.line(&output.dim("Ctrl-C drains and stops the process"))?;
    }
    let report = stack.run().await;
    tracing::info!("{report}");
    Ok(report.exit_code())
}

/// Adds the flags, except `--data-dir`, whose value need not be UTF-8.
fn flags(loader: Loader, global: &Global, args: &Up) -> Loader {
    let list = |names: &[String]| (!names.is_empty()).then(|| names.join(","));
    loader
        .flag("--url", "bus.url", global.url.as_ref().map(Url::expose))
        .flag("--host", "http.host", args.host.as_ref())
        .flag("--port", "http.port", args.port)
        .flag(
            "--allow-unauthenticated",
            "http.allow_unauthenticated",
            args.allow_unauthenticated.then_some(true),
        )
        .flag("--allowed-host", "http.allowed_hosts", list(&args.allowed_hosts))
        .flag("--allowed-origin", "http.allowed_origins", list(&args.allowed_origins))
        .flag("--shutdown-notice", "shutdown.notice", args.shutdown_notice.map(duration::format))
}
