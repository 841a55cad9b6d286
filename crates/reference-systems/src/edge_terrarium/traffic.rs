//! Generates Edge-Terrarium's traffic: the client requests files, and all services log over HTTP.

use std::time::Duration;

use event_client::{Bus, Event, Request};
use event_schemas::edge::{FileCreated, RequestServed};

use super::logs::recorded;
use super::services::CreateFile;
use crate::{Error, Expected};

/// The amount of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Files that the custom client requests.
    pub files: u32,
    /// Requests that the service sink accepts.
    pub requests: u32,
    /// How often the recorded log POSTs are sent.
    pub replays: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self { files: 20, requests: 40, replays: 5 }
    }
}

/// Sends the traffic, the log POSTs to `logthon` (`http://127.0.0.1:5000`); returns the expected counts.
///
/// # Errors
/// When a request, a publish or a POST fails; for Logthon's clients only the status 200 is success.
pub async fn traffic(bus: &Bus, logthon: &str, load: Load) -> Result<Expected, Error> {
    let mut expected = Expected::default();
    for number in 0..load.files {
        let filename = format!("custom-client-{number}.txt");
        let content = format!("file {number} of the custom client");
        let service = "custom-client".to_owned();
        let asked = CreateFile { filename: filename.clone(), content, service };
        let made = bus.request(asked).timeout(Duration::from_secs(5)).await?;
        if made.filename != filename {
            return Err(format!("requested {filename}, got {}", made.filename).into());
        }
    }
    for number in 0..load.requests {
        let (path, status) = match number % 10 {
            9 => ("/favicon.ico", 404),
            _ => ("/api/fake-provider/test", 200),
        };
        bus.publish(RequestServed {
            service: "service-sink".into(),
            method: "GET".into(),
            path: path.into(),
            status,
            request_id: Some(format!("req-{number}")),
        })
        .await?;
    }
    post_logs(logthon, load.replays, &mut expected).await?;
    Expected::add(&mut expected.handled, CreateFile::SUBJECT, load.files.into());
    for (subject, group, count) in [
        (FileCreated::SUBJECT, "edge-audit.edge.file-created", load.files),
        (RequestServed::SUBJECT, "edge-audit.edge.request-served", load.requests),
    ] {
        Expected::add(&mut expected.published, subject, count.into());
        Expected::add(&mut expected.handled, group, count.into());
    }
    Ok(expected)
}

/// Posts the recording as the C programs do: with a separate connection for every log.
async fn post_logs(logthon: &str, replays: u32, expected: &mut Expected) -> Result<(), Error> {
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(2))
        .build()?;
    for post in (0..replays).map(|_| recorded()).collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
        let url = format!("{logthon}{}", post.path);
        let service = post.service().to_owned();
        let request = client.post(url).header("content-type", post.content_type).body(post.body);
        let answer = request.send().await?;
        if answer.status().as_u16() != 200 {
            return Err(format!("a log of {service} was answered {}", answer.status()).into());
        }
        Expected::add(&mut expected.posted, &service, 1);
    }
    Ok(())
}
