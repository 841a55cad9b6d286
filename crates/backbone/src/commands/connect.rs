//! Opens the bus that a command works on.

use event_client::Bus;
use event_client::bus::Settings;
use service_kit::config::Url;

use crate::args::Global;

/// Opens the bus of `--url`.
pub(super) async fn connect(global: &Global) -> anyhow::Result<Bus> {
    let settings = Settings { source: "/backbone-cli".into(), ..Settings::default() };
    Ok(Bus::from_env_with(global.url.as_ref().map(Url::expose), settings).await?)
}
