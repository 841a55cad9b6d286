//! The paths and headers of the page and its files.

use reqwest::Method;

use crate::support::Served;

#[tokio::test]
async fn the_page_and_the_list_share_an_address() {
    let served = Served::new().await;
    let kind = async |path: &str, accept: &str| {
        let response = served
            .at
            .client
            .get(served.at.url(path))
            .header("accept", accept)
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), 200, "{path} {accept}");
        response.headers()["content-type"]
            .to_str()
            .expect("text")
            .split(';')
            .next()
            .expect("a kind")
            .to_owned()
    };
    let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
    for (path, accept, expected) in [
        ("/", "*/*", "text/html"),
        ("/api/logs/", "*/*", "text/html"),
        ("/api/logs/?x=1&y", "*/*", "text/html"),
        ("/api/logs/", "application/json", "application/json"),
        ("/api/logs", "*/*", "application/json"),
        ("/api/logs", browser, "text/html"),
        ("/api/logthon/", "*/*", "text/html"),
        ("/logs", browser, "application/json"),
        ("/api/logs/logs", browser, "application/json"),
    ] {
        assert_eq!(kind(path, accept).await, expected, "{path} {accept}");
    }
}

#[tokio::test]
async fn the_page_allows_nothing_but_its_own_files() {
    let served = Served::new().await;
    for path in ["/", "/ui/app.js", "/ui/app.css", "/api/logs/ui/app.js", "/api/ui/icon.svg"] {
        let response = served.at.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        let policy = response.headers()["content-security-policy"].to_str().expect("text").to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path}");
        assert!(!policy.contains("unsafe"), "{path}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{path}");
    }
    let page = served.at.get("/").await.text().await.expect("text");
    for inline in ["style=", "onclick", "<script>", "href=\"/", "src=\"/", "http:"] {
        assert!(!page.contains(inline), "{inline}");
    }
    assert_eq!(served.at.get("/ui/../Cargo.toml").await.status(), 404);
}

#[tokio::test]
async fn other_methods_and_paths_get_the_answer_of_the_api() {
    let served = Served::new().await;
    served.at.log("a", "INFO", "kept").await;
    let send = async |method: Method, path: &str| {
        let request = served.at.client.request(method, served.at.url(path)).header("accept", "text/html");
        request.send().await.expect("an answer")
    };
    // A HEAD request has the headers of the page and no body.
    for path in ["/", "/api/logs"] {
        let head = send(Method::HEAD, path).await;
        assert_eq!(
            (head.status().as_u16(), &head.headers()["content-type"]),
            (200, &"text/html; charset=utf-8".parse().expect("a value"))
        );
        assert!(head.headers().contains_key("content-security-policy"), "{path}");
    }
    for (method, path, status) in [
        (Method::POST, "/", 405),
        (Method::PUT, "/api/logs", 405),
        (Method::GET, "/nothing", 404),
        (Method::GET, "/ui/none.js", 404),
    ] {
        let answer = send(method.clone(), path).await;
        assert_eq!(answer.status(), status, "{method} {path}");
        let body: serde_json::Value = answer.json().await.expect("JSON");
        assert!(body["detail"].is_string(), "{method} {path}: {body}");
    }
    assert_eq!(send(Method::DELETE, "/api/logs").await.status(), 200);
    assert_eq!(served.at.entries().await.len(), 0, "a shared path is the list's for every other method");
}

#[tokio::test]
async fn the_page_has_the_configured_delay() {
    let served = Served::with(|config| config.reconnect_delay = std::time::Duration::from_millis(1234)).await;
    let page = served.at.get("/").await.text().await.expect("text");
    assert!(page.contains(r#"<meta name="reconnect-delay" content="1234">"#), "{page}");
}
