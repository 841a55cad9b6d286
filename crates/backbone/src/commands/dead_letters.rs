//! `backbone dlq`: lists, shows, replays and deletes dead letters.

use anyhow::{Context, bail};
use event_client::delivery::Reason;
use event_client::envelope::Envelope;
use event_client::subject::{Group, Pattern};
use event_client::transport::{DeadLetter, DeadLetterFilter};
use serde_json::json;

use super::connect::connect;
use super::show;
use crate::args::{Choice, DeadLetters, Global};
use terminal::{Output, plain};

pub(crate) async fn run(global: &Global, command: DeadLetters, output: Output) -> anyhow::Result<()> {
    let bus = connect(global).await?;
    let admin = bus.admin();
    match command {
        DeadLetters::Ls(choice) => list(output, &admin.dead_letters(filter(&choice)?).await?)?,
        DeadLetters::Show { id } => {
            let one = DeadLetterFilter { ids: vec![id.as_str().into()], ..DeadLetterFilter::default() };
            let letters = admin.dead_letters(one).await?;
            let letter = letters.first().with_context(|| {
                format!("unknown dead letter `{id}`; `backbone dlq ls` lists all of them")
            })?;
            detail(output, letter)?;
        }
        DeadLetters::Replay(choice) => {
            let count = admin.replay_dead_letters(deliberate(&choice)?).await?;
            report(output, count, "replayed", "sent to the groups that failed on them")?;
        }
        DeadLetters::Drop(choice) => {
            let count = admin.drop_dead_letters(deliberate(&choice)?).await?;
            report(output, count, "dropped", "deleted")?;
        }
    }
    Ok(bus.close().await?)
}

fn report(output: Output, count: u64, word: &str, text: &str) -> anyhow::Result<()> {
    if output.is_json() {
        return Ok(output.json(&json!({ word: count }))?);
    }
    Ok(output.line(&format!("{count} dead letter{} {text}", if count == 1 { "" } else { "s" }))?)
}

fn filter(choice: &Choice) -> anyhow::Result<DeadLetterFilter> {
    let reason = choice.reason.as_deref().map(|wanted| {
        Reason::ALL.into_iter().find(|reason| reason.as_str() == wanted).with_context(|| {
            format!(
                "unknown reason `{wanted}`; the reasons are {}",
                Reason::ALL.map(Reason::as_str).join(", ")
            )
        })
    });
    Ok(DeadLetterFilter {
        ids: choice.ids.iter().map(Into::into).collect(),
        group: choice.group.as_deref().map(Group::new).transpose()?,
        subject: choice.subject.as_deref().map(Pattern::new).transpose()?,
        reason: reason.transpose()?,
        limit: choice.limit,
    })
}

/// Returns the filter of a command that changes something; it requires a condition or `--all`.
fn deliberate(choice: &Choice) -> anyhow::Result<DeadLetterFilter> {
    let filter = filter(choice)?;
    let anything = DeadLetterFilter { limit: choice.limit, ..DeadLetterFilter::default() };
    if !choice.all && filter == anything {
        bail!("select dead letters by ids, --group, --subject or --reason, or use --all");
    }
    Ok(filter)
}

fn list(output: Output, letters: &[DeadLetter]) -> anyhow::Result<()> {
    if output.is_json() {
        return Ok(letters.iter().try_for_each(|letter| output.json(&summary(letter)))?);
    }
    if letters.is_empty() {
        return Ok(output.line("no dead letters")?);
    }
    let row = |letter: &DeadLetter| {
        let error: String = plain(&letter.error).chars().take(60).collect();
        vec![
            letter.id.to_string(),
            letter.dead_at.strftime("%F %T").to_string(),
            letter.group.to_string(),
            letter.message.subject.to_string(),
            letter.reason.as_str().to_owned(),
            letter.attempts.to_string(),
            error,
        ]
    };
    let header = ["ID", "DEAD SINCE", "GROUP", "SUBJECT", "REASON", "ATTEMPTS", "ERROR"];
    Ok(output.table(&header, &letters.iter().map(row).collect::<Vec<_>>())?)
}

/// The event's own id, correlation id and trace id, if its envelope can be decoded.
struct Origin {
    event: String,
    correlation: Option<String>,
    trace: Option<String>,
}

impl Origin {
    fn of(letter: &DeadLetter) -> Self {
        match Envelope::read(&letter.message) {
            Ok(Envelope { meta, .. }) => Self {
                event: meta.id.to_string(),
                correlation: meta.correlationid.map(|id| id.to_string()),
                trace: meta.traceparent.map(|trace| format!("{:032x}", trace.trace_id)),
            },
            Err(_) => Self { event: letter.message.id.to_string(), correlation: None, trace: None },
        }
    }
}

fn summary(letter: &DeadLetter) -> serde_json::Value {
    let Origin { event, correlation, trace } = Origin::of(letter);
    json!({
        "id": letter.id, "group": letter.group.as_str(), "subject": letter.message.subject.as_str(),
        "event_id": event, "correlation_id": correlation, "trace_id": trace,
        "reason": letter.reason, "error": letter.error,
        "attempts": letter.attempts, "published_at": letter.published_at,
        "first_attempt_at": letter.first_attempt_at, "dead_at": letter.dead_at,
    })
}

fn detail(output: Output, letter: &DeadLetter) -> anyhow::Result<()> {
    if output.is_json() {
        let extra = [("dead_letter", summary(letter))];
        return show::message(output, &letter.message, &extra);
    }
    let Origin { event, correlation, trace } = Origin::of(letter);
    let known = |id: Option<String>| id.map_or_else(|| "-".to_owned(), |id| plain(&id));
    for (name, value) in [
        ("id", letter.id.to_string()),
        ("event id", plain(&event)),
        ("correlation", known(correlation)),
        ("trace", known(trace)),
        ("group", letter.group.to_string()),
        ("reason", letter.reason.as_str().to_owned()),
        ("error", plain(&letter.error)),
        ("attempts", letter.attempts.to_string()),
        ("published", letter.published_at.to_string()),
        ("first tried", letter.first_attempt_at.to_string()),
        ("dead since", letter.dead_at.to_string()),
    ] {
        output.line(&format!("{} {value}", output.bold(&format!("{name:<12}"))))?;
    }
    show::message(output, &letter.message, &[])
}
