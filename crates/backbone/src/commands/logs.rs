//! `backbone logs`: prints stored records, which it reads from the aggregator over HTTP.

use anyhow::{Context, bail};
use serde_json::Value;
use service_kit::shutdown::signal;

use crate::args::{LogFilter, Logs};
use terminal::{Output, note, plain};

/// Maximum number of records in one response of the aggregator.
const MOST: usize = 10_000;

pub(crate) async fn run(command: Logs, output: Output) -> anyhow::Result<()> {
    match command {
        Logs::Query(filter) => query(filter, output).await,
        Logs::Tail(filter) => tail(filter, output).await,
    }
}

async fn query(filter: LogFilter, output: Output) -> anyhow::Result<()> {
    let wanted = filter.limit.map_or(100, |limit| limit as usize);
    let (mut records, mut cursor) = (Vec::new(), None);
    // A response is limited in records and in bytes, and contains the cursor of the next one.
    loop {
        let limit = (wanted - records.len()).min(MOST);
        let mut more = vec![("limit", limit.to_string())];
        more.extend(cursor.map(|cursor| ("cursor", cursor)));
        let mut answer: Value = ask(&filter, "query", &more).await?.json().await?;
        let Value::Array(page) = answer["records"].take() else {
            bail!("the log aggregator's response has no records")
        };
        records.extend(page);
        cursor = answer["next"].as_str().map(String::from);
        if cursor.is_none() || records.len() >= wanted {
            break;
        }
    }
    if records.is_empty() && !output.is_json() {
        return Ok(output.line("no matching records")?);
    }
    // The newest record is printed last, as in a log file.
    records.iter().rev().try_for_each(|record| show(record, output))
}

async fn tail(filter: LogFilter, output: Output) -> anyhow::Result<()> {
    let backlog = ("backlog", filter.limit.unwrap_or(10).to_string());
    let mut answer = ask(&filter, "tail", &[backlog]).await?;
    let mut buffer: Vec<u8> = Vec::new();
    let mut stop = std::pin::pin!(signal());
    loop {
        let chunk = tokio::select! {
            chunk = answer.chunk() => chunk.context("the connection to the log aggregator failed")?,
            _ = &mut stop => return Ok(()),
        };
        let Some(chunk) = chunk else { bail!("the log aggregator ended the tail") };
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = buffer.drain(..end + 2).collect();
            frame(&String::from_utf8_lossy(&event), output)?;
        }
    }
}

/// Prints one server-sent event: a record, or the number of missed records.
fn frame(event: &str, output: Output) -> anyhow::Result<()> {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
    let Some(data) = field("data:") else { return Ok(()) };
    let value: Value = serde_json::from_str(data).context("the log aggregator sent invalid JSON")?;
    match field("event:") {
        Some("dropped") => {
            note(
                &output.dim(&format!("records missed because this reader was too slow: {}", value["count"])),
            );
            Ok(())
        }
        _ => show(&value, output),
    }
}

async fn ask(filter: &LogFilter, what: &str, more: &[(&str, String)]) -> anyhow::Result<reqwest::Response> {
    let server = filter.server.expose();
    // The URL parser silently removes some control characters: the request would go to another address.
    let mut url = reqwest::Url::parse(server)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && !server.contains(char::is_control))
        .with_context(|| {
            format!("--server has to be a URL such as http://127.0.0.1:5000, not {:?}", filter.server)
        })?;
    url.set_path(&format!("{}/api/v1/{what}", url.path().trim_end_matches('/')));
    let since = filter.since.map(|moment| moment.0.to_string());
    {
        let mut pairs = url.query_pairs_mut();
        for service in &filter.service {
            pairs.append_pair("service", service);
        }
        let parameters = [
            ("text", &filter.text),
            ("level", &filter.level),
            ("trace_id", &filter.trace),
            ("correlation_id", &filter.correlation),
            ("since", &since),
        ];
        for (name, value) in parameters {
            if let Some(value) = value {
                pairs.append_pair(name, value);
            }
        }
        for (name, value) in more {
            pairs.append_pair(name, value);
        }
    }
    let answer = reqwest::get(url).await.map_err(reqwest::Error::without_url).with_context(|| {
        format!(
            "cannot connect to a log aggregator at {}; start one with `backbone up`, or set --server",
            filter.server
        )
    })?;
    if !answer.status().is_success() {
        bail!(
            "{} answered {}: {}; if it is not a log aggregator, set --server",
            plain(&filter.server.to_string()),
            answer.status(),
            excerpt(answer).await
        );
    }
    Ok(answer)
}

/// Returns at most 200 characters of an error's body, without control characters: any program may listen at that
/// address.
async fn excerpt(mut answer: reqwest::Response) -> String {
    let mut body = Vec::new();
    while body.len() < 4096 {
        match answer.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    let text: String = plain(&String::from_utf8_lossy(&body)).chars().take(200).collect();
    if text.is_empty() { "no body".to_owned() } else { text }
}

fn show(record: &Value, output: Output) -> anyhow::Result<()> {
    if output.is_json() {
        return Ok(output.json(record)?);
    }
    let text = |name: &str| plain(record[name].as_str().unwrap_or("-"));
    let level = text("level");
    let level = match level.to_ascii_lowercase().as_str() {
        "error" | "critical" | "fatal" => output.verdict(false, &format!("{level:<7}")),
        "info" => format!("{level:<7}"),
        _ => output.bold(&format!("{level:<7}")),
    };
    let fields = record["attributes"].as_object().filter(|fields| !fields.is_empty());
    let fields =
        fields.map(|fields| format!(" {}", output.dim(&plain(&Value::Object(fields.clone()).to_string()))));
    let line = format!(
        "{} {level} {} {}",
        output.dim(&text("time")),
        output.bold(&text("service")),
        text("message")
    );
    Ok(output.line(&format!("{line}{}", fields.unwrap_or_default()))?)
}
