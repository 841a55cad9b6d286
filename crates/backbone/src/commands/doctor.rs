//! `backbone doctor`: checks whether the bus is reachable, writable and durable, and whether groups or tasks lack a
//! consumer.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use event_client::Bus;
use event_client::codec::Codec;
use event_client::envelope::{Meta, Mode, write};
use event_client::message::{Durability, Message, MessageId};
use event_client::subject::{Pattern, Subject};
use event_client::transport::{DeadLetterFilter, Finding, GroupStatus, Severity, Subscribe};
use jiff::Timestamp;
use serde_json::json;

use super::connect::connect;
use crate::args::Global;
use terminal::{Output, age};

pub(crate) async fn run(global: &Global, output: Output) -> anyhow::Result<ExitCode> {
    let mut findings = match connect(global).await {
        Ok(bus) => {
            let findings = examine(&bus).await;
            bus.close().await?;
            findings
        }
        Err(error) => vec![Finding::bad("connect", format!("{error:#}"))],
    };
    findings.push(super::task::examine(global).await);
    for Finding { check, severity, text, .. } in &findings {
        if output.is_json() {
            let ok = *severity != Severity::Bad;
            output.json(&json!({"check": check, "ok": ok, "verdict": severity, "text": text}))?;
        } else {
            let mark = match severity {
                Severity::Good => output.verdict(true, "ok    "),
                Severity::Advice => output.caution("advice"),
                Severity::Bad => output.verdict(false, "bad   "),
            };
            output.line(&format!("{mark} {check:<12} {text}"))?;
        }
    }
    let bad = findings.iter().any(|finding| finding.severity == Severity::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn examine(bus: &Bus) -> Vec<Finding> {
    let can = bus.capabilities();
    let mut findings = vec![Finding::good("connect", format!("`{}` is open", can.name))];
    findings.push(match bus.admin().ping().await {
        Ok(latency) => Finding::good("ping", format!("{:.2} ms", latency.as_secs_f64() * 1e3)),
        Err(error) => Finding::bad("ping", error.to_string()),
    });
    findings.push(match round_trip(bus).await {
        Ok((stored, seen)) => Finding::good(
            "round trip",
            format!(
                "stored in {:.2} ms, received in {:.2} ms",
                stored.as_secs_f64() * 1e3,
                seen.as_secs_f64() * 1e3
            ),
        ),
        Err(error) => Finding::bad("round trip", format!("{error:#}")),
    });
    findings.push(Finding::good(
        "durability",
        match can.durability {
            Durability::Fsync => "a confirmed publish survives loss of power",
            Durability::PageCache => {
                "a confirmed publish survives a crash of the process, not of the machine"
            }
            Durability::Default => "nothing survives the end of the process",
        },
    ));
    let limits = format!("messages up to {} bytes, dedup window {:?}", can.max_payload, can.dedup_window);
    findings.push(Finding::good("messages", limits));
    match bus.admin().diagnose().await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::bad("server", error.to_string())),
    }
    findings.push(match bus.admin().groups().await {
        Ok(groups) => members(&groups),
        Err(error) => Finding::bad("groups", error.to_string()),
    });
    findings.push(match bus.admin().dead_letters(DeadLetterFilter::default()).await {
        Ok(letters) if letters.is_empty() => Finding::good("dead letters", "none"),
        Ok(letters) => Finding::bad(
            "dead letters",
            format!("{}; list them with `backbone dlq ls`, then replay or drop them", letters.len()),
        ),
        Err(error) => Finding::bad("dead letters", error.to_string()),
    });
    findings
}

/// Reports groups in which events wait although the group has no member.
fn members(groups: &[GroupStatus]) -> Finding {
    let now = Timestamp::now();
    let stuck: Vec<_> = groups
        .iter()
        .filter(|status| status.members == 0 && status.waiting > 0)
        .map(|status| {
            let age =
                status.oldest_unsettled.map(|at| format!(", oldest {} old", age(now.duration_since(at))));
            format!("{} ({} waiting{})", status.group, status.waiting, age.unwrap_or_default())
        })
        .collect();
    if stuck.is_empty() {
        return Finding::good("groups", format!("{} groups, none waiting without a member", groups.len()));
    }
    Finding::bad(
        "groups",
        format!(
            "no member receives the events of {}; start the service, or delete the group with `backbone topology delete` if the service no longer exists",
            stuck.join(", ")
        ),
    )
}

/// Publishes a probe and waits for it on a broadcast subscription; returns the time until it was stored and until it
/// was received.
async fn round_trip(bus: &Bus) -> anyhow::Result<(Duration, Duration)> {
    let subject = Subject::new("backbone.doctor.v1")?;
    let subscription = bus.subscribe(Subscribe::broadcast([Pattern::from(&subject)])).await?;
    // A valid event, so that groups that receive all subjects can decode it.
    let mut meta = Meta::new(MessageId::now(), "/backbone-cli", subject.as_str());
    let (content_type, _, body) = write(&mut meta, &(), Codec::Json, Mode::Structured)?;
    let probe = Message { id: meta.id.clone(), ..Message::new(subject, content_type, body) };
    let id = meta.id;
    let began = Instant::now();
    bus.publish_message(probe).await?;
    let stored = began.elapsed();
    let seen = tokio::time::timeout(Duration::from_secs(5), async {
        while let Some(delivery) = subscription.next().await {
            if delivery.message().id == id {
                return Some(began.elapsed());
            }
        }
        None
    });
    match seen.await {
        Ok(Some(seen)) => Ok((stored, seen)),
        Ok(None) => anyhow::bail!("the subscription ended"),
        Err(_) => anyhow::bail!("the probe was stored but not received within 5 s"),
    }
}
