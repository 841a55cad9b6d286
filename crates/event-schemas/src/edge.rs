//! The events of Edge-Terrarium: requests that its services answer and files that they create.

use event_client::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sample::Sample;

/// A service has answered an HTTP request: an entry of the audit log.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "edge.request-served", version = 1, key = service)]
pub struct RequestServed {
    /// The service that answered: `custom-client`, `service-sink`, `file-storage`.
    pub service: String,
    /// The method.
    pub method: String,
    /// The path, without its query.
    pub path: String,
    /// The status answered.
    pub status: u16,
    /// The request's own id, when it came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A file has been created in the file storage.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "edge.file-created", version = 1, key = filename)]
pub struct FileCreated {
    /// The file's name.
    pub filename: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The service that requested it.
    pub service: String,
}

impl Sample for RequestServed {
    fn sample() -> Self {
        Self {
            service: "service-sink".into(),
            method: "GET".into(),
            path: "/api/fake-provider/test".into(),
            status: 200,
            request_id: Some("req-12345".into()),
        }
    }
}

impl Sample for FileCreated {
    fn sample() -> Self {
        Self {
            filename: "custom-client-1757000000.txt".into(),
            size_bytes: 118,
            service: "custom-client".into(),
        }
    }
}
