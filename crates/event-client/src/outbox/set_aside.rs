//! For operators: the number of events in the outbox, and the events that were set aside because they cannot be
//! published.

use sqlx::Pool;

use super::{Counts, Dialect, Row, announce};
use crate::sql::explain;
use event_transport::error::Result;

/// An event that cannot be published: it is too large for the bus, or its form is one that the bus refuses.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SetAside {
    /// The row as it was staged.
    pub row: Row,
    /// The error text that states why the event cannot be published.
    pub error: String,
}

/// Counts the events that wait in the outbox and the events that were set aside.
///
/// # Errors
/// A database error.
pub async fn counts<D: Dialect>(pool: &Pool<D>) -> Result<Counts> {
    let sql = explain::<D>("count outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    D::counts(&mut connection).await.map_err(&sql)
}

/// Returns events that were set aside, the oldest first, at most `limit`.
///
/// # Errors
/// A database error.
pub async fn set_aside<D: Dialect>(pool: &Pool<D>, limit: u32) -> Result<Vec<SetAside>> {
    let sql = explain::<D>("list outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    let rows = D::refused(&mut connection, limit).await.map_err(&sql)?;
    Ok(rows.into_iter().map(|(row, error)| SetAside { row, error }).collect())
}

/// Makes the relay retry events that were set aside within seconds, all of them or those with these ids; returns
/// their number. They are published after the events of their key that were published meanwhile.
///
/// # Errors
/// A database error; then nothing has changed.
pub async fn retry<D: Dialect>(pool: &Pool<D>, ids: Option<&[String]>) -> Result<u64> {
    let sql = explain::<D>("retry outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    let count = D::retry(&mut connection, ids.map(<[String]>::to_vec)).await.map_err(&sql)?;
    announce();
    Ok(count)
}

/// Deletes events that were set aside, all of them or those with these ids; returns their number.
///
/// # Errors
/// A database error; then nothing is deleted.
pub async fn discard<D: Dialect>(pool: &Pool<D>, ids: Option<&[String]>) -> Result<u64> {
    let sql = explain::<D>("drop from outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    D::discard(&mut connection, ids.map(<[String]>::to_vec)).await.map_err(&sql)
}
