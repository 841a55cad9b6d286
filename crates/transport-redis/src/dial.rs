//! Opens connections to the Redis server: addresses, TLS, credentials, Sentinel.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, TlsCertificates, Value,
};

use super::config::{Config, Host, Server, Tls};
use super::error::{explain, odd, reply};
use event_transport::error::{Error, ErrorKind, Result};

/// Opens connections to one server or to the master behind sentinels.
pub(super) struct Dialer {
    hosts: Vec<Host>,
    tls: Option<TlsCertificates>,
    login: RedisConnectionInfo,
    /// Name of the master, and the credentials for its sentinels.
    sentinel: Option<(String, RedisConnectionInfo)>,
    pub(super) connect_timeout: Duration,
    pub(super) answer_timeout: Duration,
}

impl Dialer {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let Server { hosts, tls, user, password, db, sentinel, connect_timeout } = &config.server;
        let login = |user: &Option<String>, password: &Option<String>, db| {
            let mut login = RedisConnectionInfo::default().set_db(db);
            if let Some(user) = user {
                login = login.set_username(user);
            }
            match password {
                Some(password) => login.set_password(password),
                None => login,
            }
        };
        let sentinel = sentinel
            .as_ref()
            .map(|sentinel| (sentinel.master.clone(), login(&sentinel.user, &sentinel.password, 0)));
        let tls = match tls {
            None => None,
            Some(files) => {
                // The client uses the process's default provider. If another one is already installed, that one works
                // too.
                let _ = rustls::crypto::ring::default_provider().install_default();
                Some(certificates(files)?)
            }
        };
        Ok(Self {
            hosts: hosts.clone(),
            tls,
            login: login(user, password, *db),
            sentinel,
            connect_timeout: *connect_timeout,
            answer_timeout: config.publish_timeout,
        })
    }

    fn client(&self, host: &Host, login: &RedisConnectionInfo) -> Result<Client> {
        let addr = match (host, &self.tls) {
            (Host::Tcp(name, port), None) => ConnectionAddr::Tcp(bare(name), *port),
            (Host::Tcp(name, port), Some(_)) => {
                ConnectionAddr::TcpTls { host: bare(name), port: *port, insecure: false, tls_params: None }
            }
            (Host::Socket(path), _) => ConnectionAddr::Unix(path.clone()),
        };
        let info: ConnectionInfo = addr.into_connection_info().map_err(|error| explain(&error))?;
        let info =
            info.set_redis_settings(login.clone()).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        match &self.tls {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        }
        .map_err(|error| explain(&error))
    }

    /// Returns a client for the server that currently accepts writes.
    async fn master(&self) -> Result<Client> {
        let Some((name, login)) = &self.sentinel else { return self.client(&self.hosts[0], &self.login) };
        let mut last = None;
        for host in &self.hosts {
            match self.ask_sentinel(host, login, name).await {
                Ok(master) => return self.client(&master, &self.login),
                Err(error) => last = Some(error.with("sentinel", host)),
            }
        }
        Err(last.unwrap_or_else(|| odd("no sentinel")))
    }

    async fn ask_sentinel(&self, host: &Host, login: &RedisConnectionInfo, name: &str) -> Result<Host> {
        let mut connection = self.multiplexed(&self.client(host, login)?, Some(self.connect_timeout)).await?;
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("get-master-addr-by-name").arg(name);
        let answer = connection.send_packed_command(&ask).await.map_err(|error| explain(&error))?;
        match reply(answer)? {
            Value::Nil => {
                Err(Error::new(ErrorKind::Unavailable, "the sentinels monitor no master of this name")
                    .with("sentinel_master", name))
            }
            answer => {
                let (host, port): (String, u16) =
                    redis::from_redis_value(answer).map_err(|_| odd("a master's address"))?;
                Ok(Host::Tcp(host, port))
            }
        }
    }

    async fn multiplexed(&self, client: &Client, answer: Option<Duration>) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(answer)
            .set_pipeline_buffer_size(1024);
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| explain(&error).with("server", client.get_connection_info().addr()))
    }

    /// Opens a connection for commands that the server answers at once.
    pub(super) async fn commands(&self) -> Result<MultiplexedConnection> {
        let mut connection = self.multiplexed(&self.master().await?, Some(self.answer_timeout)).await?;
        if self.sentinel.is_some() {
            // A sentinel may still return the old master, which has become a replica or is about to become one.
            let role =
                connection.send_packed_command(&redis::cmd("ROLE")).await.map_err(|error| explain(&error))?;
            let is_master = matches!(&role, Value::Array(parts) if parts.first() == Some(&Value::BulkString(b"master".to_vec())));
            if !is_master {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the sentinels return a server that is not a master",
                ));
            }
        }
        Ok(connection)
    }

    /// Opens a connection that may block; returns it with its client id, which `CLIENT UNBLOCK` needs.
    pub(super) async fn blocking(&self) -> Result<(MultiplexedConnection, i64)> {
        let mut connection = self.multiplexed(&self.master().await?, None).await?;
        let mut ask = redis::cmd("CLIENT");
        ask.arg("ID");
        let id = ask_within(&mut connection, &ask, self.answer_timeout).await?;
        match id {
            Value::Int(id) => Ok((connection, id)),
            _ => Err(odd("a client's id")),
        }
    }

    /// Opens a connection for channel subscriptions.
    pub(super) async fn listening(&self) -> Result<PubSub> {
        let client = self.master().await?;
        match tokio::time::timeout(self.connect_timeout, client.get_async_pubsub()).await {
            Ok(result) => result.map_err(|error| explain(&error)),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the server did not answer in time")),
        }
    }
}

/// Runs a command with a deadline, on a connection that has no deadline of its own.
pub(super) async fn ask_within(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
    within: Duration,
) -> Result<Value> {
    match tokio::time::timeout(within, connection.send_packed_command(command)).await {
        Ok(result) => reply(result.map_err(|error| explain(&error))?),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the server did not answer in time")),
    }
}

/// An IPv6 address without its brackets.
fn bare(name: &str) -> String {
    name.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn certificates(files: &Tls) -> Result<TlsCertificates> {
    let read = |path: &Option<std::path::PathBuf>| {
        path.as_ref()
            .map(|path| {
                std::fs::read(path).map_err(|error| {
                    Error::new(ErrorKind::Config, "a PEM file cannot be read")
                        .with("file", path.display())
                        .because(error)
                })
            })
            .transpose()
    };
    let client_tls = match (read(&files.cert)?, read(&files.key)?) {
        (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
        _ => None,
    };
    Ok(TlsCertificates { client_tls, root_cert: read(&files.ca)? })
}
