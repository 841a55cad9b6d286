//! `backbone lag`: shows for each group how many events wait, are in flight, are retried or are dead.

use anyhow::bail;
use jiff::Timestamp;

use super::connect::connect;
use crate::args::{Global, Lag};
use terminal::{Output, age};

pub(crate) async fn run(global: &Global, args: Lag, output: Output) -> anyhow::Result<()> {
    let bus = connect(global).await?;
    let mut groups = bus.admin().groups().await?;
    if let Some(wanted) = &args.group {
        groups.retain(|status| status.group.as_str() == wanted);
        if groups.is_empty() {
            bail!("unknown group `{wanted}`; `backbone lag` lists all groups");
        }
    }
    if output.is_json() {
        groups.iter().try_for_each(|status| output.json(status))?;
    } else if groups.is_empty() {
        output.line("no durable groups yet; a service or `backbone sub --group NAME` creates one")?;
    } else {
        let now = Timestamp::now();
        let rows: Vec<_> = groups
            .iter()
            .map(|status| {
                let oldest = status.oldest_unsettled.map(|at| age(now.duration_since(at)));
                vec![
                    status.group.to_string(),
                    status.waiting.to_string(),
                    status.in_flight.to_string(),
                    status.retrying.to_string(),
                    status.dead.to_string(),
                    oldest.unwrap_or_else(|| "-".into()),
                    status.members.to_string(),
                    status.filters.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                ]
            })
            .collect();
        let header = ["GROUP", "WAITING", "IN FLIGHT", "RETRYING", "DEAD", "OLDEST", "MEMBERS", "RECEIVES"];
        output.table(&header, &rows)?;
    }
    Ok(bus.close().await?)
}
