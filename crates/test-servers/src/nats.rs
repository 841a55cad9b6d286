//! Starts a NATS server with JetStream.

use crate::nats_jwt::{Keys, Operator};
use crate::process::{Place, Process, started};
use crate::{Certificates, Error, ErrorKind, Generation, Result, Tls, spawner};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// A running NATS server; also its [`Process`].
#[derive(Debug)]
pub struct Nats {
    process: Process,
    options: NatsOptions,
    certificates: Option<Certificates>,
    seed: Option<String>,
    creds: Option<PathBuf>,
}

/// Options for a NATS server; by default JetStream is on with file storage, and every client may connect.
#[derive(Debug, Clone, Default)]
pub struct NatsOptions {
    generation: Generation,
    tls: Tls,
    who: Who,
    without_jetstream: bool,
    fsync: bool,
    max_payload: Option<u64>,
    data_limit: Option<u32>,
    lines: String,
}

/// A user, and its permissions in the server's own syntax: all permissions when the text is empty.
#[derive(Debug, Clone)]
struct User {
    name: String,
    password: String,
    permissions: String,
}

/// The clients that may connect.
#[derive(Debug, Clone, Default)]
enum Who {
    #[default]
    Everybody,
    Users(Vec<User>),
    Token(String),
    Nkey,
    Creds,
}

impl Nats {
    /// Returns the default options.
    pub fn options() -> NatsOptions {
        NatsOptions::default()
    }

    /// Returns the server of this generation that all tests of this process share. Tests must not stop it.
    ///
    /// # Panics
    /// When it cannot be started; the message contains the reason and the remedy.
    pub async fn shared(generation: Generation) -> &'static Self {
        static SHARED: [OnceCell<Nats>; 2] = [const { OnceCell::const_new() }; 2];
        let start = || async { Self::options().generation(generation).start().await };
        let server = SHARED[generation as usize].get_or_try_init(start).await;
        server.unwrap_or_else(|error| panic!("no shared NATS server: {error}"))
    }

    /// Returns the URL, with the first user's name and password or the token: `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        match &self.options.who {
            Who::Users(users) => self.url_of(&users[0].name, &users[0].password),
            Who::Token(token) => format!("{}://{token}@127.0.0.1:{}", self.scheme(), self.port()),
            _ => self.bare_url(),
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

    /// Returns the certificates, when TLS is on.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Returns the seed of the only key that may connect, when [`NatsOptions::nkey`] is set.
    pub fn nkey_seed(&self) -> Option<&str> {
        self.seed.as_deref()
    }

    /// Returns the only credentials file that may connect, when [`NatsOptions::creds`] is set.
    pub fn creds_file(&self) -> Option<&Path> {
        self.creds.as_deref()
    }

    fn scheme(&self) -> &'static str {
        if self.options.tls == Tls::Off { "nats" } else { "tls" }
    }
}

impl Deref for Nats {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl NatsOptions {
    /// Sets the generation; default [`Generation::Old`].
    #[must_use]
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// Sets TLS; default off.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Adds a user with all permissions. The first user is in [`Nats::url`].
    #[must_use]
    pub fn user(self, name: &str, password: &str) -> Self {
        self.user_with(name, password, String::new())
    }

    /// Adds a user who may neither publish nor subscribe to these subjects.
    #[must_use]
    pub fn restricted_user(self, name: &str, password: &str, denied: &[&str]) -> Self {
        let deny = format!("{{ deny: {denied:?} }}");
        self.user_with(name, password, format!("{{ publish: {deny}, subscribe: {deny} }}"))
    }

    /// Adds a user who may publish and subscribe to these subjects only.
    #[must_use]
    pub fn allowed_user(self, name: &str, password: &str, publish: &[String], subscribe: &[String]) -> Self {
        let permissions = format!("{{ publish: {publish:?}, subscribe: {subscribe:?} }}");
        self.user_with(name, password, permissions)
    }

    fn user_with(mut self, name: &str, password: &str, permissions: String) -> Self {
        let user = User { name: name.to_owned(), password: password.to_owned(), permissions };
        match &mut self.who {
            Who::Users(users) => users.push(user),
            who => *who = Who::Users(vec![user]),
        }
        self
    }

    /// Allows only clients with this token to connect.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.who = Who::Token(token.to_owned());
        self
    }

    /// Allows only one key pair to connect: [`Nats::nkey_seed`].
    #[must_use]
    pub fn nkey(mut self) -> Self {
        self.who = Who::Nkey;
        self
    }

    /// Sets operator mode: only the user of one credentials file may connect: [`Nats::creds_file`].
    #[must_use]
    pub fn creds(mut self) -> Self {
        self.who = Who::Creds;
        self
    }

    /// Runs core NATS without JetStream.
    #[must_use]
    pub fn without_jetstream(mut self) -> Self {
        self.without_jetstream = true;
        self
    }

    /// Makes JetStream sync each message before it confirms (`sync_interval: always`); needs NATS 2.10.
    #[must_use]
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// Sets the maximum message size in bytes, headers included; NATS' default is 1 MiB.
    #[must_use]
    pub fn max_payload(mut self, bytes: u64) -> Self {
        self.max_payload = Some(bytes);
        self
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
    /// When it is not installed, too old for the options, or does not start.
    pub async fn start(self) -> Result<Nats> {
        let program = self.generation.program("nats-server", "nats-server")?;
        if self.fsync && self.generation == Generation::Old {
            let text = "JetStream's sync_interval needs NATS 2.10: use Generation::New";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let keys = match &self.who {
            Who::Nkey => Some(Keys::user()?),
            _ => None,
        };
        let operator = match &self.who {
            Who::Creds => Some(Operator::new()?),
            _ => None,
        };
        let process = started(|| {
            let place = Place::new("nats", self.data_limit, 1)?;
            let certificates = self.certificates(&place)?;
            let text = self.text(&place, certificates.as_ref(), keys.as_ref(), operator.as_ref());
            let file = place.folder.write("nats.conf", &text)?;
            let port = place.ports[0].number();
            let program = program.clone();
            let launch = move || {
                let mut command = spawner::command(&program, None);
                command.arg("-c").arg(&file);
                command
            };
            Ok(Process::new("nats-server", place, Box::new(launch), Box::new(move || Box::pin(greets(port)))))
        })
        .await?;
        let certificates = (self.tls != Tls::Off).then(|| Certificates::of(process.folder()));
        let creds = match operator {
            Some(operator) => {
                let path = process.folder().join("user.creds");
                let written = std::fs::write(&path, operator.creds());
                written.map_err(|e| Error::system(format!("cannot write {}", path.display()), e))?;
                Some(path)
            }
            None => None,
        };
        Ok(Nats { process, certificates, seed: keys.map(|keys| keys.seed), creds, options: self })
    }

    fn certificates(&self, place: &Place) -> Result<Option<Certificates>> {
        if self.tls == Tls::Off { Ok(None) } else { Certificates::make(&place.folder).map(Some) }
    }

    /// Returns the text of the configuration file.
    fn text(
        &self,
        place: &Place,
        certificates: Option<&Certificates>,
        keys: Option<&Keys>,
        operator: Option<&Operator>,
    ) -> String {
        use std::fmt::Write;
        let mut text =
            format!("listen: \"127.0.0.1:{0}\"\nserver_name: \"test-{0}\"\n", place.ports[0].number());
        if !self.without_jetstream {
            let sync = if self.fsync { "sync_interval: always" } else { "" };
            let store = place.folder.data();
            let _ = writeln!(text, "jetstream {{ store_dir: {store:?}\n max_mem: 256M\n {sync} }}");
        }
        if let Some(bytes) = self.max_payload {
            let _ = writeln!(text, "max_payload: {bytes}");
        }
        if let Some(files) = certificates {
            let (cert, key, ca) = (&files.server, &files.server_key, &files.ca);
            let verify = self.tls == Tls::Mutual;
            let _ = writeln!(
                text,
                "tls {{ cert_file: {cert:?}\n key_file: {key:?}\n ca_file: {ca:?}\n verify: {verify} }}"
            );
        }
        match &self.who {
            Who::Everybody => {}
            Who::Token(token) => {
                let _ = writeln!(text, "authorization {{ token: {token:?} }}");
            }
            Who::Users(users) => {
                let _ = writeln!(text, "authorization {{ users: [");
                for User { name, password, permissions } in users {
                    let _ = write!(text, "  {{ user: {name:?}, password: {password:?}");
                    if !permissions.is_empty() {
                        let _ = write!(text, ", permissions: {permissions}");
                    }
                    let _ = writeln!(text, " }}");
                }
                let _ = writeln!(text, "] }}");
            }
            Who::Nkey => {
                let public = keys.map_or("", |keys| &keys.public);
                let _ = writeln!(text, "authorization {{ users: [ {{ nkey: {public} }} ] }}");
            }
            Who::Creds => text.push_str(&operator.map(Operator::configuration).unwrap_or_default()),
        }
        text + &self.lines
    }
}

/// Checks readiness: a NATS server sends `INFO` first, before TLS.
async fn greets(port: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut start = [0; 5];
    stream.read_exact(&mut start).await?;
    if &start == b"INFO " { Ok(()) } else { Err(io::Error::other("it does not speak NATS")) }
}
