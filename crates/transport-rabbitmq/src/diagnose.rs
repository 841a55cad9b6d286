//! Diagnoses the broker: encryption, access, alarms, limits.

use super::client::Client;
use super::handshake::Version;
use event_transport::Finding;
use event_transport::diagnosis::plain_text;
use event_transport::error::Result;

/// A `channel_max` below this is reported: each group of a process needs a channel.
const FEW_CHANNELS: u16 = 256;

/// # Errors
/// When the broker cannot be reached.
pub(super) async fn diagnose(client: &Client) -> Result<Vec<Finding>> {
    let connection = client.publish.connection().await?;
    let limits = connection.configuration();
    let mut findings = Vec::new();
    findings.extend(client.publish.version().map(version));
    let uris = &client.config.uris;
    let encrypted = uris.iter().all(|uri| uri.scheme == lapin::uri::AMQPScheme::AMQPS);
    let hosts = uris.iter().map(|uri| uri.authority.host.as_str());
    findings.extend(plain_text(encrypted, hosts, "connect with amqps://"));
    if uris.iter().any(|uri| uri.authority.userinfo.username == "guest") {
        findings.push(Finding::advice(
            "access",
            "the well-known user `guest` is used; create a separate user for each service, with rights on its vhost",
        ));
    }
    findings.push(match client.publish.blocked() {
        Some(error) => Finding::bad("alarm", format!("{error}; look at `rabbitmq-diagnostics alarms`")),
        None => Finding::good("alarm", "none: the broker accepts publishes"),
    });
    let channels = limits.channel_max();
    let text = format!("{channels} channels a connection, frames of {} bytes", limits.frame_max());
    findings.push(if channels != 0 && channels < FEW_CHANNELS {
        Finding::advice(
            "limits",
            format!("{text}; each group of a process needs a channel: raise `channel_max`"),
        )
    } else {
        Finding::good("limits", text)
    });
    findings.push(match limits.heartbeat() {
        0 => Finding::advice(
            "heartbeat",
            "off: a connection that is lost silently is noticed late; set `heartbeat` of the broker to 60",
        ),
        seconds => Finding::good("heartbeat", format!("every {seconds} s")),
    });
    findings.push(held(client.publish.version()));
    findings.push(Finding::good("fsync", "quorum queues: a confirmed message is on the disks of a majority"));
    Ok(findings)
}

/// Whether the broker lets a handler run for a long time. AMQP does not report `consumer_timeout`.
fn held(version: Option<Version>) -> Finding {
    if version.is_some_and(Version::lets_consumers_hold) {
        return Finding::good(
            "consumer timeout",
            "a handler may take up to 24 days: the consumers request this, independent of the broker's `consumer_timeout`",
        );
    }
    Finding::advice(
        "consumer timeout",
        "a handler, or a keyed retry, that takes longer than the broker's `consumer_timeout` (30 minutes unless it is set) \
         loses the channel: all messages fetched on it are delivered again as one attempt more; set `consumer_timeout` in \
         rabbitmq.conf above the longest handler, or use RabbitMQ 3.12 or later, where the consumers request more",
    )
}

fn version(version: Version) -> Finding {
    if version.survives_full_disks() {
        return Finding::good("version", version.to_string());
    }
    Finding::advice(
        "version",
        format!(
            "{version}: its quorum queues can lose confirmed messages when the disk is full; keep `disk_free_limit` far \
             above the amount that is written there in ten seconds, or use RabbitMQ 4.3 or later"
        ),
    )
}
