//! The health request, which this library answers for every service.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::message::Message;
use crate::subject::Subject;
use crate::transport::Requests;
use event_transport::HEALTH_SUBJECTS;
use event_transport::error::{Error, ErrorKind, Result};

/// The health report of a service; see [`Bus::health`](crate::Bus::health).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceHealth {
    /// The service's name.
    pub service: String,
    /// Whether every handler's subscription makes progress.
    pub ready: bool,
    /// Handlers by group or request subject: `live`, `starting`, `stopped`, or `rebuilding: <why>`.
    pub handlers: BTreeMap<String, String>,
}

/// The time limit of a health request: 2 s.
pub const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// The subject on which the members of a service answer health requests: `sys.health.<service>`.
pub(crate) fn subject(service: &str) -> Result<Subject> {
    Subject::new(format!("{HEALTH_SUBJECTS}{service}"))
}

/// Requests the health of one member of a service.
pub(crate) async fn ask(requests: &dyn Requests, service: &str) -> Result<ServiceHealth> {
    let ask = async {
        let question = Message::new(subject(service)?, Codec::Json.content_type(), "{}");
        let mut replies = requests.call(question, HEALTH_DEADLINE).await?;
        match replies.next().await {
            Some(frame) => Codec::Json.decode(&frame?.payload),
            None => Err(Error::new(ErrorKind::Unavailable, "the service disconnected without an answer")),
        }
    };
    let answer = tokio::time::timeout(HEALTH_DEADLINE, ask).await;
    answer
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no answer arrived within the deadline")))
        .map_err(|error| error.during("ask for health").with("service", service))
}
