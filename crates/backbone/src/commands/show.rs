//! Formats one event: as a line of text, or as a JSON object.

use event_client::envelope::Envelope;
use event_client::message::Message;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use terminal::{Output, plain, plain_json};

/// The JSON output of an event.
#[derive(Serialize)]
struct Line<'a> {
    data: Option<&'a RawValue>,
    #[serde(flatten)]
    rest: Value,
}

/// Prints a message with its headers, decoded as far as possible.
pub(crate) fn message(output: Output, message: &Message, extra: &[(&str, Value)]) -> anyhow::Result<()> {
    Ok(output.line(&text(output, message, extra))?)
}

/// Returns the line that [`message`] prints.
pub(crate) fn text(output: Output, message: &Message, extra: &[(&str, Value)]) -> String {
    let envelope = Envelope::read_plain(message, None);
    // The data are never parsed to numbers: digits are shown as they were sent.
    let data = envelope.as_ref().ok().and_then(Envelope::json);
    if output.is_json() {
        let mut line = json!({
            "subject": message.subject.as_str(), "id": message.id.to_string(), "key": message.key,
            "content_type": message.content_type, "headers": message.headers.iter().collect::<std::collections::BTreeMap<_, _>>(),
        });
        let object = line.as_object_mut().expect("built as an object");
        if let Ok(envelope) = &envelope {
            let meta = &envelope.meta;
            object.insert("source".into(), meta.source.as_str().into());
            object.insert("time".into(), meta.time.map(|time| time.to_string()).into());
            object
                .insert("correlationid".into(), meta.correlationid.as_ref().map(ToString::to_string).into());
            object.insert("causationid".into(), meta.causationid.as_ref().map(ToString::to_string).into());
        }
        if let Err(error) = &envelope {
            object.insert("undecodable".into(), error.to_string().into());
        }
        for (name, value) in extra {
            object.insert((*name).into(), value.clone());
        }
        return output.json_text(&Line { data: data.as_deref(), rest: line });
    }
    let time = envelope.as_ref().ok().and_then(|envelope| envelope.meta.time);
    let time = time.map_or_else(|| "-".to_owned(), |time| time.strftime("%H:%M:%S%.3f").to_string());
    let body = match (data, envelope) {
        (Some(data), _) => plain_json(data.get()),
        (None, Ok(envelope)) => format!("{} bytes of {}", envelope.data().len(), message.content_type),
        (None, Err(error)) => format!("undecodable: {error}"),
    };
    let notes: Vec<_> = extra
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let notes =
        if notes.is_empty() { String::new() } else { output.dim(&format!(" ({})", plain(&notes.join(" ")))) };
    format!("{} {} {}{notes}", output.dim(&time), output.bold(&plain(message.subject.as_str())), plain(&body))
}
