//! The events of Chatbot: a streamed answer is paid from reserved credits, or the reservation is cancelled.

use event_client::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sample::Sample;

/// Accounting has reserved credits for an answer.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "chat.credits-reserved", version = 1, key = session_id)]
pub struct CreditsReserved {
    /// The streaming session.
    pub session_id: Uuid,
    /// The user whose credits are reserved.
    pub user_id: String,
    /// How many, a margin included.
    pub credits: u64,
}

/// An answer was streamed to its end.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "chat.answer-completed", version = 1, key = session_id)]
pub struct AnswerCompleted {
    /// The streaming session.
    pub session_id: Uuid,
    /// Tokens that were used.
    pub tokens: u64,
}

/// An answer broke off; its reservation is to be given back.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "chat.answer-aborted", version = 1, key = session_id)]
pub struct AnswerAborted {
    /// The streaming session.
    pub session_id: Uuid,
    /// Tokens that were used until then.
    pub tokens: u64,
}

const SESSION: Uuid = Uuid::from_u128(0x0193_4f2e_8d10_7c3a_9b5e_2f6a_1c4d_7e82);

impl Sample for CreditsReserved {
    fn sample() -> Self {
        Self { session_id: SESSION, user_id: "user-7".into(), credits: 1_200 }
    }
}

impl Sample for AnswerCompleted {
    fn sample() -> Self {
        Self { session_id: SESSION, tokens: 874 }
    }
}

impl Sample for AnswerAborted {
    fn sample() -> Self {
        Self { session_id: SESSION, tokens: 31 }
    }
}
