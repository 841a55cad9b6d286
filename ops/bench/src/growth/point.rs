//! Measures one size of one row in a process of its own, so that CPU time and memory belong to that size only.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::args::Load;
use super::figures::Figure;
use super::row::{Bus, Row};
use super::store::Place;
use super::{backlog, groups, keys, topics};
use crate::spawn;

/// The maximum duration of one size; a backlog of a million messages takes minutes on a slow broker.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The task of a child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub row: Row,
    pub size: usize,
    pub place: Place,
    pub load: Load,
}

/// One size of a row in one round, and its result.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub bus: Bus,
    pub row: Row,
    pub size: usize,
    pub round: usize,
    pub figures: Vec<Figure>,
    /// The reason for missing figures.
    pub error: Option<String>,
}

/// Measures `task` in a child.
pub async fn in_child(task: &Task) -> Result<Vec<Figure>> {
    spawn::json(&["growth", "--point", &serde_json::to_string(task)?], PATIENCE).await
}

/// Measures `task` in this process.
pub async fn measure(task: Task) -> Result<Vec<Figure>> {
    if task.size == 0 {
        bail!("a size must be at least 1");
    }
    let Task { row, size, place, load } = &task;
    match row {
        Row::Backlog => backlog::measure(place, load, *size).await,
        Row::Groups => groups::measure(place, load, *size).await,
        Row::Topics => topics::measure(place, load, *size).await,
        Row::Keys => keys::many_keys(place, load, *size).await,
        Row::OneKey => keys::one_key(place, load, *size).await,
        Row::Processes => bail!("the row `processes` has several children"),
    }
}
