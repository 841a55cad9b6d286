//! A script: several statements that are sent to SQLite in one call, and their results.

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Either, Encode, Executor, Row, Sqlite, Type};

use super::error::Sql;

/// Statements that are sent to the connection's thread together, because one round trip to that thread costs more than
/// most statements.
#[derive(Default)]
pub(super) struct Script {
    sql: String,
    arguments: SqliteArguments,
    steps: usize,
}

/// The result rows of each statement of a [`Script`].
pub(super) type Answers = Vec<Vec<SqliteRow>>;

impl Script {
    /// Adds a statement with `?` for its arguments. Returns the index of its result.
    pub(super) fn statement(&mut self, sql: &str) -> usize {
        self.sql.push_str(sql);
        self.sql.push(';');
        self.steps += 1;
        self.steps - 1
    }

    /// Binds the next argument.
    pub(super) fn bind<'t, T: Encode<'t, Sqlite> + Type<Sqlite>>(&mut self, value: T) -> &mut Self {
        self.arguments.add(value).expect("numbers, text and bytes always encode");
        self
    }

    /// Adds `{head} (VALUES (?, …), …) {tail}` for all rows, in statements of 64, 8 or 1 rows, so that the statement
    /// cache sees only three SQL texts. Returns the indexes of their results.
    pub(super) fn rows<T>(
        &mut self,
        head: &str,
        columns: usize,
        tail: &str,
        rows: Vec<T>,
        mut bind: impl FnMut(&mut Self, T),
    ) -> std::ops::Range<usize> {
        let start = self.steps;
        let mut left = rows.len();
        let mut rows = rows.into_iter();
        for chunk in [64, 8, 1] {
            while left >= chunk {
                let row = format!("({})", vec!["?"; columns].join(","));
                self.statement(&format!("{head} (VALUES {}) {tail}", vec![row; chunk].join(",")));
                rows.by_ref().take(chunk).for_each(|row| bind(self, row));
                left -= chunk;
            }
        }
        start..self.steps
    }

    /// The number of statements.
    pub(super) fn len(&self) -> usize {
        self.steps
    }

    /// Runs all statements; stops at the first error.
    pub(super) async fn run(self, connection: &mut SqliteConnection) -> Sql<Answers> {
        let mut answers = Vec::with_capacity(self.steps);
        let mut rows = Vec::new();
        let query = sqlx::query_with(AssertSqlSafe(self.sql), self.arguments);
        let mut stream = connection.fetch_many(query);
        while let Some(step) = stream.try_next().await? {
            match step {
                Either::Left(_) => answers.push(std::mem::take(&mut rows)),
                Either::Right(row) => rows.push(row),
            }
        }
        Ok(answers)
    }
}

/// Writes numbers as a JSON array for `json_each`.
pub(super) fn json(numbers: impl IntoIterator<Item = i64>) -> String {
    let mut text = String::from("[");
    for number in numbers {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&number.to_string());
    }
    text.push(']');
    text
}

/// The first column of each row.
pub(super) fn ids(rows: &[SqliteRow]) -> Vec<i64> {
    rows.iter().filter_map(|row| row.try_get(0).ok()).collect()
}
