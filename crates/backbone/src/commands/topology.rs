//! `backbone topology`: compares the topics and groups that services need with the bus, creates them, and deletes
//! groups.

use std::io::Read;
use std::process::ExitCode;

use anyhow::Context;
use event_client::transport::{Action, Change, GroupNeed, Subscribe, Topology};
use serde_json::json;

use super::connect::connect;
use crate::args::{self, Global, Needs};
use terminal::Output;

/// Exit code of a plan with changes, as other planning tools use it.
const SOMETHING: u8 = 2;

pub(crate) async fn run(global: &Global, args: args::Topology, output: Output) -> anyhow::Result<ExitCode> {
    let (needs, apply) = match args {
        args::Topology::Plan(needs) => (needs, false),
        args::Topology::Apply(needs) => (needs, true),
        args::Topology::Delete { groups, yes } => return delete(global, groups, yes, output).await,
    };
    let wanted = read(needs)?;
    let bus = connect(global).await?;
    let changes = if apply { bus.admin().apply(wanted).await? } else { bus.admin().plan(wanted).await? };
    let blocked = changes.iter().filter(|change| change.action == Action::Blocked).count();
    if output.is_json() {
        changes.iter().try_for_each(|change| output.json(change))?;
    } else if changes.is_empty() {
        output.line("no changes: the bus has all topics and groups")?;
    } else {
        changes.iter().try_for_each(|change| show(change, apply, output))?;
        if blocked > 0 {
            output.line(&format!(
                "{blocked} blocked: they differ in properties that cannot be changed; delete them manually, then apply again"
            ))?;
        } else if !apply {
            output.line("`backbone topology apply` makes these changes")?;
        }
    }
    bus.close().await?;
    Ok(match (apply, changes.len(), blocked) {
        (false, 1.., _) => ExitCode::from(SOMETHING),
        (true, _, 1..) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Deletes groups, or shows what would be deleted. All of them must exist before the first one is deleted.
async fn delete(global: &Global, names: Vec<String>, yes: bool, output: Output) -> anyhow::Result<ExitCode> {
    let bus = connect(global).await?;
    let known = bus.admin().groups().await?;
    let chosen = names
        .iter()
        .map(|name| {
            let found = known.iter().find(|status| status.group.as_str() == name);
            found.with_context(|| format!("unknown group `{name}`; `backbone lag` lists all groups"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for status in &chosen {
        let unsettled = status.waiting + status.in_flight;
        if yes {
            bus.admin().delete_group(status.group.clone()).await?;
        }
        if output.is_json() {
            output.json(&json!({"group": status.group.as_str(), "unsettled": unsettled, "deleted": yes}))?;
        } else {
            let word = if yes { "deleted" } else { "would delete" };
            output.line(&format!("{} group {}, {unsettled} unsettled", output.bold(word), status.group))?;
        }
    }
    bus.close().await?;
    if !yes {
        anyhow::bail!("nothing was deleted; add --yes to delete");
    }
    Ok(ExitCode::SUCCESS)
}

fn show(change: &Change, done: bool, output: Output) -> anyhow::Result<()> {
    let word = match (change.action, done) {
        (Action::Create, false) => "create",
        (Action::Create, true) => "created",
        (Action::Update, false) => "update",
        (Action::Update, true) => "updated",
        _ => "blocked",
    };
    output.line(&format!("{} {}", output.bold(word), change.object))?;
    Ok(change.differences.iter().try_for_each(|difference| output.line(&format!("    {difference}")))?)
}

/// Returns the topology of the file or of the flags, or of both together.
fn read(needs: Needs) -> anyhow::Result<Topology> {
    let mut topology = match &needs.file {
        None => Topology::default(),
        Some(path) => {
            let text = if path.as_os_str() == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
                text
            } else {
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?
            };
            serde_json::from_str(&text).with_context(|| format!("{} is not a topology", path.display()))?
        }
    };
    topology.topics.extend(needs.topics.iter().map(Into::into));
    if let Some(group) = needs.group {
        topology.groups.push(GroupNeed {
            group: group.into(),
            filters: needs.filters.iter().map(Into::into).collect(),
            keyed: needs.keyed,
            lease_ms: Subscribe::DEFAULT_LEASE.as_millis() as u64,
        });
    }
    Ok(topology)
}
