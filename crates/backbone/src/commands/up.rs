//! `backbone up`: runs all parts in one process.

use std::process::ExitCode;
use std::time::Duration;

use service_kit::http;

use crate::args::{Global, Up, duration};
use crate::stack::{Options, Stack};
use terminal::Output;

pub(crate) async fn run(global: &Global, args: Up, output: Output) -> anyhow::Result<ExitCode> {
    let port = match args.port {
        Some(port) => port,
        None => port_variable(std::env::var("PORT").ok().as_deref())?,
    };
    let options = Options {
        data_dir: args.data_dir.clone(),
        http: http::Settings {
            host: args.host,
            port,
            allow_unauthenticated: args.allow_unauthenticated,
            allowed_hosts: args.allowed_hosts,
            allowed_origins: args.allowed_origins,
        },
        url: global.url.clone(),
        log: crate::commands::log_settings()?,
        shutdown: service_kit::shutdown::Settings {
            notice: duration(args.shutdown_notice)?,
            ..Default::default()
        },
        leftovers: Duration::ZERO,
    };
    let stack = Stack::start(options, |worker, _| worker, Vec::new()).await?;
    let viewer = format!("http://{}/", stack.address);
    if output.is_json() {
        output.json(&serde_json::json!({"viewer": viewer, "data_dir": args.data_dir, "bus": stack.bus.capabilities().name}))?;
    } else {
        output.line(&format!("{:<14}{}", "log viewer", output.bold(&viewer)))?;
        output.line(&format!("{:<14}{}", "data", args.data_dir.display()))?;
        output.line(&output.dim("Ctrl-C drains and stops the process"))?;
    }
    let report = stack.run().await;
    tracing::info!("{report}");
    Ok(report.exit_code())
}

/// Returns the port in the variable `PORT`, which hosting platforms set; 5000 without it.
fn port_variable(value: Option<&str>) -> anyhow::Result<u16> {
    match value.filter(|value| !value.is_empty()) {
        None => Ok(5000),
        Some(value) => value
            .parse()
            .map_err(|_| anyhow::anyhow!("PORT is `{value}`; it has to be a port from 0 to 65535")),
    }
}
