//! Tests that wrong credentials, missing tables and missing permissions give clear errors.

use event_client::ErrorKind;

use super::*;

async fn relay_error(pool: &PgPool, bus: &str) -> event_client::Error {
    let relay = outbox::Relay::new(pool.clone(), memory(bus).await);
    relay.run_until(std::future::pending()).await.unwrap_err()
}

#[tokio::test]
async fn missing_tables_are_named() {
    let url = Postgres::shared().await.database("refusals_tables").await.unwrap();
    let pool = open(&url).await;
    let error = relay_error(&pool, "pg-missing").await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("create_tables"), "{error}");
    let mut tx = pool.begin().await.unwrap();
    let error = outbox::stage(&mut tx, placed(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        error.to_string().contains("create_tables") && error.to_string().contains("orders.placed"),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_password_or_database_is_named_and_the_password_is_not() {
    let server = Postgres::shared().await;
    for (url, kind, text) in [
        (server.url_of("postgres", "hunter2", "postgres"), ErrorKind::Denied, "check name and password"),
        (server.url_of("postgres", "secret", "nowhere"), ErrorKind::Config, "does not exist"),
    ] {
        let pool = PgPoolOptions::new().connect_lazy(&url).unwrap();
        let error = relay_error(&pool, "pg-refusals").await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text) && !error.to_string().contains("hunter2"), "{error}");
        assert_eq!(outbox::create_tables(&pool).await.unwrap_err().kind(), kind);
    }
}

#[tokio::test]
async fn a_missing_permission_is_named_and_existing_tables_need_no_right_to_create() {
    let (_, owner) = database("refusals_rights").await;
    for statement in [
        "CREATE ROLE clerk LOGIN PASSWORD 'secret'",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON inbox TO clerk",
        "GRANT SELECT ON outbox, outbox_relay TO clerk",
    ] {
        query(statement).execute(&owner).await.unwrap();
    }
    let pool = open(&Postgres::shared().await.url_of("clerk", "secret", "refusals_rights")).await;
    outbox::create_tables(&pool).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    assert!(event_client::inbox::once(&mut tx, "k").await.unwrap());
    let error = outbox::stage(&mut tx, placed(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("outbox") && error.to_string().contains("SELECT, INSERT"), "{error}");
    drop(tx);
    stage_all(&owner, [placed(1)]).await;
    assert_eq!(relay_error(&pool, "pg-rights").await.kind(), ErrorKind::Denied);

    // With the permissions that the error names, all operations work.
    query("GRANT INSERT, UPDATE, DELETE ON outbox, outbox_relay TO clerk").execute(&owner).await.unwrap();
    let bus = memory("pg-rights").await;
    let subscription = listen(&bus).await;
    let relay = Working::start(sleeper(&pool, &bus));
    stage_all(&pool, [placed(2)]).await;
    assert_eq!(next_order(&subscription).await, placed(1));
    assert_eq!(next_order(&subscription).await, placed(2));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_created_once_by_many() {
    let url = Postgres::shared().await.database("refusals_many").await.unwrap();
    let pool = open(&url).await;
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { outbox::create_tables(&pool).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    stage_all(&pool, [placed(1)]).await;
}
