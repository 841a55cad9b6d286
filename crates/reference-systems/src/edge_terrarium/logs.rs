//! The log POSTs of the original programs, as recorded from the network.

use serde::Deserialize;

use crate::Error;

const RECORDED: &str = include_str!("../../data/captured_client_posts.ndjson");

/// One recorded POST.
#[derive(Clone, Debug, Deserialize)]
pub struct Post {
    /// The path of the request.
    pub path: String,
    /// Its content type.
    pub content_type: String,
    /// Whether the original's JSON was valid.
    pub valid_json: bool,
    /// The body, byte for byte.
    pub body: String,
}

impl Post {
    /// Returns the name of the service in the body, as far as the body contains one.
    pub fn service(&self) -> &str {
        let start = |marker: &str| self.body.find(marker).map(|at| at + marker.len());
        let Some(start) = start("\"service\":\"").or_else(|| start("\"service\": \"")) else {
            return "unknown";
        };
        self.body[start..].split('"').next().unwrap_or("unknown")
    }
}

/// Returns all recorded POSTs, in the order in which they were sent.
///
/// # Errors
/// When the recording is damaged.
pub fn recorded() -> Result<Vec<Post>, Error> {
    RECORDED.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_recording_names_its_services() {
        let posts = super::recorded().unwrap();
        assert!(posts.iter().any(|post| !post.valid_json));
        for post in &posts {
            assert!(["custom-client", "service-sink", "file-storage"].contains(&post.service()), "{post:?}");
        }
    }
}
