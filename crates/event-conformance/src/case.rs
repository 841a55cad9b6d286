//! A named case: the contract sentence that it tests, the condition under which it applies, and the code that
//! runs it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use event_client::transport::Capabilities;
use futures_util::future::BoxFuture;

use crate::exam::Exam;
use crate::fixture::{Fixture, Settings};

/// One case of the exam.
#[derive(Clone)]
pub struct Case {
    name: String,
    run: fn(Exam) -> BoxFuture<'static, ()>,
    applies: fn(&Capabilities) -> bool,
    deadline: Duration,
    settings: Settings,
}

impl Case {
    /// Generous: a case that passes needs a fraction of it, also on a busy machine.
    const DEADLINE: Duration = Duration::from_secs(120);

    pub(crate) fn new(module: &str, name: &str, run: fn(Exam) -> BoxFuture<'static, ()>) -> Self {
        let module = module.rsplit("::").next().unwrap_or_default();
        Self {
            name: format!("{module}::{name}"),
            run,
            applies: |_| true,
            deadline: Self::DEADLINE,
            settings: Settings::default(),
        }
    }

    /// Restricts the case to transports whose capabilities satisfy `applies`.
    pub(crate) fn when(mut self, applies: fn(&Capabilities) -> bool) -> Self {
        self.applies = applies;
        self
    }

    pub(crate) fn within(mut self, seconds: u64) -> Self {
        self.deadline = Duration::from_secs(seconds);
        self
    }

    pub(crate) fn dedup_window(mut self, window: Duration) -> Self {
        self.settings.dedup_window = Some(window);
        self
    }

    pub(crate) fn few_kept(mut self) -> Self {
        self.settings.few_kept = true;
        self
    }

    /// Restricts the case to fixtures that provide a server for one case alone.
    pub(crate) fn own_server(mut self) -> Self {
        self.settings.own_server = true;
        self
    }

    /// The case's name: `redelivery::unacked_message_returns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the case runs for this fixture's transport with these capabilities.
    pub fn applies(&self, fixture: &dyn Fixture, capabilities: &Capabilities) -> bool {
        (self.applies)(capabilities) && (fixture.has_servers() || !self.settings.own_server)
    }

    /// Runs the case on fresh storage, on its own runtime.
    ///
    /// # Errors
    /// The failure's text, or the step that the case was still waiting for at its deadline.
    pub fn run(&self, fixture: &Arc<dyn Fixture>) -> Result<(), String> {
        let runtime = runtime()?;
        let result = runtime.block_on(async {
            let exam = Exam::open(fixture.clone(), &self.settings).await?;
            let mut task = tokio::spawn((self.run)(exam.clone()));
            let result = match tokio::time::timeout(self.deadline, &mut task).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(ended)) => Err(panic_text(ended)),
                Err(_) => {
                    task.abort();
                    let _ = task.await;
                    Err(format!("after {:?} it still waited for {}", self.deadline, exam.step()))
                }
            };
            exam.end().await;
            result
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        result
    }
}

/// Returns the capabilities that the fixture's transport declares. Read them before listing the cases.
///
/// # Errors
/// When the storage cannot be made or opened.
pub fn capabilities(fixture: &Arc<dyn Fixture>) -> Result<Capabilities, String> {
    runtime()?.block_on(async {
        let exam = Exam::open(fixture.clone(), &Settings::default()).await?;
        let capabilities = exam.can().clone();
        exam.end().await;
        Ok(capabilities)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))
}

fn panic_text(ended: tokio::task::JoinError) -> String {
    match ended.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => {
                panic.downcast_ref::<&str>().map_or_else(|| "a panic".into(), |text| (*text).into())
            }
        },
        Err(ended) => ended.to_string(),
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Lists a file's cases, each with the capability it needs: `delayed_message_waits.when(|can| can.delayed)`.
macro_rules! cases {
    ($($name:ident $(. $option:ident ( $($value:expr),* ))*;)*) => {
        pub(crate) fn cases() -> Vec<$crate::Case> {
            vec![$(
                $crate::Case::new(module_path!(), stringify!($name), |exam| Box::pin($name(exam)))
                    $(.$option($($value),*))*
            ),*]
        }
    };
}
pub(crate) use cases;
