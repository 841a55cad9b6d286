//! A RabbitMQ server, without plugins: Erlang is run directly, which halves the start-up time.

use crate::process::{Place, Process, started};
use crate::{Certificates, Error, ErrorKind, Generation, Result, Tls, rabbit_node};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::sleep;

/// How long the server may take to answer an [`eval`](Rabbit::eval).
const ANSWERED: Duration = Duration::from_secs(20);

/// A running RabbitMQ server; also its [`Process`].
#[derive(Debug)]
pub struct Rabbit {
    process: Process,
    options: RabbitOptions,
    certificates: Option<Certificates>,
    questions: AtomicU64,
    shell: Mutex<()>,
}

/// What a RabbitMQ server is started with; [`Rabbit::options`] has the user `guest` with password `guest`.
#[derive(Debug, Clone, Default)]
pub struct RabbitOptions {
    pub(crate) generation: Generation,
    pub(crate) tls: Tls,
    pub(crate) plugins: Vec<String>,
    pub(crate) data_limit: Option<u32>,
    pub(crate) schedulers: Option<u32>,
    pub(crate) lines: String,
}

impl Rabbit {
    /// Options to start one with.
    pub fn options() -> RabbitOptions {
        RabbitOptions::default()
    }

    /// The one server of this generation that all tests of this process share. Nobody may stop it; tests are kept
    /// apart by [`vhost`](Self::vhost).
    ///
    /// # Panics
    /// When it cannot be started; the message says why and what to do.
    pub async fn shared(generation: Generation) -> &'static Self {
        static SHARED: [OnceCell<Rabbit>; 2] = [const { OnceCell::const_new() }; 2];
        let start = || async { Self::options().generation(generation).start().await };
        let server = SHARED[generation as usize].get_or_try_init(start).await;
        server.unwrap_or_else(|error| panic!("no shared RabbitMQ server: {error}"))
    }

    /// How to reach its first vhost, `/`: `amqp://guest:guest@127.0.0.1:PORT/%2F`.
    pub fn url(&self) -> String {
        self.url_of("guest", "guest", "/")
    }

    /// The same with another name, password and vhost (letters, digits, `-`, `_`, or `/`).
    pub fn url_of(&self, user: &str, password: &str, vhost: &str) -> String {
        let scheme = if self.options.tls == Tls::Off { "amqp" } else { "amqps" };
        let vhost = vhost.replace('/', "%2F");
        format!("{scheme}://{user}:{password}@127.0.0.1:{}/{vhost}", self.port())
    }

    /// The certificates, where it speaks TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Makes a vhost that `guest` may use, where it is not there, and returns its URL. Takes some 20 ms.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub async fn vhost(&self, name: &str) -> Result<String> {
        self.eval(&format!("rabbit_vhost:add({}, <<\"test\">>)", binary(name))).await?;
        self.permit("guest", name, [".*"; 3]).await?;
        Ok(self.url_of("guest", "guest", name))
    }

    /// Removes a vhost with everything in it.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub async fn delete_vhost(&self, name: &str) -> Result<()> {
        self.eval(&format!("rabbit_vhost:delete({}, <<\"test\">>)", binary(name))).await.map(drop)
    }

    /// Makes a user who may do nothing yet.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub async fn user(&self, name: &str, password: &str) -> Result<()> {
        let (name, password) = (binary(name), binary(password));
        self.eval(&format!("rabbit_auth_backend_internal:add_user({name}, {password}, <<\"test\">>)"))
            .await
            .map(drop)
    }

    /// Says what a user may do in a vhost: patterns of the names to configure, to write and to read.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub async fn permit(&self, user: &str, vhost: &str, patterns: [&str; 3]) -> Result<()> {
        let [configure, write, read] = patterns.map(binary);
        let (user, vhost) = (binary(user), binary(vhost));
        let call = format!(
            "rabbit_auth_backend_internal:set_permissions({user}, {vhost}, {configure}, {write}, {read}, <<\"test\">>)"
        );
        self.eval(&call).await.map(drop)
    }

    /// Has the server evaluate an Erlang expression and returns the result as text. The server's standard input is an
    /// Erlang shell: this takes a millisecond where `rabbitmqctl eval` takes a second.
    ///
    /// # Errors
    /// When the server does not run, or does not answer within 20 s, or the expression fails.
    pub async fn eval(&self, expression: &str) -> Result<String> {
        let _turn = self.shell.lock().await;
        let number = self.questions.fetch_add(1, Ordering::Relaxed);
        let answer = self.folder().join(format!("answer-{number}"));
        let (file, part) = (answer.display(), answer.with_extension("part"));
        let part = part.display();
        let command = format!(
            "begin file:write_file(\"{part}\", unicode:characters_to_binary(io_lib:format(\"~0tp\", \
             [try {{ok, begin {expression} end}} catch C_{number}:R_{number} -> {{C_{number}, R_{number}}} end]))), \
             file:rename(\"{part}\", \"{file}\") end.\n"
        );
        self.write(&command).map_err(|e| Error::system("cannot reach RabbitMQ's shell", e))?;
        let end = Instant::now() + ANSWERED;
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&answer) {
                let _ = std::fs::remove_file(&answer);
                break text;
            }
            if Instant::now() > end || !self.is_running() {
                let text = format!("RabbitMQ did not evaluate {expression}");
                return Err(Error::new(ErrorKind::Control, text));
            }
            sleep(Duration::from_millis(1)).await;
        };
        match text.strip_prefix("{ok,").and_then(|text| text.strip_suffix('}')) {
            Some(value) => Ok(value.to_owned()),
            None => Err(Error::new(ErrorKind::Control, format!("RabbitMQ evaluated {expression} to {text}"))),
        }
    }
}

impl Deref for Rabbit {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl RabbitOptions {
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

    /// Enables a plugin that comes with the server, such as `rabbitmq_auth_mechanism_ssl`.
    #[must_use]
    pub fn plugin(mut self, name: &str) -> Self {
        self.plugins.push(name.to_owned());
        self
    }

    /// Its data may take so many MiB, on a file system of its own: for disks that are full. Needs root.
    ///
    /// RabbitMQ blocks publishers when less than 50 MB are free; `line("disk_free_limit.absolute = …")` changes that.
    #[must_use]
    pub fn data_limit(mut self, mib: u32) -> Self {
        self.data_limit = Some(mib);
        self
    }

    /// How many threads Erlang runs on; default one for each core.
    #[must_use]
    pub fn schedulers(mut self, count: u32) -> Self {
        self.schedulers = Some(count);
        self
    }

    /// Adds a line to its configuration file (`rabbitmq.conf`).
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// Starts it and waits until it is ready: some 3 s.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start(self) -> Result<Rabbit> {
        let node = rabbit_node::Files::find(self.generation)?;
        let process = started(|| {
            // AMQP, and two for Erlang's distribution.
            let place = Place::new("rabbit", self.data_limit, 3)?;
            if self.tls != Tls::Off {
                Certificates::make(&place.folder)?;
            }
            rabbit_node::process(&node, &self, place)
        })
        .await?;
        let certificates = (self.tls != Tls::Off).then(|| Certificates::of(process.folder()));
        let (questions, shell) = (AtomicU64::new(0), Mutex::new(()));
        Ok(Rabbit { process, certificates, questions, shell, options: self })
    }
}

/// An Erlang binary of this text.
fn binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}
