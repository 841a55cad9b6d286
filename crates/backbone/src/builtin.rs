//! Tasks that every backbone worker runs, so that schedules are useful without Rust code. They have their own queue,
//! `backbone`, so that they and users' tasks never wait for each other.

use event_client::Bus;
use event_client::codec::Codec;
use event_client::context::Context;
use event_client::envelope::{Meta, Mode, write};
use event_client::message::{Message, MessageId};
use event_client::subject::Subject;
use serde_json::value::RawValue;
use task_queue::{State, TaskContext, TaskError, Worker, task};
use uuid::Uuid;

/// Registers the tasks on a worker whose state is the bus.
pub(crate) fn register(worker: Worker) -> Worker {
    worker.register(publish_event).register(echo)
}

/// Publishes an event: `backbone task call backbone.publish_event -a '["orders.placed.v1", {"order_id": 7}]'`.
///
/// The event's id is derived from the task's id, so that a retry publishes the same event.
#[task(name = "backbone.publish_event", queue = "backbone")]
async fn publish_event(
    State(bus): State<Bus>,
    context: TaskContext,
    subject: String,
    data: Box<RawValue>,
) -> Result<String, TaskError> {
    let subject = Subject::new(&subject).map_err(TaskError::permanent)?;
    let id = MessageId::Uuid(Uuid::new_v5(&context.id(), b"publish_event"));
    let mut meta = Meta::new(id.clone(), "/backbone", subject.as_str());
    meta.caused_by(Context::current().as_ref());
    let (content_type, headers, body) = write(&mut meta, &data, Codec::Json, Mode::Structured)?;
    bus.publish_message(Message { id: id.clone(), headers, ..Message::new(subject, content_type, body) })
        .await?;
    Ok(id.to_string())
}

/// Returns its argument, to test whether a worker runs.
#[task(name = "backbone.echo", queue = "backbone")]
async fn echo(value: Box<RawValue>) -> Result<Box<RawValue>, TaskError> {
    Ok(value)
}
