//! Starts a PostgreSQL server.

use crate::process::{Place, Process, started};
use crate::{Certificates, Error, ErrorKind, Generation, Result, Tls, spawner};
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

/// A running PostgreSQL server; also its [`Process`]. There is one generation: the system's.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    options: PostgresOptions,
    certificates: Option<Certificates>,
    programs: PathBuf,
}

/// Options for a PostgreSQL server.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    tls: Tls,
    data_limit: Option<u32>,
    lines: String,
}

/// The user that runs PostgreSQL when this process is root, because PostgreSQL refuses to run as root.
const USER: &str = "postgres";

impl Postgres {
    /// Returns the default options.
    pub fn options() -> PostgresOptions {
        PostgresOptions::default()
    }

    /// Returns the server that all tests of this process share. Tests must not stop it; each uses a separate
    /// [`database`](Self::database).
    ///
    /// # Panics
    /// When it cannot be started; the message contains the reason and the remedy.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        let server = SHARED.get_or_try_init(|| async { Self::options().start().await }).await;
        server.unwrap_or_else(|error| panic!("no shared PostgreSQL server: {error}"))
    }

    /// Returns the URL of the first database: `postgres://postgres:secret@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> String {
        self.url_of(USER, "secret", "postgres")
    }

    /// Returns the URL with another name, password and database.
    pub fn url_of(&self, user: &str, password: &str, database: &str) -> String {
        let tls = if self.options.tls == Tls::Off { "" } else { "?sslmode=require" };
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}{tls}", self.port())
    }

    /// Returns the certificates, when TLS is on.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Creates a database and returns its URL. The name is an SQL identifier in lower case.
    ///
    /// # Errors
    /// As [`sql`](Self::sql).
    pub async fn database(&self, name: &str) -> Result<String> {
        self.sql(&format!("CREATE DATABASE {name}")).await?;
        Ok(self.url_of(USER, "secret", name))
    }

    /// Runs one statement in the first database with `psql` and returns its output.
    ///
    /// # Errors
    /// When the statement fails; the text contains PostgreSQL's error.
    pub async fn sql(&self, statement: &str) -> Result<String> {
        let mut command = Command::new(self.programs.join("psql"));
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            USER,
            "-d",
            "postgres",
            "-c",
            statement,
        ]);
        command.arg("-h").arg(self.folder()).arg("-p").arg(self.port().to_string());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("psql is waited for");
        let output = output.map_err(|e| Error::system("cannot run psql", e))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(Error::new(ErrorKind::Control, String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

impl Deref for Postgres {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl PostgresOptions {
    /// Sets TLS; default off. With TLS on, connections without TLS are refused.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
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

    /// Starts the server and waits until it is ready, which takes about 2 s.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start(self) -> Result<Postgres> {
        let programs = programs()?;
        let user = rustix::process::geteuid().is_root().then_some(USER);
        let process = started(|| {
            let place = Place::new("postgres", self.data_limit, 1)?;
            let data = place.folder.data().join("cluster");
            self.prepare(&programs, user, &place, &data)?;
            let socket = place.folder.path().join(format!(".s.PGSQL.{}", place.ports[0].number()));
            let program = programs.join("postgres");
            let launch = move || {
                let mut command = spawner::command(&program, user);
                command.arg("-D").arg(&data);
                command
            };
            let probe = move || -> std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
                Box::pin(answers(socket.clone()))
            };
            Ok(Process::new("postgres", place, Box::new(launch), Box::new(probe)))
        })
        .await?;
        let certificates = (self.tls != Tls::Off).then(|| Certificates::of(process.folder()));
        Ok(Postgres { process, certificates, programs, options: self })
    }

    /// Creates the cluster and its configuration.
    fn prepare(&self, programs: &Path, user: Option<&str>, place: &Place, data: &Path) -> Result<()> {
        use std::fmt::Write;
        let folder = place.folder.path();
        if let Some(user) = user {
            let owner = user_id(user)?;
            for path in [folder, &place.folder.data()] {
                chown(path, Some(owner), None)
                    .map_err(|e| Error::system(format!("cannot give {} to {user}", path.display()), e))?;
            }
        }
        place.folder.write("password", "secret\n")?;
        let mut command = spawner::command(&programs.join("initdb"), user);
        command
            .args(["-U", USER, "-A", "scram-sha-256", "--no-sync", "--no-locale", "-E", "UTF8", "-D"])
            .arg(data);
        command.arg(format!("--pwfile={}", folder.join("password").display())).current_dir(folder);
        let output = command.output().map_err(|e| Error::system("cannot run initdb", e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(ErrorKind::Start, format!("initdb failed: {}", said.trim())));
        }
        let port = place.ports[0].number();
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\n",
            folder.display()
        );
        let mut access = "local all all trust\n".to_owned();
        if self.tls == Tls::Off {
            access.push_str("host all all 127.0.0.1/32 scram-sha-256\n");
        } else {
            let files = Certificates::make(&place.folder)?;
            let key = own_key(&files.server_key, data, user)?;
            let (cert, ca, key) = (files.server.display(), files.ca.display(), key.display());
            let _ = writeln!(
                text,
                "ssl = on\nssl_cert_file = '{cert}'\nssl_key_file = '{key}'\nssl_ca_file = '{ca}'"
            );
            let client = if self.tls == Tls::Mutual { " clientcert=verify-ca" } else { "" };
            let _ = writeln!(access, "hostssl all all 127.0.0.1/32 scram-sha-256{client}");
        }
        let write = |name: &str, text: &str| -> Result<()> {
            fs::write(data.join(name), text).map_err(|e| Error::system(format!("cannot write {name}"), e))
        };
        write("postgresql.auto.conf", &(text + &self.lines))?;
        write("pg_hba.conf", &access)
    }
}

/// Copies the key, because PostgreSQL requires that it owns its key and that other users cannot read it.
fn own_key(key: &Path, data: &Path, user: Option<&str>) -> Result<PathBuf> {
    let own = data.join("server.key");
    let copy = || -> io::Result<()> {
        fs::copy(key, &own)?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o600))
    };
    copy().map_err(|e| Error::system(format!("cannot copy the key to {}", own.display()), e))?;
    if let Some(user) = user {
        chown(&own, Some(user_id(user)?), None).map_err(|e| Error::system("cannot give the key away", e))?;
    }
    Ok(own)
}

/// Returns the folder of the programs of the newest PostgreSQL version.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, path)| path.join("initdb").is_file())
        .max();
    match newest {
        Some((_, path)) => Ok(path),
        // On other systems than Debian the programs are on the path.
        None => Generation::Old.program("initdb", "postgresql").map(|path| path.with_file_name("")),
    }
}

fn user_id(name: &str) -> Result<u32> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|line| line[0] == name);
    line.and_then(|line| line.get(2)?.parse().ok()).ok_or_else(|| Generation::Old.missing(name, "postgresql"))
}

/// Starts a login without a password: the server is ready when it requests a password or accepts the login
/// (`R`); a server that is still recovering answers with an error (`E`).
async fn answers(socket: PathBuf) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(body.len() + 4).expect("it is short");
    stream.write_all(&[&length.to_be_bytes()[..], body].concat()).await?;
    let mut kind = [0; 1];
    stream.read_exact(&mut kind).await?;
    if kind == *b"R" { Ok(()) } else { Err(io::Error::other("it is not ready for connections")) }
}
