//! The start of a RabbitMQ node: its files, its ports, and the arguments of Erlang.

use crate::process::{Place, Process};
use crate::{Certificates, Error, Generation, Result, Tls, spawner};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The installation folders of RabbitMQ and its Erlang.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    home: PathBuf,
    erlang: PathBuf,
    runtime: PathBuf,
}

/// The settings of a node; by default there is the user `guest` with password `guest`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) tls: Tls,
    pub(crate) plugins: Vec<String>,
    /// Threads of Erlang's scheduler.
    pub(crate) schedulers: Option<u32>,
    /// Further lines of `rabbitmq.conf`.
    pub(crate) lines: String,
}

impl Files {
    pub(crate) fn find(generation: Generation) -> Result<Self> {
        let missing = || generation.missing("rabbitmq-server", "rabbitmq-server");
        let root = generation.root();
        let erlang = root.join("usr/lib/erlang");
        let runtime = first(&erlang, "erts-").map(|path| path.join("bin")).ok_or_else(missing)?;
        let home = first(&root.join("usr/lib/rabbitmq/lib"), "rabbitmq_server-").ok_or_else(missing)?;
        Ok(Self { home, erlang, runtime })
    }
}

fn first(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .max()
}

/// Creates a node with its own name, ports, configuration, data and log, and without a port mapper (epmd).
pub(crate) fn process(files: &Files, options: &Options, place: Place) -> Result<Process> {
    let folder = place.folder.path().to_path_buf();
    let [port, distribution, mapper] = [0, 1, 2].map(|index| place.ports[index].number());
    let libraries = libraries(files, options, &folder)?;
    let configuration = place.folder.write("rabbitmq.conf", &configuration(options, &folder, port))?;
    let plugins = place.folder.write("enabled_plugins", &format!("[{}].\n", options.plugins.join(",")))?;
    let name = format!("test-{port}@localhost");
    let data = place.folder.data();
    let schedulers = options.schedulers.map(|count| format!("{count}:{count}"));
    let files = files.clone();
    let launch = move || {
        let mut command = spawner::command(&files.runtime.join("erlexec"), None);
        command.env_clear();
        for kept in ["PATH", "LANG", "TZ"] {
            command.envs(std::env::var_os(kept).map(|value| (kept, value)));
        }
        command.env("HOME", &folder).env("ROOTDIR", &files.erlang).env("BINDIR", &files.runtime);
        command.env("EMU", "beam").env("PROGNAME", "erl").env("SYS_PREFIX", "");
        command.env("ERL_LIBS", &libraries).env("ERL_CRASH_DUMP", "/dev/null");
        command.env("RABBITMQ_HOME", &files.home).env("RABBITMQ_PLUGINS_DIR", &libraries);
        command.env("RABBITMQ_NODENAME", &name).env("RABBITMQ_MNESIA_BASE", &data);
        command.env("RABBITMQ_LOG_BASE", &folder).env("RABBITMQ_LOGS", "-");
        command.env("RABBITMQ_CONFIG_FILE", &configuration).env("RABBITMQ_CONF_ENV_FILE", "/dev/null");
        command
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins);
        command.env("RABBITMQ_PID_FILE", folder.join("pid")).current_dir(&folder);
        // Without `-noinput`: standard input is a shell, and the node ends when its standard input closes.
        command.args(["-s", "rabbit", "boot", "-boot", "start_sasl", "+W", "w"]);
        command.args([
            "+t",
            "5000000",
            "+P",
            "1048576",
            "+sbwt",
            "none",
            "+sbwtdcpu",
            "none",
            "+sbwtdio",
            "none",
        ]);
        if let Some(count) = &schedulers {
            command.args(["+S", count, "+SDcpu", count]);
        }
        command.args(["-syslog", "logger", "[]", "-syslog", "syslog_error_logger", "false"]);
        command.args(["-kernel", "prevent_overlapping_partitions", "false"]);
        command.args([
            "-kernel",
            "inet_dist_use_interface",
            "{127,0,0,1}",
            "-sname",
            &name,
            "-setcookie",
            "test",
        ]);
        let distribution = distribution.to_string();
        command.args([
            "-kernel",
            "inet_dist_listen_min",
            &distribution,
            "inet_dist_listen_max",
            &distribution,
        ]);
        command.args(["-start_epmd", "false", "-erl_epmd_port", &mapper.to_string()]);
        command
    };
    let encrypted = options.tls != Tls::Off;
    let probe = move || -> std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        Box::pin(answers(port, encrypted))
    };
    Ok(Process::new("rabbitmq-server", place, Box::new(launch), Box::new(probe)))
}

/// Creates a folder with links to the libraries that the node needs. RabbitMQ's distribution contains about
/// 90, and Erlang searches all of them in turn for each module: without the plugins the node starts in half
/// the time.
fn libraries(files: &Files, options: &Options, folder: &Path) -> Result<PathBuf> {
    let all = files.home.join("plugins");
    if !options.plugins.is_empty() {
        return Ok(all);
    }
    let needed = folder.join("libraries");
    let link = || -> io::Result<()> {
        fs::create_dir_all(&needed)?;
        for entry in fs::read_dir(&all)? {
            let name = entry?.file_name();
            let text = name.to_string_lossy();
            let core = ["rabbitmq_prelaunch-", "rabbitmq_stream_common-"];
            if !text.starts_with("rabbitmq_") || core.iter().any(|core| text.starts_with(core)) {
                symlink(all.join(&name), needed.join(&name))?;
            }
        }
        Ok(())
    };
    link().map_err(|e| {
        Error::system(format!("cannot link RabbitMQ's libraries into {}", needed.display()), e)
    })?;
    Ok(needed)
}

/// Returns the text of `rabbitmq.conf`.
fn configuration(options: &Options, folder: &Path, port: u16) -> String {
    use std::fmt::Write;
    let mut text = "default_user = guest\ndefault_pass = guest\n".to_owned();
    if options.tls == Tls::Off {
        let _ = writeln!(text, "listeners.tcp.1 = 127.0.0.1:{port}");
    } else {
        let files = Certificates::of(folder);
        let (ca, cert, key) = (files.ca.display(), files.server.display(), files.server_key.display());
        let mutual = options.tls == Tls::Mutual;
        let verify = if mutual { "verify_peer" } else { "verify_none" };
        let _ = writeln!(text, "listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}");
        let _ = writeln!(
            text,
            "ssl_options.cacertfile = {ca}\nssl_options.certfile = {cert}\nssl_options.keyfile = {key}"
        );
        let _ = writeln!(text, "ssl_options.verify = {verify}\nssl_options.fail_if_no_peer_cert = {mutual}");
    }
    text + &options.lines
}

/// Checks readiness: RabbitMQ answers a client's protocol header with a method frame on channel 0
/// (`connection.start`). A port with TLS is opened in the same step of the start, which is the last step.
async fn answers(port: u16, encrypted: bool) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    if encrypted {
        return Ok(());
    }
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    let mut frame = [0; 3];
    stream.read_exact(&mut frame).await?;
    if frame == [1, 0, 0] { Ok(()) } else { Err(io::Error::other("it does not speak AMQP 0.9.1")) }
}
