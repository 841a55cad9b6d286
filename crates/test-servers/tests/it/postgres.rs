//! Tests PostgreSQL: databases, passwords and TLS.

use std::process::{Command, Output};
use test_servers::{ErrorKind, Postgres, Tls};

/// Runs `psql` as any client would: over TCP, with a URL.
async fn psql(url: String, environment: Vec<(&'static str, String)>) -> Output {
    let run = move || {
        Command::new("psql").args(["-X", "-t", "-A", "-c", "SELECT 42", &url]).envs(environment).output()
    };
    tokio::task::spawn_blocking(run).await.unwrap().unwrap()
}

#[tokio::test]
async fn databases_and_passwords() {
    let server = Postgres::shared().await;
    let url = server.database("first").await.unwrap();
    let output = psql(url, Vec::new()).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42");
    let refused = psql(server.url_of("postgres", "wrong", "first"), Vec::new()).await;
    assert!(!refused.status.success());
    let error = server.database("first").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Control);
    assert!(error.to_string().contains("already exists"), "{error}");
}

#[tokio::test]
async fn tls() {
    let server = Postgres::options().tls(Tls::Mutual).start().await.unwrap();
    let files = server.certificates().unwrap();
    let text = |path: &std::path::Path| path.display().to_string();
    let verify = |ca| vec![("PGSSLMODE", "verify-ca".to_owned()), ("PGSSLROOTCERT", text(ca))];
    let url = server.url().replace("?sslmode=require", "");
    let mut known = verify(&files.ca);
    known.extend([("PGSSLCERT", text(&files.client)), ("PGSSLKEY", text(&files.client_key))]);
    let output = psql(url.clone(), known).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!psql(url.clone(), verify(&files.ca)).await.status.success());
    assert!(!psql(url.clone(), verify(&files.stranger)).await.status.success());
    assert!(!psql(url, vec![("PGSSLMODE", "disable".to_owned())]).await.status.success());
}
