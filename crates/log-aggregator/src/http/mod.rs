//! HTTP routes: Logthon's API under all its paths, the `/api/v1` API, and the page.

mod aliases;
mod app;
mod error_response;
mod feed;
mod files;
mod info;
mod logs;
pub(crate) mod logthon_entry;
mod page;
mod pages;
mod query;
mod tail;
mod websocket;

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get, post};

pub(crate) use app::App;

/// Returns all routes, for merging at the root.
pub(crate) fn router(app: Arc<App>) -> Router {
    let routes: Vec<(&str, MethodRouter<Arc<App>>)> = vec![
        ("/logs", post(logs::add).get(logs::list).delete(logs::clear)),
        ("/", get(page::page)),
        ("/health", get(info::health)),
        ("/storage/info", get(info::storage)),
        ("/websocket/info", get(info::viewers)),
        ("/ws", get(websocket::watch)),
        ("/files", get(files::all).delete(files::remove_all)),
        ("/files/{name}", get(files::one).delete(files::remove)),
        ("/ui/{file}", get(page::asset)),
        ("/api/v1/query", get(query::query)),
        ("/api/v1/tail", get(tail::tail)),
    ];
    let mut taken = HashSet::new();
    let mut router = Router::new();
    for (path, methods) in routes {
        // The first route gets a path that several routes claim: `/api/logs` is the logs, not the page.
        for alias in aliases::aliases(path).into_iter().filter(|alias| taken.insert(alias.clone())) {
            router = router.route(&alias, methods.clone());
        }
    }
    router.with_state(app)
}
