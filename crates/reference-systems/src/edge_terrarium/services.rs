//! Implements the file storage, the service sink and the audit log as bus services.

use std::path::PathBuf;
use std::sync::Arc;

use event_client::service::{Emitter, Handler, Msg, Req, Service, State};
use event_client::status::Status;
use event_client::{Bus, Request};
use event_schemas::edge::{FileCreated, RequestServed};
use serde::{Deserialize, Serialize};

/// A request to the file storage for a new file.
#[derive(Clone, Debug, Request, Serialize, Deserialize)]
#[request(name = "file-storage.create-file", reply = FileMade)]
pub struct CreateFile {
    /// Its name: letters, digits, `.`, `-` and `_`.
    pub filename: String,
    /// Its text.
    pub content: String,
    /// The name of the requesting service.
    pub service: String,
}

/// The file storage's reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileMade {
    /// The file's name.
    pub filename: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// The file storage's folder.
#[derive(Clone, Debug)]
pub struct Terrarium {
    folder: Arc<PathBuf>,
}

impl Terrarium {
    /// Opens a storage whose files are in `folder`.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn open(folder: impl Into<PathBuf>) -> std::io::Result<Self> {
        let folder = folder.into();
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder: Arc::new(folder) })
    }
}

/// Returns the services on `bus`, ready to start.
pub fn services(bus: &Bus, terrarium: &Terrarium) -> Vec<Service> {
    let storage = Service::new("file-storage").bus(bus.clone()).reply(create_file);
    let audit = Service::new("edge-audit").bus(bus.clone()).on(served.keyed()).on(created.keyed());
    vec![storage.with_state(terrarium.clone()), audit.with_state(())]
}

async fn create_file(
    State(terrarium): State<Terrarium>,
    out: Emitter,
    Req(file): Req<CreateFile>,
) -> Result<FileMade, Status> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if file.filename.is_empty() || file.filename.starts_with('.') || !file.filename.chars().all(safe) {
        return Err(Status::invalid_argument("a file name takes letters, digits, `.`, `-` and `_`"));
    }
    let size_bytes = file.content.len() as u64;
    let path = terrarium.folder.join(&file.filename);
    tokio::fs::write(&path, &file.content).await.map_err(|error| Status::internal(error.to_string()))?;
    let created = FileCreated { filename: file.filename.clone(), size_bytes, service: file.service };
    out.emit(created).await.map_err(|error| Status::unavailable(error.to_string()))?;
    tracing::info!(filename = file.filename, size_bytes, "file created");
    Ok(FileMade { filename: file.filename, size_bytes })
}

async fn served(Msg(request): Msg<RequestServed>) {
    tracing::info!(
        service = request.service,
        method = request.method,
        path = request.path,
        status = request.status,
        "request served"
    );
}

async fn created(Msg(file): Msg<FileCreated>) {
    tracing::info!(
        filename = file.filename,
        size_bytes = file.size_bytes,
        asked_by = file.service,
        "file in store"
    );
}
