//! Starts a RabbitMQ server without plugins: Erlang is run directly, which halves the start-up time.

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

/// Options for a RabbitMQ server; by default there is the user `guest` with password `guest`.
#[derive(Debug, Clone, Default)]
pub struct RabbitOptions {
    generation: Generation,
    data_limit: Option<u32>,
    node: rabbit_node::Options,
}

impl Rabbit {
    /// Returns the default options.
    pub fn options() -> RabbitOptions {
        RabbitOptions::default()
    }

    /// Returns the server of this generation that all tests of this process share. Tests must not stop it;
    /// each uses a separate [`vhost`](Self::vhost).
    ///
    /// # Panics
    /// When it cannot be started; the message contains the reason and the remedy.
    pub async fn shared(generation: Generation) -> &'static Self {
        static SHARED: [OnceCell<Rabbit>; 2] = [const { OnceCell::const_new() }; 2];
        let start = || async { Self::options().generation(generation).start().await };
        let server = SHARED[generation as usize].get_or_try_init(start).await;
        server.unwrap_or_else(|error| panic!("no shared RabbitMQ server: {error}"))
    }

    /// Returns the URL of the first vhost, `/`: `amqp://guest:guest@127.0.0.1:PORT/%2F`.
    pub fn url(&self) -> String {
        self.url_of("guest", "guest", "/")
    }

    /// Returns the URL with another name, password and vhost (letters, digits, `-`, `_`, or `/`).
    pub fn url_of(&self, user: &str, password: &str, vhost: &str) -> String {
        let scheme = if self.options.node.tls == Tls::Off { "amqp" } else { "amqps" };
        let vhost = vhost.replace('/', "%2F");
        format!("{scheme}://{user}:{password}@127.0.0.1:{}/{vhost}", self.port())
    }

    /// Returns the certificates, when TLS is on.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Creates a vhost that `guest` may use, when it does not exist, and returns its URL. Takes about 20 ms.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub async fn vhost(&self, name: &str) -> Result<String> {
        self.eval(&format!("rabbit_vhost:add({}, <<\"test\">>)", binary(name))).await?;
        self.permit("guest", name, [".*"; 3]).await?;
        Ok(self.url_of("guest", "guest", name))
    }

    /// Deletes a vhost with everything in it.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub async fn delete_vhost(&self, name: &str) -> Result<()> {
        self.eval(&format!("rabbit_vhost:delete({}, <<\"test\">>)", binary(name))).await.map(drop)
    }

    /// Creates a user without any permission.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub async fn user(&self, name: &str, password: &str) -> Result<()> {
        let (name, password) = (binary(name), binary(password));
        self.eval(&format!("rabbit_auth_backend_internal:add_user({name}, {password}, <<\"test\">>)"))
            .await
            .map(drop)
    }

    /// Sets a user's permissions in a vhost: patterns of the names to configure, to write and to read.
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

    /// Makes the server evaluate an Erlang expression and returns the result as text. The server's standard
    /// input is an Erlang shell: this takes a millisecond where `rabbitmqctl eval` takes a second.
    ///
    /// # Errors
    /// When the server is not running, or does not answer within 20 s, or the expression fails.
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
    /// Sets the generation; default [`Generation::Old`].
    #[must_use]
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// Sets TLS; default off. With TLS on, there is no port without TLS.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.node.tls = tls;
        self
    }

    /// Enables a plugin that comes with the server, such as `rabbitmq_auth_mechanism_ssl`.
    #[must_use]
    pub fn plugin(mut self, name: &str) -> Self {
        self.node.plugins.push(name.to_owned());
        self
    }

    /// Limits the data to `mib` MiB, on a separate file system: for tests with a full disk. Needs root.
    ///
    /// RabbitMQ blocks publishers when less than 50 MB are free; `line("disk_free_limit.absolute = …")` changes that.
    #[must_use]
    pub fn data_limit(mut self, mib: u32) -> Self {
        self.data_limit = Some(mib);
        self
    }

    /// Sets the number of threads of Erlang's scheduler; default one for each core.
    #[must_use]
    pub fn schedulers(mut self, count: u32) -> Self {
        self.node.schedulers = Some(count);
        self
    }

    /// Adds a line to the configuration file (`rabbitmq.conf`).
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.node.lines.push_str(line);
        self.node.lines.push('\n');
        self
    }

    /// Starts the server and waits until it is ready, which takes about 3 s.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start(self) -> Result<Rabbit> {
        let node = rabbit_node::Files::find(self.generation)?;
        let process = started(|| {
            // One port for AMQP, and two for Erlang's distribution.
            let place = Place::new("rabbit", self.data_limit, 3)?;
            if self.node.tls != Tls::Off {
                Certificates::make(&place.folder)?;
            }
            rabbit_node::process(&node, &self.node, place)
        })
        .await?;
        let certificates = (self.node.tls != Tls::Off).then(|| Certificates::of(process.folder()));
        let (questions, shell) = (AtomicU64::new(0), Mutex::new(()));
        Ok(Rabbit { process, certificates, questions, shell, options: self })
    }
}

/// Returns an Erlang binary with this text.
fn binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}
