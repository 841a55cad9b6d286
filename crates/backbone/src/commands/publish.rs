//! `backbone pub`: events from the command line or standard input.

use anyhow::Context;
use event_client::Bus;
use event_client::envelope::{Meta, Mode, write};
use event_client::message::{Headers, Message, MessageId};
use event_client::subject::Subject;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::connect;
use crate::args::{Global, Publish};
use crate::output::Output;

pub(crate) async fn run(global: &Global, args: Publish, output: Output) -> anyhow::Result<()> {
    let bus = connect(global).await?;
    match args.data.as_deref() {
        Some("-") | None => {
            let mut lines = BufReader::new(tokio::io::stdin()).lines();
            let mut number = 0_u64;
            while let Some(line) = lines.next_line().await? {
                number += 1;
                if !line.trim().is_empty() {
                    send(&bus, &args, &line, output).await.with_context(|| format!("line {number}"))?;
                }
            }
        }
        Some(data) => send(&bus, &args, data, output).await?,
    }
    Ok(bus.close().await?)
}

async fn send(bus: &Bus, args: &Publish, data: &str, output: Output) -> anyhow::Result<()> {
    let data: Value =
        serde_json::from_str(data).context("the data is not JSON; quote it as '{\"key\": 1}'")?;
    let message = message(args, &data)?;
    let id = message.id.clone();
    let receipt = bus.publish_message(message).await?;
    let position = receipt.position.map(|position| position.to_string());
    if output.is_json() {
        let line = json!({
            "id": id.to_string(), "subject": args.subject, "position": position, "duplicate": receipt.duplicate,
        });
        return output.json(&line);
    }
    let place = position.map(|position| format!(" at {position}")).unwrap_or_default();
    let verb = if receipt.duplicate { "already there" } else { "stored" };
    output.line(&format!("{verb}: {} {}{}", args.subject, id, output.dim(&place)))
}

fn message(args: &Publish, data: &Value) -> anyhow::Result<Message> {
    let subject = Subject::new(&args.subject)?;
    let id = args.id.as_deref().map_or_else(MessageId::now, MessageId::from);
    let after = |wait: Option<jiff::SignedDuration>| -> anyhow::Result<Option<Timestamp>> {
        wait.map(|wait| Ok(Timestamp::now().checked_add(crate::args::duration(wait)?)?)).transpose()
    };
    let mut meta = Meta::new(id.clone(), "/backbone-cli", args.subject.as_str());
    meta.partitionkey = args.key.as_deref().map(Into::into);
    meta.expirytime = after(args.expires_in)?;
    meta.caused_by(None);
    let (content_type, mut headers, payload) = write(&mut meta, data, args.codec, Mode::Structured)?;
    for header in &args.headers {
        let (name, value) = header.split_once('=').context("a header is given as name=value")?;
        Headers::set(&mut headers, name, value)?;
    }
    let mut message = Message::new(subject, content_type, payload);
    message.id = id;
    message.key = meta.partitionkey;
    message.headers = headers;
    message.deliver_at = after(args.delay)?;
    message.expires_at = meta.expirytime;
    message.dedup = args.dedup;
    Ok(message)
}
