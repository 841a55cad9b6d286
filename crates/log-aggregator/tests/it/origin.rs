//! Requests from pages of other sites can neither read nor change the logs; other clients are not affected.

use reqwest::{Method, StatusCode};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};

use crate::support::{Door, Served};

const SPELLINGS: [&str; 4] = ["", "/api", "/api/logs", "/api/logthon"];
const RECORD: &str = r#"{"service":"x","message":"a"}"#;

type Headers<'a> = &'a [(&'static str, &'a str)];

async fn send(door: &Door, method: Method, path: &str, headers: Headers<'_>) -> StatusCode {
    let mut request = door.client.request(method.clone(), door.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // Without a content type: a page can send this without a preflight request.
    let request = if method == Method::POST { request.body(RECORD) } else { request };
    request.send().await.expect("an answer").status()
}

async fn handshake(door: &Door, path: &str, headers: Headers<'_>) -> u16 {
    let mut request = format!("ws://{}{path}", door.address).into_client_request().expect("a request");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((_, response)) => response.status().as_u16(),
        Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn foreign_pages_neither_watch_nor_change() {
    let served = Served::new().await;
    served.at.log("x", "INFO", "kept").await;
    for origin in ["https://evil.example", "http://127.0.0.1:1", "null"] {
        let headers: Headers<'_> = &[("origin", origin)];
        for prefix in SPELLINGS {
            for slash in ["", "/"] {
                let path = |of: &str| format!("{prefix}{of}{slash}");
                assert_eq!(handshake(&served.at, &path("/ws"), headers).await, 403, "{}", path("/ws"));
                for (method, of) in [
                    (Method::POST, "/logs"),
                    (Method::DELETE, "/logs"),
                    (Method::DELETE, "/files"),
                    (Method::DELETE, "/files/a"),
                ] {
                    let status = send(&served.at, method, &path(of), headers).await;
                    assert_eq!(status, 403, "{origin} {}", path(of));
                }
            }
        }
        // The browser prevents reading: it hides the response, because no header allows another origin.
        let answer = served.at.client.get(served.at.url("/api/v1/query")).header("origin", origin).send();
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
    }
    let entries = served.at.entries().await;
    assert_eq!((entries.len(), &entries[0]["message"]), (1, &"kept".into()));
}

#[tokio::test]
async fn the_own_page_a_forwarded_one_an_allowed_one_and_programs_pass() {
    let served =
        Served::with(|config| config.http.allowed_origins = vec!["https://ops.example:8443".into()]).await;
    let own = format!("http://{}", served.at.address);
    let cases: [Headers<'_>; 4] = [
        &[],
        &[("origin", &own)],
        &[("origin", "https://logs.example"), ("x-forwarded-host", "logs.example")],
        &[("origin", "https://ops.example:8443")],
    ];
    for headers in cases {
        assert_eq!(send(&served.at, Method::POST, "/logs", headers).await, 200, "{headers:?}");
        assert_eq!(served.at.entries().await.len(), 1);
        assert_eq!(handshake(&served.at, "/ws", headers).await, 101, "{headers:?}");
        assert_eq!(send(&served.at, Method::DELETE, "/logs", headers).await, 200, "{headers:?}");
        assert_eq!(served.at.entries().await.len(), 0);
    }
}

#[tokio::test]
async fn the_refusal_says_what_to_do() {
    let served = Served::new().await;
    let request = served.at.client.delete(served.at.url("/logs")).header("origin", "https://ops.example");
    let answer: serde_json::Value = request.send().await.expect("an answer").json().await.expect("JSON");
    let detail = answer["detail"].as_str().expect("text");
    assert!(detail.contains("https://ops.example") && detail.contains("LOGTHON_ALLOWED_ORIGINS"), "{detail}");
}

#[tokio::test]
async fn a_rebound_name_reads_nothing_and_changes_nothing() {
    let served = Served::with(|config| config.http.allowed_hosts = vec!["logthon".into()]).await;
    served.at.log("x", "INFO", "kept").await;
    let rebound: Headers<'_> = &[("host", "evil.example:5000"), ("origin", "http://evil.example:5000")];
    for prefix in SPELLINGS {
        for (method, of) in [
            (Method::GET, "/logs"),
            (Method::POST, "/logs"),
            (Method::DELETE, "/logs"),
            (Method::GET, "/api/v1/query"),
            (Method::GET, "/api/v1/tail"),
            (Method::GET, "/health"),
            (Method::GET, "/"),
            (Method::GET, "/nothing"),
            (Method::OPTIONS, "/logs"),
            (Method::DELETE, "/files"),
        ] {
            let path = format!("{prefix}{of}");
            assert_eq!(send(&served.at, method.clone(), &path, rebound).await, 421, "{method} {path}");
        }
        assert_eq!(handshake(&served.at, &format!("{prefix}/ws"), rebound).await, 421);
    }
    for host in ["localhost:5000", "127.0.0.1", "[::1]:80", "logthon:5001"] {
        assert_eq!(send(&served.at, Method::POST, "/logs", &[("host", host)]).await, 200, "{host}");
        assert_eq!(handshake(&served.at, "/ws", &[("host", host)]).await, 101, "{host}");
    }
    assert_eq!(served.at.entries().await.len(), 5);
    let cross: Headers<'_> = &[("sec-fetch-site", "cross-site")];
    assert_eq!(send(&served.at, Method::GET, "/api/v1/query?text=zz", cross).await, 403);
}
