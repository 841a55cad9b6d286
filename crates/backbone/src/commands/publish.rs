//! `backbone pub`: publishes events from the command line or standard input.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use event_client::codec::Codec;
use event_client::envelope::{Meta, Mode, write};
use event_client::message::{Headers, Message, MessageId};
use event_client::subject::Subject;
use event_client::transport::Receipt;
use event_client::{Bus, Result as BusResult};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use terminal::{Output, Progress, note};

use super::connect::connect;
use super::lines::Lines;
use crate::args::{Global, Publish};

/// Maximum number of lines that are sent before the first of them is confirmed.
const WINDOW: usize = 256;

pub(crate) async fn run(global: &Global, args: Publish, output: Output) -> anyhow::Result<()> {
    let bus = connect(global).await?;
    match args.data.as_deref() {
        Some("-") | None => stream(&bus, &args, output).await?,
        Some(data) => {
            let message = message(&args, data)?;
            let id = message.id.clone();
            let receipt = bus.publish_message(message).await?;
            output.line(&told(&args, &id, &receipt, output))?;
        }
    }
    Ok(bus.close().await?)
}

/// A published line whose confirmation has not arrived.
struct Sent<'a> {
    number: u64,
    id: MessageId,
    confirmed: BoxFuture<'a, BusResult<Receipt>>,
}

/// Publishes the lines of standard input, up to [`WINDOW`] lines ahead of the confirmations, in order.
///
/// The first line that cannot be sent or stored stops the reading; lines that were sent before are still awaited and
/// reported. When the reader of standard output closes it, publishing continues, because the events were requested.
async fn stream(bus: &Bus, args: &Publish, output: Output) -> anyhow::Result<()> {
    let mut lines = Lines::stdin();
    let mut sent: VecDeque<Sent<'_>> = VecDeque::new();
    let mut report =
        Report { output, text: String::new(), open: true, stored: 0, progress: Progress::default() };
    let mut failed: Option<anyhow::Error> = None;
    let mut reading = true;
    loop {
        while let Some(confirmed) = sent.front_mut().and_then(|sent| (&mut sent.confirmed).now_or_never()) {
            let Sent { number, id, .. } = sent.pop_front().expect("it was just confirmed");
            match confirmed {
                Ok(receipt) => report.stored(&told(args, &id, &receipt, output)),
                Err(error) => {
                    reading = false;
                    fail(&mut failed, anyhow::Error::from(error).context(format!("line {number}")));
                }
            }
        }
        report.flush()?;
        if !reading && sent.is_empty() {
            break;
        }
        tokio::select! {
            () = oldest(&mut sent), if !sent.is_empty() => {}
            line = lines.next(), if reading && sent.len() < WINDOW => {
                match line.and_then(|line| line.map(|(number, line)| send(bus, args, number, &line)).transpose()) {
                    Ok(Some(line)) => sent.push_back(line),
                    Ok(None) => reading = false,
                    Err(error) => {
                        reading = false;
                        fail(&mut failed, error);
                    }
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error.context(format!("{} events were stored", report.stored))),
        None => Ok(()),
    }
}

/// Keeps the first failure and prints each further one.
fn fail(first: &mut Option<anyhow::Error>, error: anyhow::Error) {
    match first {
        None => *first = Some(error),
        Some(_) => note(&format!("error: {error:#}")),
    }
}

/// Waits until the oldest line is confirmed, and stores the result in its place.
async fn oldest(sent: &mut VecDeque<Sent<'_>>) {
    if let Some(sent) = sent.front_mut() {
        let answer = (&mut sent.confirmed).await;
        sent.confirmed = std::future::ready(answer).boxed();
    }
}

fn send<'a>(bus: &'a Bus, args: &Publish, number: u64, line: &str) -> anyhow::Result<Sent<'a>> {
    let message = message(args, line).with_context(|| format!("line {number}"))?;
    let id = message.id.clone();
    let mut confirmed = bus.publish_message(message).boxed();
    // The first poll sends the event before the next line is read: this keeps the order.
    let confirmed = match (&mut confirmed).now_or_never() {
        Some(answer) => std::future::ready(answer).boxed(),
        None => confirmed,
    };
    Ok(Sent { number, id, confirmed })
}

/// Prints the stored events while later ones are still unconfirmed.
struct Report {
    output: Output,
    text: String,
    /// Whether the reader of standard output still reads.
    open: bool,
    stored: u64,
    progress: Progress,
}

impl Report {
    fn stored(&mut self, line: &str) {
        self.stored += 1;
        let stored = self.stored;
        self.progress.update(|| format!("{stored} stored"));
        if self.open {
            if !self.text.is_empty() {
                self.text.push('\n');
            }
            self.text.push_str(line);
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let printed = self.output.line(&std::mem::take(&mut self.text));
        if printed.as_ref().is_err_and(terminal::Error::is_closed) {
            self.open = false;
            return Ok(());
        }
        Ok(printed?)
    }
}

/// Returns the output line of one stored event.
fn told(args: &Publish, id: &MessageId, receipt: &Receipt, output: Output) -> String {
    let position = receipt.position.as_ref().map(ToString::to_string);
    if output.is_json() {
        return output.json_text(&json!({
            "id": id.to_string(), "subject": args.subject, "position": position, "duplicate": receipt.duplicate,
        }));
    }
    let place = position.map(|position| format!(" at {position}")).unwrap_or_default();
    let verb = if receipt.duplicate { "already stored" } else { "stored" };
    terminal::plain(&format!("{verb}: {} {id}", args.subject)) + &output.dim(&place)
}

/// Returns the first integer in valid JSON that MessagePack cannot represent.
fn large_integer(json: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let mut numbers = json.split(move |c: char| {
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && !escaped && c == '\\';
        quoted || !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E')
    });
    numbers.find(|text| {
        let integer = text.bytes().any(|byte| byte.is_ascii_digit()) && !text.contains(['.', 'e', 'E']);
        integer && text.parse::<u64>().is_err() && text.parse::<i64>().is_err()
    })
}

fn message(args: &Publish, data: &str) -> anyhow::Result<Message> {
    // Parsed once as a value, as consumers do: nesting and numbers that they refuse are refused here.
    let value: Value =
        serde_json::from_str(data).context("the data is not JSON; quote it as '{\"key\": 1}'")?;
    let subject = Subject::new(&args.subject)?;
    let id = args.id.as_deref().map_or_else(MessageId::now, MessageId::from);
    let after = |wait: Option<Duration>| -> anyhow::Result<Option<Timestamp>> {
        wait.map(|wait| Ok(Timestamp::now().checked_add(wait)?)).transpose()
    };
    let mut meta = Meta::new(id.clone(), "/backbone-cli", args.subject.as_str());
    meta.partitionkey = args.key.as_deref().map(Into::into);
    meta.expirytime = after(args.expires_in)?;
    meta.caused_by(None);
    let (content_type, mut headers, payload) = match (args.codec, large_integer(data)) {
        // The text is published unchanged, so that numbers keep their digits.
        (Codec::Json, _) => {
            write(&mut meta, serde_json::from_str::<&RawValue>(data)?, args.codec, Mode::Structured)?
        }
        (Codec::MsgPack, None) => write(&mut meta, &value, args.codec, Mode::Structured)?,
        (Codec::MsgPack, Some(integer)) => {
            anyhow::bail!(
                "the integer {integer} is too large for MessagePack; publish it as JSON, or as a string"
            )
        }
    };
    for header in &args.headers {
        let (name, value) = header.split_once('=').context("a header has the form name=value")?;
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
