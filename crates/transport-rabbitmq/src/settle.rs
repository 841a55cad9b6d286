//! The consumers' end of settling: passes each settlement to the member that holds the delivery.

use tokio::sync::{mpsc, oneshot};

use super::queries::Holding;
use event_transport::confirm::{Answer, Confirm};
use event_transport::delivery::{Settle, Settlement, Token, lease_lost};
use event_transport::error::Result;

/// A command to a member.
pub(super) enum Command {
    Settle(Token, Settlement, Answer<()>),
    Progress(Token, Answer<()>),
    Status(oneshot::Sender<Holding>),
    GiveUp(oneshot::Sender<Holding>),
    End(oneshot::Sender<Holding>),
}

/// The queue of one subscription's settlements to its member task.
pub(super) struct Settler(pub(super) mpsc::UnboundedSender<Command>);

/// A caller that awaits a settlement. Dropped without a result, it reports `LeaseLost`.
pub(super) struct Asker(Option<Answer<()>>);

impl Asker {
    pub(super) fn new(answer: Answer<()>) -> Self {
        Self(Some(answer))
    }

    pub(super) fn tell(mut self, result: Result<()>) {
        if let Some(answer) = self.0.take() {
            let _ = answer.send(result);
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            let _ = answer.send(Err(lease_lost()));
        }
    }
}

impl Settle for Settler {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        let (answer, confirm) = Confirm::channel();
        match self.0.send(Command::Settle(token, settlement, answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lease_lost())),
        }
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        let (answer, confirm) = Confirm::channel();
        match self.0.send(Command::Progress(token, answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lease_lost().during("renew"))),
        }
    }
}
