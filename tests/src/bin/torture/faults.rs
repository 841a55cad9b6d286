//! The faults, which a seeded generator selects; each is over when its function returns.

use crate::Result;
use crate::broker::Broker;
use crate::options::{On, Options};
use crate::team::Team;
use crate::work::LEASE;
use fastrand::Rng;
use std::io::Write;
use std::time::Duration;
use test_servers::Direction;
use tokio::time::sleep;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fault {
    ServerKilled,
    ServerRestarted,
    ServerPaused,
    ConnectionsCut,
    HalfOpen,
    PacketsHeld,
    NetworkSlow,
    DiskFull,
    WorkerKilled,
    WorkerFrozen,
    PublisherKilled,
}

impl Fault {
    const ALL: [Self; 11] = [
        Self::ServerKilled,
        Self::ServerRestarted,
        Self::ServerPaused,
        Self::ConnectionsCut,
        Self::HalfOpen,
        Self::PacketsHeld,
        Self::NetworkSlow,
        Self::DiskFull,
        Self::WorkerKilled,
        Self::WorkerFrozen,
        Self::PublisherKilled,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ServerKilled => "server-killed",
            Self::ServerRestarted => "server-restarted",
            Self::ServerPaused => "server-paused",
            Self::ConnectionsCut => "connections-cut",
            Self::HalfOpen => "half-open",
            Self::PacketsHeld => "packets-held",
            Self::NetworkSlow => "network-slow",
            Self::DiskFull => "disk-full",
            Self::WorkerKilled => "worker-killed",
            Self::WorkerFrozen => "worker-frozen",
            Self::PublisherKilled => "publisher-killed",
        }
    }

    /// Returns the faults that this broker supports and that the options select.
    pub(crate) fn of(options: &Options, broker: &Broker) -> Result<Vec<Self>> {
        if let Some(name) =
            options.only.iter().find(|name| !Self::ALL.iter().any(|fault| fault.name() == **name))
        {
            return Err(
                format!("there is no fault {name:?}: {}", Self::ALL.map(Self::name).join(", ")).into()
            );
        }
        let possible = |fault: &Self| match fault {
            Self::WorkerKilled | Self::WorkerFrozen | Self::PublisherKilled => true,
            // The older RabbitMQ loses messages that it has confirmed: its log has holes afterwards, and its
            // queues crash on them.
            Self::DiskFull if options.on == On::Rabbitmq && !options.new => false,
            Self::DiskFull => broker.ballast().is_some(),
            // While the disk is busy Redis holds back its writes, unless it syncs each: they are lost with a
            // kill.
            Self::ServerKilled if options.on == On::Redis => options.fsync,
            _ => broker.process().is_some(),
        };
        let asked =
            |fault: &Self| options.only.is_empty() || options.only.iter().any(|name| name == fault.name());
        let all: Vec<Self> = Self::ALL.into_iter().filter(possible).filter(asked).collect();
        if all.is_empty() { Err("none of these faults can happen here".into()) } else { Ok(all) }
    }

    /// Causes the fault, and ends it.
    pub(crate) async fn strike(self, broker: &Broker, team: &mut Team, random: &mut Rng) -> Result<()> {
        let mut moment = |range: std::ops::Range<u64>| Duration::from_millis(random.u64(range));
        match self {
            Self::WorkerKilled => return team.replace_worker(random.usize(..2)).await,
            Self::WorkerFrozen => {
                let time = LEASE + moment(200..3000);
                return team.freeze_worker(random.usize(..2), time).await;
            }
            Self::PublisherKilled => return team.replace_publisher().await,
            _ => {}
        }
        let (server, network) = (broker.process().ok_or("no server")?, broker.proxy().ok_or("no network")?);
        match self {
            Self::ServerKilled => {
                server.kill().await?;
                sleep(moment(0..3000)).await;
                server.start().await?;
            }
            Self::ServerRestarted => server.restart().await?,
            Self::ServerPaused => {
                server.pause()?;
                sleep(moment(500..10_000)).await;
                server.resume()?;
            }
            Self::ConnectionsCut => network.cut(),
            Self::HalfOpen => {
                let time = moment(1000..8000);
                network.swallow([Direction::Up, Direction::Down, Direction::Both][random.usize(..3)]);
                sleep(time).await;
                network.heal();
            }
            Self::PacketsHeld => {
                let time = moment(1000..8000);
                network.hold([Direction::Up, Direction::Down, Direction::Both][random.usize(..3)]);
                sleep(time).await;
                network.heal();
            }
            Self::NetworkSlow => {
                let (latency, time) = (moment(5..80), moment(1000..5000));
                network.slow(Direction::Both, latency, random.u64(16..256) * 1024);
                sleep(time).await;
                network.heal();
            }
            Self::DiskFull => {
                let path = broker.ballast().ok_or("no disk to fill")?;
                fill(&path)?;
                sleep(moment(1000..4000)).await;
                std::fs::remove_file(&path)?;
                // The operator's reaction: some servers end, some stop working until they are restarted, and
                // NATS 2.9 does not even end on SIGTERM.
                if broker.hangs_when_full() {
                    server.kill().await?;
                    server.start().await?;
                } else {
                    server.restart().await?;
                }
            }
            Self::WorkerKilled | Self::WorkerFrozen | Self::PublisherKilled => {}
        }
        Ok(())
    }
}

/// Writes until the disk is full.
fn fill(path: &std::path::Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    let block = vec![0; 1024 * 1024];
    while file.write_all(&block).is_ok() {}
    // The remaining space, smaller than a block.
    while file.write_all(&block[..512]).is_ok() {}
    Ok(())
}
