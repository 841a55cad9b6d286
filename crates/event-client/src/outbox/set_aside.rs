//! For operators: what stands in the outbox, and what to do with what could not be published.

use sqlx::Pool;

use super::{Counts, Dialect, Row, announce};
use crate::error::Result;
use crate::sql::explain;

/// An event that cannot be published: too large for the bus, or of a shape that it refuses.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SetAside {
    /// As it was staged.
    pub row: Row,
    /// What the bus said.
    pub error: String,
}

/// How much waits in the outbox and how much was set aside.
///
/// # Errors
/// What the database says.
pub async fn counts<D: Dialect>(pool: &Pool<D>) -> Result<Counts> {
    let sql = explain::<D>("count outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    D::counts(&mut connection).await.map_err(&sql)
}

/// Events that were set aside, the oldest first, at most `limit`.
///
/// # Errors
/// What the database says.
pub async fn set_aside<D: Dialect>(pool: &Pool<D>, limit: u32) -> Result<Vec<SetAside>> {
    let sql = explain::<D>("list outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    let rows = D::refused(&mut connection, limit).await.map_err(&sql)?;
    Ok(rows.into_iter().map(|(row, error)| SetAside { row, error }).collect())
}

/// Lets events that were set aside be tried again within seconds, all of them or those with these ids; answers
/// how many. They come after what was published of their key meanwhile.
///
/// # Errors
/// What the database says; then nothing has changed.
pub async fn retry<D: Dialect>(pool: &Pool<D>, ids: Option<&[String]>) -> Result<u64> {
    let sql = explain::<D>("retry outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    let count = D::retry(&mut connection, ids.map(<[String]>::to_vec)).await.map_err(&sql)?;
    announce();
    Ok(count)
}

/// Deletes events that were set aside, all of them or those with these ids; answers how many.
///
/// # Errors
/// What the database says; then nothing is deleted.
pub async fn discard<D: Dialect>(pool: &Pool<D>, ids: Option<&[String]>) -> Result<u64> {
    let sql = explain::<D>("drop from outbox");
    let mut connection = pool.acquire().await.map_err(&sql)?;
    D::discard(&mut connection, ids.map(<[String]>::to_vec)).await.map_err(&sql)
}
