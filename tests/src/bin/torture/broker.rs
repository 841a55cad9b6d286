//! The broker under test: a server behind a network that fails, or an SQLite file.

use crate::Result;
use crate::options::{On, Options};
use std::ops::Deref;
use std::path::PathBuf;
use test_servers::{Generation, Nats, Process, Proxy, Rabbit, Redis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The size of the server's data: enough for a run, small enough to be filled.
const DATA_MIB: u32 = 1024;

/// The bus under test, and the proxy in front of its server.
pub(crate) struct Broker {
    kind: Kind,
    proxy: Option<Proxy>,
    url: String,
    hangs_when_full: bool,
}

enum Kind {
    Sqlite(tempfile::TempDir),
    Nats(Nats),
    Redis(Redis),
    Rabbit(Rabbit),
}

impl Broker {
    pub(crate) async fn start(options: &Options) -> Result<Self> {
        let generation = if options.new { Generation::New } else { Generation::Old };
        // Only a separate file system can be filled; mounting one needs root.
        let limit = rustix::process::geteuid().is_root().then_some(DATA_MIB);
        let kind = match options.on {
            On::Sqlite => Kind::Sqlite(tempfile::tempdir()?),
            On::Nats => {
                let mut server = Nats::options().generation(generation).line("http: \"127.0.0.1:-1\"");
                server = if options.fsync { server.fsync() } else { server };
                server = if let Some(mib) = limit { server.data_limit(mib) } else { server };
                Kind::Nats(server.start().await?)
            }
            On::Redis => {
                let mut server = Redis::options().generation(generation);
                server = if options.fsync { server.fsync() } else { server };
                server = if let Some(mib) = limit { server.data_limit(mib) } else { server };
                Kind::Redis(server.start().await?)
            }
            On::Rabbitmq => {
                // By default the log of RabbitMQ's quorum queues would take half of the space before it is
                // first truncated.
                let mut server =
                    Rabbit::options().generation(generation).line("raft.wal_max_size_bytes = 64000000");
                server = if let Some(mib) = limit { server.data_limit(mib) } else { server };
                Kind::Rabbit(server.start().await?)
            }
        };
        let direct = match &kind {
            Kind::Sqlite(folder) => format!("sqlite:{}", folder.path().join("bus.db").display()),
            Kind::Nats(server) => server.url(),
            Kind::Redis(server) => server.url(),
            Kind::Rabbit(server) => server.url(),
        };
        let hangs_when_full = options.on == On::Nats && !options.new;
        let mut broker = Self { kind, proxy: None, url: direct, hangs_when_full };
        if let Some(port) = broker.process().map(Process::port) {
            let proxy = Proxy::start(port).await?;
            broker.url = proxy.url(&broker.url);
            broker.proxy = Some(proxy);
        }
        if options.on == On::Redis {
            // Housekeeping every second, so that the remains of killed workers are removed during the run.
            broker.url.push_str("?housekeeping_interval=1s");
        }
        Ok(broker)
    }

    /// Returns the bus URL, through the network that fails.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns whether only a kill ends the server after its disk was full.
    pub(crate) fn hangs_when_full(&self) -> bool {
        self.hangs_when_full
    }

    pub(crate) fn process(&self) -> Option<&Process> {
        match &self.kind {
            Kind::Sqlite(_) => None,
            Kind::Nats(server) => Some(server.deref()),
            Kind::Redis(server) => Some(server.deref()),
            Kind::Rabbit(server) => Some(server.deref()),
        }
    }

    pub(crate) fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Returns the path of a file that can fill the server's disk; none when that disk has no limit.
    pub(crate) fn ballast(&self) -> Option<PathBuf> {
        let process = self.process()?;
        rustix::process::geteuid().is_root().then(|| process.folder().join("data/ballast"))
    }

    /// Returns the server's own counters, for a soak: names and numbers.
    pub(crate) async fn counts(&self) -> Vec<(&'static str, u64)> {
        match &self.kind {
            Kind::Sqlite(_) => Vec::new(),
            Kind::Nats(server) => nats(server).await.unwrap_or_default(),
            Kind::Redis(server) => redis(server).await.unwrap_or_default(),
            Kind::Rabbit(server) => rabbit(server).await,
        }
    }
}

async fn ask(port: u16, question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(question.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn nats(server: &Nats) -> Option<Vec<(&'static str, u64)>> {
    let log = server.log();
    let line = log.lines().rev().find(|line| line.contains("Starting http monitor on"))?;
    let port = line.rsplit(':').next()?.trim().parse().ok()?;
    let mut counts = Vec::new();
    for (page, name) in
        [("varz", "connections"), ("varz", "subscriptions"), ("jsz", "streams"), ("jsz", "consumers")]
    {
        let text = ask(port, &format!("GET /{page} HTTP/1.0\r\n\r\n")).await.ok()?;
        let body: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
        counts.push((name, body[name].as_u64()?));
    }
    Some(counts)
}

async fn redis(server: &Redis) -> Option<Vec<(&'static str, u64)>> {
    let questions = "INFO clients\r\nDBSIZE\r\nXINFO GROUPS backbone:{torture}\r\nQUIT\r\n";
    let text = ask(server.port(), questions).await.ok()?;
    let number = |line: &str| line.trim().parse::<u64>().ok();
    let clients = text.lines().find_map(|line| line.strip_prefix("connected_clients:")).and_then(number)?;
    let keys = text.lines().find_map(|line| line.strip_prefix(':')).and_then(number)?;
    // For each group, the name of a number is on one line and the number on the next.
    let lines: Vec<&str> = text.lines().collect();
    let sum = |name: &str| {
        let numbers = lines.windows(2).filter(|pair| pair[0] == name);
        numbers.filter_map(|pair| number(pair[1].strip_prefix(':')?)).sum()
    };
    let (consumers, pending) = (sum("consumers"), sum("pending"));
    Some(vec![
        ("connections", clients),
        ("keys", keys),
        ("consumers", consumers),
        ("pending entries", pending),
    ])
}

async fn rabbit(server: &Rabbit) -> Vec<(&'static str, u64)> {
    let mut counts = Vec::new();
    for (name, list) in [
        ("queues", "rabbit_amqqueue:list()"),
        ("connections", "rabbit_networking:connections()"),
        ("channels", "rabbit_channel:list()"),
        ("consumers", "rabbit_amqqueue:consumers_all(<<\"/\">>)"),
    ] {
        let answer = server.eval(&format!("length({list})")).await;
        counts.extend(answer.ok().and_then(|text| text.parse().ok()).map(|count| (name, count)));
    }
    counts
}
