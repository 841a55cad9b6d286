//! HTTP routes: Logthon's API under all its paths, and the `/api/v1` API.

mod aliases;
mod app;
mod error_response;
mod feed;
mod files;
mod info;
mod logs;
pub(crate) mod logthon_entry;
mod pages;
mod query;
mod tail;
mod websocket;

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get, post};

pub use aliases::paths;
pub(crate) use app::App;

/// Returns all routes, for merging at the root.
pub(crate) fn router(app: Arc<App>) -> Router {
    let routes: Vec<(&str, MethodRouter<Arc<App>>)> = vec![
        ("/logs", post(logs::add).get(logs::list).delete(logs::clear)),
        ("/health", get(info::health)),
        ("/storage/info", get(info::storage)),
        ("/websocket/info", get(info::viewers)),
        ("/ws", get(websocket::watch)),
        ("/files", get(files::all).delete(files::remove_all)),
        ("/files/{name}", get(files::one).delete(files::remove)),
        ("/api/v1/query", get(query::query)),
        ("/api/v1/tail", get(tail::tail)),
    ];
    let mut router = Router::new();
    for (path, methods) in routes {
        for path in paths(path) {
            router = router.route(&path, methods.clone());
        }
    }
    router.with_state(app)
}
