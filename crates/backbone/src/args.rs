//! The command line as types.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use event_client::message::Position;
use event_client::transport::Start;
use jiff::{SignedDuration, Timestamp};
use service_kit::config::Url;

/// Events, tasks and logs in one backbone.
#[derive(Debug, Parser)]
#[command(name = "backbone", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  backbone up                                   everything in one process; the log viewer at http://127.0.0.1:5000
  backbone demo --once                          real traffic through it, with a report
  backbone pub orders.placed.v1 '{\"order_id\": 7, \"cents\": 1200}'
  backbone sub 'orders.>' --group audit         handle events as the durable group `audit`
  backbone tail 'orders.>' --since 10m          what happened, and what happens
  backbone lag                                  how far every group is
  backbone dlq ls --group billing.orders.placed
";

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Where the bus is: `sqlite:PATH`, `nats://`, `redis://`, `amqp://` (or `tls://`, `rediss://`, `amqps://`), or `memory:`
    /// for one process; default `sqlite:backbone-data/bus.db`
    #[arg(long, global = true, env = "EVENT_BUS_URL", hide_env_values = true)]
    pub(crate) url: Option<Url>,
    /// One JSON object per line instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Global {
    /// The bus to talk to.
    pub(crate) fn bus_url(&self) -> &str {
        self.url.as_ref().map_or(event_client::Bus::DEFAULT_URL, Url::expose)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process: bus, worker, scheduler, log aggregator and viewer
    Up(Up),
    /// Run two real systems through it and report whether every count adds up
    Demo(Demo),
    /// Publish an event
    Pub(Publish),
    /// Receive events, as a durable group or just looking
    Sub(Subscribe),
    /// Show past and new events without taking any
    Tail(Tail),
    /// Show a stretch of the past, or send it to one group again
    Replay(Replay),
    /// How far every group is
    Lag(Lag),
    /// Dead letters
    #[command(subcommand)]
    Dlq(DeadLetters),
    /// Events staged in a service's database: those that cannot be published
    #[command(subcommand)]
    Outbox(crate::commands::outbox::Outbox),
    /// Tasks: worker, beat, call, result, inspect and more, in Celery's words
    #[command(subcommand)]
    Task(task_queue::command::TaskCommand),
    /// Stored logs
    #[command(subcommand)]
    Logs(Logs),
    /// JSON Schemas and golden samples of the shared events
    #[command(subcommand)]
    Schema(Schema),
    /// What services need to stand on the bus: show what is missing or differs, or make it so
    #[command(subcommand)]
    Topology(Topology),
    /// Check the bus: reachable, writable, healthy, durable
    Doctor,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where everything is kept
    #[arg(long, env = "BACKBONE_DATA_DIR", default_value = "backbone-data")]
    pub(crate) data_dir: PathBuf,
    /// Address to listen on; anything but loopback needs --allow-unauthenticated
    #[arg(long, env = "LOGTHON_HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Listen on more than loopback although there is no login: whoever reaches the port reads, writes and deletes
    #[arg(long, visible_alias = "without-login", env = "LOGTHON_ALLOW_UNAUTHENTICATED",
          value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_unauthenticated: bool,
    /// Names by which clients address this server, beside localhost and addresses: `backbone,logs.example`; `*` is any
    #[arg(long = "allowed-host", env = "LOGTHON_ALLOWED_HOSTS", value_delimiter = ',', value_name = "NAME")]
    pub(crate) allowed_hosts: Vec<String>,
    /// Origins of pages that may send changes and open WebSockets: `https://ops.example:8443`
    #[arg(
        long = "allowed-origin",
        env = "LOGTHON_ALLOWED_ORIGINS",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub(crate) allowed_origins: Vec<String>,
    /// Port of Logthon's API and the log viewer; 0 takes a free one; default the variable PORT, else 5000
    #[arg(long, env = "LOGTHON_PORT")]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Stop by itself within 60 s, print the report, and fail unless every count adds up
    #[arg(long)]
    pub(crate) once: bool,
    /// Where everything is kept; with --once a temporary folder unless given
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Port of the log viewer; with --once a free one unless given
    #[arg(long)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Name and version: orders.placed.v1
    pub(crate) subject: String,
    /// The data as JSON; `-` or nothing reads one JSON value per line from standard input, up to 256 lines ahead of the
    /// confirmations; the first line that is refused ends it
    pub(crate) data: Option<String>,
    /// The event's id, instead of a new one
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Store one event per id within the dedup window
    #[arg(long)]
    pub(crate) dedup: bool,
    /// Ordering key
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Deliver after this time: `5s`, `10m`
    #[arg(long)]
    pub(crate) delay: Option<SignedDuration>,
    /// Skip it when not delivered within this time
    #[arg(long)]
    pub(crate) expires_in: Option<SignedDuration>,
    /// A free header, `name=value`; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<String>,
    /// `json` or `msgpack`
    #[arg(long, default_value = "json")]
    pub(crate) codec: event_client::codec::Codec,
}

#[derive(Debug, Args)]
pub(crate) struct Subscribe {
    /// What to receive; `*` is one token, `>` the rest
    #[arg(default_value = ">")]
    pub(crate) patterns: Vec<String>,
    /// Take events as this durable group and acknowledge them; without it, only look
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Where a new group starts: `new`, `earliest`, a time, `10m` ago, or a position
    #[arg(long, default_value = "new")]
    pub(crate) from: From,
    /// Stop after so many events
    #[arg(long)]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// What to show
    #[arg(default_value = ">")]
    pub(crate) patterns: Vec<String>,
    /// Begin this far back: `10m`, a time, `earliest`
    #[arg(long, default_value = "new")]
    pub(crate) since: From,
    /// Stop after so many events
    #[arg(long)]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// What to show
    #[arg(default_value = ">")]
    pub(crate) patterns: Vec<String>,
    /// First: `earliest`, a time, `10m` ago, or a position
    #[arg(long, default_value = "earliest")]
    pub(crate) from: From,
    /// Last: a time or `5m` ago; default now
    #[arg(long)]
    pub(crate) to: Option<Moment>,
    /// Deliver everything since `--from` to this group again, instead of showing it
    #[arg(long)]
    pub(crate) group: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Lag {
    /// Only this group
    pub(crate) group: Option<String>,
}

const TOPOLOGY: &str = "\
Examples:
  billing --topology | backbone topology plan -    what the service lacks; exit code 2 when there is something
  backbone topology apply billing.json             make it so, then the service may run with provision=verify
  backbone topology plan --group billing.orders --filter 'orders.>' --keyed
  backbone topology delete billing.orders --yes    the group is gone for good, with all that waits for it

The JSON is what `Service::topology()` gives:
  {\"topics\": [\"orders\"], \"groups\": [{\"group\": \"billing.orders\", \"filters\": [\"orders.>\"], \"keyed\": true}]}
";

#[derive(Debug, Subcommand)]
#[command(after_help = TOPOLOGY)]
pub(crate) enum Topology {
    /// Show what is missing or differs, and change nothing; exit code 2 when there is something
    #[command(after_help = TOPOLOGY)]
    Plan(Needs),
    /// Create what is missing and change what differs; never deletes anything
    #[command(after_help = TOPOLOGY)]
    Apply(Needs),
    /// Delete durable groups and all that waits for them; their dead letters stay
    Delete {
        /// The groups, as `backbone lag` lists them
        #[arg(required = true)]
        groups: Vec<String>,
        /// Do it; without it, only show what would be lost
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Needs {
    /// A file with the topology as JSON; `-` is standard input
    #[arg(required_unless_present_any = ["group", "topics"])]
    pub(crate) file: Option<PathBuf>,
    /// A group, instead of a file
    #[arg(long, requires = "filters")]
    pub(crate) group: Option<String>,
    /// What the group receives; may be given several times
    #[arg(long = "filter", value_name = "PATTERN", requires = "group")]
    pub(crate) filters: Vec<String>,
    /// The group keeps the order per key
    #[arg(long, requires = "group")]
    pub(crate) keyed: bool,
    /// A topic that is published to; may be given several times
    #[arg(long = "topic", value_name = "TOPIC")]
    pub(crate) topics: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// List them
    Ls(Choice),
    /// Show one with its data
    Show {
        /// The letter
        id: String,
    },
    /// Send them to the group that failed, and to no other
    Replay(Choice),
    /// Delete them
    Drop(Choice),
}

#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// These letters
    pub(crate) ids: Vec<String>,
    /// Of this group
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Whose subject matches
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// With this reason: exhausted, permanent, undecodable, unknown-type, unknown-version, unauthorised, crash-loop
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// At most so many, oldest first
    #[arg(long, default_value_t = 0)]
    pub(crate) limit: usize,
    /// All of them: needed to replay or drop without any condition
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Logs {
    /// Find stored records, the latest first
    Query(LogFilter),
    /// Show records as they are stored
    Tail(LogFilter),
}

#[derive(Debug, Args)]
pub(crate) struct LogFilter {
    /// Words that all must appear
    pub(crate) text: Option<String>,
    /// Of this service; may be given several times
    #[arg(long)]
    pub(crate) service: Vec<String>,
    /// At least this level: debug, info, warn, error
    #[arg(long)]
    pub(crate) level: Option<String>,
    /// Of this trace
    #[arg(long)]
    pub(crate) trace: Option<String>,
    /// Of this flow
    #[arg(long)]
    pub(crate) correlation: Option<String>,
    /// Not older than this: `10m`, or a time
    #[arg(long)]
    pub(crate) since: Option<Moment>,
    /// At most so many; with `tail`, so many of the newest first
    #[arg(long)]
    pub(crate) limit: Option<u32>,
    /// The aggregator
    #[arg(long, env = "BACKBONE_LOGS_URL", hide_env_values = true, default_value = "http://127.0.0.1:5000")]
    pub(crate) server: Url,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Write schemas and golden samples from the types in the code
    Gen {
        /// The folder
        #[arg(long, default_value = "schemas")]
        dir: PathBuf,
    },
    /// Compare the folder with the code; fails when they differ
    Check {
        /// The folder
        #[arg(long, default_value = "schemas")]
        dir: PathBuf,
    },
}

/// A place to start from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From(pub(crate) Start);

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "new" => Start::New,
            "earliest" => Start::Earliest,
            _ if text.bytes().all(|b| b.is_ascii_digit()) => {
                Start::Position(text.parse::<Position>().map_err(|error| error.to_string())?)
            }
            _ => Start::Time(text.parse::<Moment>()?.0),
        }))
    }
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(pub(crate) Timestamp);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(time));
        }
        let ago: SignedDuration = text.parse().map_err(|_| {
            "takes a time such as 2026-01-31T12:00:00Z or how long ago, such as 10m".to_owned()
        })?;
        let now = Timestamp::now();
        let time = if ago.is_negative() { now.checked_add(ago) } else { now.checked_sub(ago) };
        time.map(Self).map_err(|error| error.to_string())
    }
}

/// A duration that must not be negative.
pub(crate) fn duration(value: SignedDuration) -> anyhow::Result<Duration> {
    Duration::try_from(value).map_err(|_| anyhow::anyhow!("a wait cannot be negative: {value:#}"))
}
