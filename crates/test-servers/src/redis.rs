//! A Redis server (or one that speaks its protocol).

use crate::process::{Place, Process, started};
use crate::{Certificates, Generation, Result, Tls, spawner};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

/// A running Redis server; also its [`Process`].
#[derive(Debug)]
pub struct Redis {
    process: Process,
    options: RedisOptions,
    certificates: Option<Certificates>,
}

/// What a Redis server is started with; [`Redis::options`] has an append-only file that is synced each second.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    generation: Generation,
    tls: Tls,
    users: Vec<(String, String, String)>,
    fsync: bool,
    without_persistence: bool,
    data_limit: Option<u32>,
    lines: String,
}

impl Redis {
    /// Options to start one with.
    pub fn options() -> RedisOptions {
        RedisOptions::default()
    }

    /// The one server of this generation that all tests of this process share. Nobody may stop it.
    ///
    /// # Panics
    /// When it cannot be started; the message says why and what to do.
    pub async fn shared(generation: Generation) -> &'static Self {
        static SHARED: [OnceCell<Redis>; 2] = [const { OnceCell::const_new() }; 2];
        let start = || async { Self::options().generation(generation).start().await };
        let server = SHARED[generation as usize].get_or_try_init(start).await;
        server.unwrap_or_else(|error| panic!("no shared Redis server: {error}"))
    }

    /// How to reach it, with the first user's name and password: `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        match self.options.users.first() {
            Some((name, password, _)) => self.url_of(name, password),
            None => self.bare_url(),
        }
    }

    /// The same with another name and password.
    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("{}://{user}:{password}@127.0.0.1:{}", self.scheme(), self.port())
    }

    /// The same without any credentials.
    pub fn bare_url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.port())
    }

    /// The binary that it runs.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        self.options.generation.program("redis-server", "redis-server")
    }

    /// The certificates, where it speaks TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    fn scheme(&self) -> &'static str {
        if self.options.tls == Tls::Off { "redis" } else { "rediss" }
    }
}

impl Deref for Redis {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl RedisOptions {
    /// Which generation; default [`Generation::Old`].
    #[must_use]
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// TLS; default off. With TLS there is no port without it.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Adds a user who may do everything, and shuts out whoever gives no name. The first one is in [`Redis::url`].
    #[must_use]
    pub fn user(self, name: &str, password: &str) -> Self {
        self.acl_user(name, password, "~* &* +@all")
    }

    /// Adds a user with these ACL rules, such as `~orders* &* +@all -xadd`.
    #[must_use]
    pub fn acl_user(mut self, name: &str, password: &str, rules: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned(), rules.to_owned()));
        self
    }

    /// Syncs before it answers (`appendfsync always`).
    #[must_use]
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// Keeps nothing over a restart.
    #[must_use]
    pub fn without_persistence(mut self) -> Self {
        self.without_persistence = true;
        self
    }

    /// Throws keys away when its memory is full: `maxmemory` of so many MiB and `allkeys-lru`.
    #[must_use]
    pub fn evicting(self, mib: u32) -> Self {
        self.line(&format!("maxmemory {mib}mb")).line("maxmemory-policy allkeys-lru")
    }

    /// A replica of `master`, which has no users.
    #[must_use]
    pub fn replica_of(self, master: &Redis) -> Self {
        self.line(&format!("replicaof 127.0.0.1 {}", master.port()))
    }

    /// Its data may take so many MiB, on a file system of its own: for disks that are full. Needs root.
    #[must_use]
    pub fn data_limit(mut self, mib: u32) -> Self {
        self.data_limit = Some(mib);
        self
    }

    /// Adds a line to its configuration file.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start(self) -> Result<Redis> {
        let program = self.generation.program("redis-server", "redis-server")?;
        let process = started(|| {
            let place = Place::new("redis", self.data_limit, 1)?;
            let certificates = match self.tls {
                Tls::Off => None,
                _ => Some(Certificates::make(&place.folder)?),
            };
            let file = place.folder.write("redis.conf", &self.text(&place, certificates.as_ref()))?;
            let socket = socket(place.folder.path());
            let program = program.clone();
            let launch = move || {
                let mut command = spawner::command(&program, None);
                command.arg(&file);
                command
            };
            let probe = move || -> std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
                Box::pin(answers(socket.clone()))
            };
            Ok(Process::new("redis-server", place, Box::new(launch), Box::new(probe)))
        })
        .await?;
        let certificates = (self.tls != Tls::Off).then(|| Certificates::of(process.folder()));
        Ok(Redis { process, certificates, options: self })
    }

    /// The configuration file.
    fn text(&self, place: &Place, certificates: Option<&Certificates>) -> String {
        use std::fmt::Write;
        let (port, data, socket) =
            (place.ports[0].number(), place.folder.data(), socket(place.folder.path()));
        let mut text = format!("bind 127.0.0.1\ndir {data:?}\nunixsocket {socket:?}\ndaemonize no\n");
        // Warnings about the machine are not this test's business.
        text.push_str("loglevel notice\nset-proc-title no\n");
        match certificates {
            None => {
                let _ = writeln!(text, "port {port}");
            }
            Some(files) => {
                let clients = if self.tls == Tls::Mutual { "yes" } else { "no" };
                let (cert, key, ca) = (&files.server, &files.server_key, &files.ca);
                let _ = writeln!(text, "port 0\ntls-port {port}\ntls-auth-clients {clients}");
                let _ =
                    writeln!(text, "tls-cert-file {cert:?}\ntls-key-file {key:?}\ntls-ca-cert-file {ca:?}");
            }
        }
        if self.without_persistence {
            text.push_str("save \"\"\nappendonly no\n");
        } else {
            let sync = if self.fsync { "always" } else { "everysec" };
            let _ = writeln!(text, "save \"\"\nappendonly yes\nappendfsync {sync}");
        }
        if !self.users.is_empty() {
            text.push_str("user default off\n");
        }
        for (name, password, rules) in &self.users {
            let _ = writeln!(text, "user {name} on >{password} {rules}");
        }
        text + &self.lines
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

/// Asked through its socket file, because its port may want TLS. Who must log in first is answered, too; but
/// `-LOADING` means not yet.
async fn answers(socket: PathBuf) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).await?;
    match &answer[..read] {
        text if [&b"+PONG"[..], b"-NOAUTH", b"-NOPERM"].iter().any(|known| text.starts_with(known)) => Ok(()),
        text => Err(io::Error::other(String::from_utf8_lossy(text).trim().to_owned())),
    }
}
