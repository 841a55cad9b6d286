//! `backbone outbox`: shows a service's outbox, and retries or deletes events that the bus refuses.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use event_client::outbox::{self, Counts, Dialect, SetAside};
use jiff::Timestamp;
use serde_json::{Value, json};
use service_kit::config::Url;
use sqlx::Pool;
#[cfg(feature = "postgres")]
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;

use terminal::{Output, plain};

#[derive(Debug, Subcommand)]
pub(crate) enum Outbox {
    /// Show the number of waiting events, and list the events that were set aside because the bus refuses them
    Ls {
        #[command(flatten)]
        database: Database,
        /// Maximum number of listed events, oldest first
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Publish events again that were set aside
    Retry(Choice),
    /// Delete events that were set aside; they will never be published
    Drop(Choice),
}

#[derive(Debug, Args)]
pub(crate) struct Database {
    /// URL of the service's database: `postgres://…` or `sqlite:PATH`
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database: Url,
}

#[derive(Debug, Args)]
pub(crate) struct Choice {
    #[command(flatten)]
    pub(crate) database: Database,
    /// Ids of the events
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(crate) ids: Vec<String>,
    /// Select all events that were set aside
    #[arg(long)]
    pub(crate) all: bool,
}

/// Longest time to connect to the database.
#[cfg(feature = "postgres")]
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

pub(crate) async fn run(command: Outbox, output: Output) -> anyhow::Result<()> {
    let url = match &command {
        Outbox::Ls { database, .. } => database.database.expose().to_owned(),
        Outbox::Retry(choice) | Outbox::Drop(choice) => choice.database.database.expose().to_owned(),
    };
    // The URL may contain a password: errors name only the kind of database.
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => {
            let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(DEADLINE).connect(&url).await;
            with(&pool.context("cannot open the PostgreSQL database")?, command, output).await
        }
        Some("sqlite") => {
            let pool = SqlitePoolOptions::new().max_connections(1).connect(&url).await;
            with(&pool.with_context(|| format!("cannot open `{url}`"))?, command, output).await
        }
        #[cfg(not(feature = "postgres"))]
        Some("postgres" | "postgresql") => {
            bail!("PostgreSQL is not in this build; build with the feature `postgres`")
        }
        _ => bail!("unsupported database URL; use `postgres://…` or `sqlite:PATH`"),
    }
}

async fn with<D: Dialect>(pool: &Pool<D>, command: Outbox, output: Output) -> anyhow::Result<()> {
    match command {
        Outbox::Ls { limit, .. } => {
            list(output, outbox::counts(pool).await?, &outbox::set_aside(pool, limit).await?)
        }
        Outbox::Retry(choice) => {
            let count = outbox::retry(pool, chosen(&choice)).await?;
            report(output, count, "retried", "queued for publishing again")
        }
        Outbox::Drop(choice) => {
            let count = outbox::discard(pool, chosen(&choice)).await?;
            report(output, count, "dropped", "deleted")
        }
    }
}

fn chosen(choice: &Choice) -> Option<&[String]> {
    (!choice.all).then_some(&choice.ids)
}

fn report(output: Output, count: u64, word: &str, text: &str) -> anyhow::Result<()> {
    if output.is_json() {
        return Ok(output.json(&json!({ word: count }))?);
    }
    Ok(output.line(&format!("{count} event{} {text}", if count == 1 { "" } else { "s" }))?)
}

fn time(milliseconds: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds).ok()
}

fn list(output: Output, counts: Counts, aside: &[SetAside]) -> anyhow::Result<()> {
    if output.is_json() {
        let (waiting, set_aside, oldest) = (counts.waiting, counts.set_aside, counts.oldest.and_then(time));
        output.json(&json!({ "waiting": waiting, "oldest": oldest, "set_aside": set_aside }))?;
        return Ok(aside.iter().try_for_each(|one| output.json(&summary(one)))?);
    }
    let oldest =
        counts.oldest.and_then(time).map(|at| format!(", the oldest since {}", at.strftime("%F %T")));
    output.line(&format!(
        "{} waiting{}; {} set aside",
        counts.waiting,
        oldest.unwrap_or_default(),
        counts.set_aside
    ))?;
    if aside.is_empty() {
        return Ok(());
    }
    let row = |one: &SetAside| {
        vec![
            plain(&one.row.id),
            time(one.row.created).map(|at| at.strftime("%F %T").to_string()).unwrap_or_default(),
            plain(&one.row.kind),
            plain(one.row.aggregateid.as_deref().unwrap_or("-")),
            one.row.payload.len().to_string(),
            plain(&one.error).chars().take(80).collect(),
        ]
    };
    let header = ["ID", "STAGED", "SUBJECT", "KEY", "BYTES", "ERROR"];
    Ok(output.table(&header, &aside.iter().map(row).collect::<Vec<_>>())?)
}

fn summary(one: &SetAside) -> Value {
    json!({
        "id": one.row.id, "subject": one.row.kind, "key": one.row.aggregateid, "staged_at": time(one.row.created),
        "bytes": one.row.payload.len(), "error": one.error,
    })
}
