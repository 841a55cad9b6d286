//! The interface of a case: handles on its storage, and helpers that record the step that the case waits for.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::delivery::Delivery;
use event_client::message::Message;
use event_client::subject::Group;
use event_client::subscription::Subscription;
use event_client::transport::{
    self, Admin, Capabilities, GroupStatus, Mode, Receipt, Requests, Subscribe, Transport,
};
use event_client::{Error, ErrorKind};

use crate::fixture::{Fixture, Server, Settings, Storage};

/// The environment of one running case. Clones share it.
#[derive(Clone)]
pub struct Exam(Arc<Inner>);

struct Inner {
    fixture: Arc<dyn Fixture>,
    storage: Storage,
    bus: Arc<dyn Transport>,
    others: Mutex<Vec<Arc<dyn Transport>>>,
    step: Mutex<String>,
}

impl Exam {
    pub(crate) async fn open(fixture: Arc<dyn Fixture>, settings: &Settings) -> Result<Self, String> {
        let storage =
            fixture.fresh(settings).map_err(|error| format!("the fixture made no storage: {error}"))?;
        let bus = open(storage.url()).await.map_err(|error| format!("the storage does not open: {error}"))?;
        Ok(Self(Arc::new(Inner {
            fixture,
            storage,
            bus,
            others: Mutex::default(),
            step: Mutex::new("its first step".into()),
        })))
    }

    /// Closes all handles. A case that failed may have left some open.
    pub(crate) async fn end(&self) {
        let others = std::mem::take(&mut *self.0.others.lock().expect("not poisoned"));
        for bus in others.iter().chain([&self.0.bus]) {
            let _ = tokio::time::timeout(Duration::from_secs(10), bus.close()).await;
        }
    }

    pub(crate) fn bus(&self) -> &Arc<dyn Transport> {
        &self.0.bus
    }

    pub(crate) fn admin(&self) -> &dyn Admin {
        self.0.bus.admin()
    }

    pub(crate) fn requests(&self) -> &dyn Requests {
        self.0.bus.requests()
    }

    pub(crate) fn can(&self) -> &Capabilities {
        self.0.bus.capabilities()
    }

    /// The server of a case that has `own_server`.
    pub(crate) fn server(&self) -> &dyn Server {
        self.0.storage.server().expect("a case with `own_server` gets one")
    }

    pub(crate) fn url(&self) -> &str {
        self.0.storage.url()
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.0.fixture.program().expect("a persistent and shared transport's fixture has a program")
    }

    /// Opens another handle on the same storage, as another process would.
    pub(crate) async fn another(&self) -> Arc<dyn Transport> {
        let bus = self.ok("a second handle", open(self.url())).await;
        self.0.others.lock().expect("not poisoned").push(bus.clone());
        bus
    }

    /// Returns the storage's URL with one more option.
    pub(crate) fn url_with(&self, option: &str) -> String {
        let separator = if self.url().contains('?') { '&' } else { '?' };
        format!("{}{separator}{option}", self.url())
    }

    /// Opens another handle on the same storage, with one more option in its URL.
    pub(crate) async fn another_with(&self, option: &str) -> Arc<dyn Transport> {
        let bus = self.ok(format!("a handle with {option}"), open(&self.url_with(option))).await;
        self.0.others.lock().expect("not poisoned").push(bus.clone());
        bus
    }

    /// Records the step that the case waits for next.
    pub(crate) fn waits_for(&self, what: impl Into<String>) {
        *self.0.step.lock().expect("not poisoned") = what.into();
    }

    pub(crate) fn step(&self) -> String {
        self.0.step.lock().expect("not poisoned").clone()
    }

    /// Awaits a future that must succeed.
    pub(crate) async fn ok<T>(
        &self,
        what: impl fmt::Display,
        future: impl Future<Output = Result<T, Error>>,
    ) -> T {
        self.waits_for(what.to_string());
        future.await.unwrap_or_else(|error| panic!("{what}: {error:?}"))
    }

    /// Awaits a future that must be refused with `kind`.
    pub(crate) async fn refused<T>(
        &self,
        kind: ErrorKind,
        what: impl fmt::Display,
        future: impl Future<Output = Result<T, Error>>,
    ) -> Error {
        self.waits_for(what.to_string());
        match future.await {
            Ok(_) => panic!("{what}: was not refused, want `{}`", kind.as_str()),
            Err(error) if error.kind() == kind => {
                assert!(!error.to_string().is_empty(), "{what}: the error has no text");
                error
            }
            Err(error) => panic!("{what}: want `{}`, got {error:?}", kind.as_str()),
        }
    }

    pub(crate) async fn publish(&self, message: Message) -> Receipt {
        let what = format!("the confirmation of {message:?}");
        self.ok(what, self.bus().publish(message)).await
    }

    pub(crate) async fn subscribe(&self, spec: Subscribe) -> Subscription {
        self.ok("the subscription", self.bus().subscribe(spec)).await
    }

    /// Creates a group without members, so that later messages have not been sent to a member.
    pub(crate) async fn found(&self, spec: Subscribe) {
        let Mode::Group(group) = spec.mode.clone() else { panic!("not a group: {spec:?}") };
        drop(self.subscribe(spec).await);
        self.until(group.as_str(), "its first member to leave", |status| status.members == 0).await;
    }

    pub(crate) async fn next(&self, subscription: &Subscription) -> Delivery {
        self.next_of(subscription, "the next delivery").await
    }

    pub(crate) async fn next_of(&self, subscription: &Subscription, what: &str) -> Delivery {
        self.waits_for(what);
        match subscription.next().await {
            Some(delivery) => delivery,
            None => panic!("the subscription ended before {what}"),
        }
    }

    pub(crate) async fn ack(&self, delivery: Delivery) {
        self.ok("the confirmation of an ack", delivery.ack()).await;
    }

    /// Returns the group's status as the transport reports it.
    pub(crate) async fn status(&self, group: &str) -> GroupStatus {
        let group = Group::new(group).expect("a valid name");
        let all = self.ok("the groups", self.admin().groups()).await;
        match all.iter().find(|status| status.group == group) {
            Some(status) => status.clone(),
            None => panic!("no group `{group}` in {all:?}"),
        }
    }

    /// Waits until the group's status satisfies `holds`.
    pub(crate) async fn until(&self, group: &str, what: &str, holds: impl Fn(&GroupStatus) -> bool) {
        loop {
            let status = self.status(group).await;
            if holds(&status) {
                return;
            }
            self.waits_for(format!("{what}; now {status:?}"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the group has settled everything.
    pub(crate) async fn settled(&self, group: &str) {
        let what = "the group to have settled everything";
        self.until(group, what, |status| status.waiting == 0 && status.in_flight == 0).await;
    }
}

pub(crate) async fn open(url: &str) -> Result<Arc<dyn Transport>, Error> {
    transport::open(url.parse()?).await
}

impl fmt::Debug for Exam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exam").field("step", &self.step()).finish_non_exhaustive()
    }
}
