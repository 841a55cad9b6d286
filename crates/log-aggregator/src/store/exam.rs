//! The exam
pub async fn examine() {}
