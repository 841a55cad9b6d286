//! Command-line arguments of the `backbone` binary.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use service_kit::config::Url;

use crate::times::{From, Moment, duration};

/// Event bus, task queue and log aggregator in one process, with command-line tools
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
  backbone up                                   run all parts in one process; log viewer at http://127.0.0.1:5000
  backbone demo --once                          run two reference systems and print a report
  backbone pub orders.placed.v1 '{\"order_id\": 7, \"cents\": 1200}'
  backbone sub 'orders.>' --group audit         receive events as the durable group `audit`
  backbone tail 'orders.>' --since 10m          show past events of the last 10 minutes, then new ones
  backbone lag                                  show how many events wait in each group
  backbone dlq ls --group billing.orders.placed
";

/// Arguments of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Bus URL: `memory:`, `sqlite:PATH`, `nats://`, `redis://`, `amqp://`; with TLS `tls://`, `rediss://`, `amqps://`;
    /// options as `?name=value&…`, described in `event_client::transport::docs`; default: the variable EVENT_BUS_URL, or
    /// `sqlite:backbone-data/bus.db`
    #[arg(long, global = true)]
    pub(crate) url: Option<Url>,
    /// Print one JSON object per line instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Global {
    /// Returns the URL of the bus: of `--url`, else of `EVENT_BUS_URL`, else the default. Every command that reads no
    /// settings file uses it, so that the bus and the task store beside it belong together.
    pub(crate) fn bus_url(&self) -> String {
        chosen(self.url.as_ref(), std::env::var("EVENT_BUS_URL").ok())
    }
}

/// Chooses a bus URL. An empty variable counts as unset, as in the settings of `up`.
fn chosen(flag: Option<&Url>, variable: Option<String>) -> String {
    let given = flag.map(|url| url.expose().to_owned());
    given
        .or(variable.filter(|url| !url.is_empty()))
        .unwrap_or_else(|| event_client::Bus::DEFAULT_URL.to_owned())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run all parts in one process: bus, task worker, scheduler, log aggregator and log viewer
    Up(Up),
    /// Run two reference systems on the backbone and report whether every count matches
    Demo(Demo),
    /// Publish an event
    Pub(Publish),
    /// Receive events, as a durable group or without acknowledging them
    Sub(Subscribe),
    /// Show past and new events without acknowledging them
    Tail(Tail),
    /// Show stored events of a period, or deliver them to one group again
    Replay(Replay),
    /// Show the state of every group: events that wait, are in flight, are retried or are dead
    Lag(Lag),
    /// List, show, replay or delete dead letters
    #[command(subcommand)]
    Dlq(DeadLetters),
    /// List, retry or delete events in a service's outbox that cannot be published
    #[command(subcommand)]
    Outbox(crate::commands::outbox::Outbox),
    /// Run workers and the scheduler, call tasks and inspect them, with the names of Celery's commands
    #[command(subcommand)]
    Task(task_queue::command::TaskCommand),
    /// Query or follow stored log records
    #[command(subcommand)]
    Logs(Logs),
    /// Write or check the JSON Schemas and golden samples of the shared events
    #[command(subcommand)]
    Schema(Schema),
    /// Compare the topics and groups that services need with the bus, create them, or delete groups
    #[command(subcommand)]
    Topology(Topology),
    /// Check whether the bus is reachable, writable, healthy and durable, and whether groups or tasks lack a consumer
    Doctor,
}

#[derive(Debug, Args)]
#[command(after_help = SETTINGS)]
pub(crate) struct Up {
    /// Directory of the bus file, the task store and the logs; default: the variable BACKBONE_DATA_DIR, or
    /// `backbone-data`
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address to listen on; an address other than loopback requires --allow-unauthenticated; default: the variable
    /// LOGTHON_HOST, or 127.0.0.1
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Listen on addresses other than loopback although the server has no login: every client that can connect may
    /// read, write and delete; same as LOGTHON_ALLOW_UNAUTHENTICATED=true
    #[arg(long, visible_alias = "without-login")]
    pub(crate) allow_unauthenticated: bool,
    /// Host names that clients may use, in addition to localhost and addresses, separated by commas:
    /// `backbone,logs.example`; `*` allows any name; default: the variable LOGTHON_ALLOWED_HOSTS
    #[arg(long = "allowed-host", value_delimiter = ',', value_name = "NAME")]
    pub(crate) allowed_hosts: Vec<String>,
    /// Origins of web pages that may send changes and open WebSockets, separated by commas:
    /// `https://ops.example:8443`; default: the variable LOGTHON_ALLOWED_ORIGINS
    #[arg(long = "allowed-origin", value_delimiter = ',', value_name = "ORIGIN")]
    pub(crate) allowed_origins: Vec<String>,
    /// TCP port of Logthon's API and the log viewer; 0 selects a free port; default: the variable LOGTHON_PORT or
    /// PORT, or 5000
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Time between the stop signal and the stop of the first part, during which /ready answers 503 and the port
    /// still accepts connections; default: the variable BACKBONE_SHUTDOWN_NOTICE, or 0s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) shutdown_notice: Option<Duration>,
}

const SETTINGS: &str = "\
The variable BACKBONE__CONFIG names a TOML file with settings. Every key of it can be set by a variable as well,
`http.port` by BACKBONE__HTTP__PORT. A flag takes precedence over a variable, a variable over the file.
";

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Stop automatically within 60 s, print the report, and exit with an error unless every count matches
    #[arg(long)]
    pub(crate) once: bool,
    /// Directory of all data; default `backbone-demo`, with --once a temporary directory
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// TCP port of the log viewer; default 5000, with --once a free port
    #[arg(long)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Subject of the event, with its version: orders.placed.v1
    pub(crate) subject: String,
    /// Data of the event as JSON; with `-` or without this argument, one JSON value per line is read from standard
    /// input, up to 256 lines ahead of the publish confirmations; the first refused line ends the command
    pub(crate) data: Option<String>,
    /// Id of the event; default: a new id
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Store only one event with this id within the dedup window
    #[arg(long)]
    pub(crate) dedup: bool,
    /// Ordering key; events with the same key are delivered in order
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Time to wait before the delivery: `5s`, `10m`; default: none
    #[arg(long, value_parser = duration)]
    pub(crate) delay: Option<Duration>,
    /// Time after which the event is not delivered any more: `30s`, `1h`; default: never
    #[arg(long, value_parser = duration)]
    pub(crate) expires_in: Option<Duration>,
    /// Additional header, `name=value`; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<String>,
    /// Encoding of the data: `json` or `msgpack`
    #[arg(long, default_value = "json")]
    pub(crate) codec: event_client::codec::Codec,
}

#[derive(Debug, Args)]
pub(crate) struct Subscribe {
    /// Subject patterns to receive; `*` matches one token, `>` all remaining tokens
    #[arg(default_value = ">")]
    pub(crate) patterns: Vec<String>,
    /// Durable group in which to receive and acknowledge events; without it, events are only shown
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// First event of a new group: `new`, `earliest`, a time, a duration ago such as `10m`, or a position
    #[arg(long, default_value = "new")]
    pub(crate) from: From,
    /// Number of events after which to stop; default: no limit
    #[arg(long)]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Subject patterns to show; `*` matches one token, `>` all remaining tokens
    #[arg(default_value = ">")]
    pub(crate) patterns: Vec<String>,
    /// First event to show: `new`, `earliest`, a time, or a duration ago such as `10m`
    #[arg(long, default_value = "new")]
    pub(crate) since: From,
    /// Number of events after which to stop; default: no limit
    #[arg(long)]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Subject patterns to show; `*` matches one token, `>` all remaining tokens
    #[arg(default_value = ">")]
    pub(crate) patterns: Vec<String>,
    /// First event: `earliest`, a time, a duration ago such as `10m`, or a position
    #[arg(long, default_value = "earliest")]
    pub(crate) from: From,
    /// End of the period: a time, or a duration ago such as `5m`; default now
    #[arg(long)]
    pub(crate) to: Option<Moment>,
    /// Group to which all events since `--from` are delivered again, instead of being shown
    #[arg(long)]
    pub(crate) group: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Lag {
    /// Group to show; default: all groups
    pub(crate) group: Option<String>,
}

const TOPOLOGY: &str = "\
Examples:
  billing --topology | backbone topology plan -    show what the bus lacks for the service; exit code 2 if anything
  backbone topology apply billing.json             create it, then the service may run with provision=verify
  backbone topology plan --group billing.orders --filter 'orders.>' --keyed
  backbone topology delete billing.orders --yes    delete the group permanently, with all events that wait in it

The JSON is the output of `Service::topology()`:
  {\"topics\": [\"orders\"], \"groups\": [{\"group\": \"billing.orders\", \"filters\": [\"orders.>\"], \"keyed\": true}]}
";

#[derive(Debug, Subcommand)]
#[command(after_help = TOPOLOGY)]
pub(crate) enum Topology {
    /// Show missing and different objects without changing them; exit code 2 if there are any
    #[command(after_help = TOPOLOGY)]
    Plan(Needs),
    /// Create missing objects and change different ones; never deletes anything
    #[command(after_help = TOPOLOGY)]
    Apply(Needs),
    /// Delete durable groups and all events that wait in them; their dead letters are kept
    Delete {
        /// Groups to delete, as `backbone lag` lists them
        #[arg(required = true)]
        groups: Vec<String>,
        /// Delete the groups; without this flag, only show what would be deleted
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Needs {
    /// File with the topology as JSON; `-` reads standard input
    #[arg(required_unless_present_any = ["group", "topics"])]
    pub(crate) file: Option<PathBuf>,
    /// Group that is needed, instead of a file
    #[arg(long, requires = "filters")]
    pub(crate) group: Option<String>,
    /// Subject pattern that the group receives; may be given several times
    #[arg(long = "filter", value_name = "PATTERN", requires = "group")]
    pub(crate) filters: Vec<String>,
    /// The group keeps the order of events with the same key
    #[arg(long, requires = "group")]
    pub(crate) keyed: bool,
    /// Topic to which the service publishes; may be given several times
    #[arg(long = "topic", value_name = "TOPIC")]
    pub(crate) topics: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// List dead letters
    Ls(Choice),
    /// Show one dead letter with its data
    Show {
        /// Id of the dead letter
        id: String,
    },
    /// Deliver dead letters again to the group that failed on them, and to no other group
    Replay(Choice),
    /// Delete dead letters
    Drop(Choice),
}

#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// Ids of dead letters
    pub(crate) ids: Vec<String>,
    /// Only dead letters of this group
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Only dead letters whose subject matches this pattern
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// Only dead letters with this reason: exhausted, permanent, undecodable, unknown-type, unknown-version,
    /// unauthorised, crash-loop
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Maximum number of dead letters, oldest first; 0 is no limit
    #[arg(long, default_value_t = 0)]
    pub(crate) limit: usize,
    /// Select all dead letters; required to replay or drop without another condition
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Logs {
    /// Find the latest stored records
    Query(LogFilter),
    /// Follow new records as they are stored
    Tail(LogFilter),
}

#[derive(Debug, Args)]
pub(crate) struct LogFilter {
    /// Words that all must appear in a record
    pub(crate) text: Option<String>,
    /// Only records of this service; may be given several times
    #[arg(long)]
    pub(crate) service: Vec<String>,
    /// Minimum level: debug, info, warn, error
    #[arg(long)]
    pub(crate) level: Option<String>,
    /// Only records of this trace id
    #[arg(long)]
    pub(crate) trace: Option<String>,
    /// Only records of this correlation id
    #[arg(long)]
    pub(crate) correlation: Option<String>,
    /// Only records since this time: a duration ago such as `10m`, or a time
    #[arg(long)]
    pub(crate) since: Option<Moment>,
    /// Maximum number of records, default 100; with `tail`, of newest stored records to show first, default 10
    #[arg(long)]
    pub(crate) limit: Option<u32>,
    /// URL of the log aggregator
    #[arg(long, env = "BACKBONE_LOGS_URL", hide_env_values = true, default_value = "http://127.0.0.1:5000")]
    pub(crate) server: Url,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Write schemas and golden samples generated from the types in the code
    Gen {
        /// Directory of the schemas and samples
        #[arg(long, default_value = "schemas")]
        dir: PathBuf,
    },
    /// Compare the schemas and samples in a directory with the code; fails when they differ
    Check {
        /// Directory of the schemas and samples
        #[arg(long, default_value = "schemas")]
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let variable = |text: &str| Some(text.to_owned());
        assert_eq!(chosen(Some(&Url::new("memory:")), variable("nats://h")), "memory:");
        assert_eq!(chosen(None, variable("nats://h")), "nats://h");
        for unset in [None, variable("")] {
            assert_eq!(chosen(None, unset), event_client::Bus::DEFAULT_URL);
        }
    }
}
