//! Starts a Redis server (or another server with its protocol).

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

/// Options for a Redis server; by default it has an append-only file that is synced each second.
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
    /// Returns the default options.
    pub fn options() -> RedisOptions {
        RedisOptions::default()
    }

    /// Returns the server of this generation that all tests of this process share. Tests must not stop it.
    ///
    /// # Panics
    /// When it cannot be started; the message contains the reason and the remedy.
    pub async fn shared(generation: Generation) -> &'static Self {
        static SHARED: [OnceCell<Redis>; 2] = [const { OnceCell::const_new() }; 2];
        let start = || async { Self::options().generation(generation).start().await };
        let server = SHARED[generation as usize].get_or_try_init(start).await;
        server.unwrap_or_else(|error| panic!("no shared Redis server: {error}"))
    }

    /// Returns the URL, with the first user's name and password: `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        match self.options.users.first() {
            Some((name, password, _)) => self.url_of(name, password),
            None => self.bare_url(),
        }
    }

    /// Returns the URL with another name and password.
    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("{}://{user}:{password}@127.0.0.1:{}", self.scheme(), self.port())
    }

    /// Returns the URL without credentials.
    pub fn bare_url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.port())
    }

    /// Returns the path of the server's program.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        self.options.generation.program("redis-server", "redis-server")
    }

    /// Returns the certificates, when TLS is on.
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
    /// Sets the generation; default [`Generation::Old`].
    #[must_use]
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// Sets TLS; default off. With TLS on, there is no port without TLS.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Adds a user with all permissions; clients without a user name are refused then. The first user is in
    /// [`Redis::url`].
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

    /// Makes the server sync before it answers (`appendfsync always`).
    #[must_use]
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// Turns persistence off: nothing is kept over a restart.
    #[must_use]
    pub fn without_persistence(mut self) -> Self {
        self.without_persistence = true;
        self
    }

    /// Makes the server evict keys when its memory is full: `maxmemory` of `mib` MiB and `allkeys-lru`.
    #[must_use]
    pub fn evicting(self, mib: u32) -> Self {
        self.line(&format!("maxmemory {mib}mb")).line("maxmemory-policy allkeys-lru")
    }

    /// Makes the server a replica of `master`, which must have no users.
    #[must_use]
    pub fn replica_of(self, master: &Redis) -> Self {
        self.line(&format!("replicaof 127.0.0.1 {}", master.port()))
    }

    /// Limits the data to `mib` MiB, on a separate file system: for tests with a full disk. Needs root.
    #[must_use]
    pub fn data_limit(mut self, mib: u32) -> Self {
        self.data_limit = Some(mib);
        self
    }

    /// Adds a line to the configuration file.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// Starts the server and waits until it is ready.
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

    /// Returns the text of the configuration file.
    fn text(&self, place: &Place, certificates: Option<&Certificates>) -> String {
        use std::fmt::Write;
        let (port, data, socket) =
            (place.ports[0].number(), place.folder.data(), socket(place.folder.path()));
        let mut text = format!("bind 127.0.0.1\ndir {data:?}\nunixsocket {socket:?}\ndaemonize no\n");
        // `notice` is Redis' default level; without a new title the process keeps its command line, by which
        // tests find it.
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

/// Checks readiness with `PING` through the socket file, because the port may require TLS. An error that a
/// login is required counts as ready, too; `-LOADING` means not yet.
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
