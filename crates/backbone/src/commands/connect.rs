//! Opens the bus that a command works on.

use event_client::Bus;
use event_client::bus::Settings;

use crate::args::Global;

/// Opens the bus of `--url`, of the environment or of the default.
pub(super) async fn connect(global: &Global) -> anyhow::Result<Bus> {
    let settings = Settings { source: "/backbone-cli".into(), ..Settings::default() };
    Ok(Bus::from_env_with(Some(&global.bus_url()), settings).await?)
}
