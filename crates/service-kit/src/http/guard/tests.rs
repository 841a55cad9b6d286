//! Tests the guard's decisions on hosts, origins and sites of requests.

use super::*;

const OPS: &str = "https://Ops.example:443/";

fn guard() -> Guard {
    let settings = Settings {
        host: "Logs.internal".into(),
        allowed_hosts: vec!["backbone:5000".into(), "Bücher.example".into()],
        allowed_origins: vec![OPS.into(), " http://a:8080".into()],
        ..Settings::default()
    };
    Guard::new(&settings).expect("sound settings")
}

/// Returns the status of a request with these headers; 200 when it is allowed.
fn status(method: Method, uri: &str, headers: &[(&'static str, &str)]) -> u16 {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(axum::body::Body::empty()).expect("a request");
    guard().refusal(&request).map_or(200, |(status, _)| status.as_u16())
}

#[test]
fn addresses_localhost_the_bound_name_and_named_hosts_are_this_server() {
    for host in [
        "127.0.0.1:5000",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]:5000",
        "[2001:db8::7]",
        "localhost",
        "LocalHost:5000",
        "localhost.:5000",
        "logs.internal:5000",
        "backbone:5000",
        "BACKBONE:81",
        "xn--bcher-kva.example",
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS] {
            assert_eq!(status(method, "/logs", &[("host", host)]), 200, "{host}");
        }
    }
}

#[test]
fn every_other_name_is_misdirected_whatever_is_asked() {
    for host in [
        "evil.example:5000",
        "localhost.evil.example",
        "127.0.0.1.evil.example:5000",
        "backbone.evil.example",
        "evil-localhost",
        "xn--bcher-kva.example.evil",
    ] {
        for (method, path) in [(Method::GET, "/metrics"), (Method::POST, "/logs"), (Method::HEAD, "/none")] {
            let own = format!("http://{host}");
            assert_eq!(status(method, path, &[("host", host), ("origin", &own)]), 421, "{host}");
        }
    }
    let absolute = "http://evil.example/logs";
    assert_eq!(
        status(Method::GET, absolute, &[("host", "localhost")]),
        421,
        "the target's host counts as well"
    );
    assert_eq!(status(Method::GET, "/", &[("host", "localhost"), ("x-forwarded-host", "evil.example")]), 200);
}

#[test]
fn a_request_has_one_host_that_can_be_read() {
    for headers in [
        &[][..],
        &[("host", "localhost"), ("host", "evil.example")],
        &[("host", "")],
        &[("host", "a b")],
        &[("host", "evil@localhost")],
        &[("host", "localhost/x")],
    ] {
        assert_eq!(status(Method::GET, "/", headers), 400, "{headers:?}");
    }
    let old =
        Request::builder().version(Version::HTTP_10).body(axum::body::Body::empty()).expect("a request");
    assert!(guard().refusal(&old).is_none(), "HTTP/1.0 has no such header, and no browser speaks it");
}

#[test]
fn any_name_passes_when_the_settings_say_so() {
    let settings = Settings { allowed_hosts: vec!["*".into()], ..Settings::default() };
    let request = Request::builder().header("host", "anything").body(axum::body::Body::empty());
    assert!(Guard::new(&settings).expect("sound").refusal(&request.expect("a request")).is_none());
}

#[test]
fn pages_of_other_sites_ask_nothing_but_readers_may_follow_a_link() {
    let cross = ("sec-fetch-site", "cross-site");
    let host = ("host", "localhost:5000");
    let link = [host, cross, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    let frame = [host, cross, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
    assert_eq!(status(Method::GET, "/logs", &[host, cross]), 403);
    assert_eq!(status(Method::GET, "/metrics", &[host, cross]), 403);
    assert_eq!(status(Method::GET, "/", &frame), 403);
    assert_eq!(status(Method::POST, "/", &link), 403, "a form that is sent is no link");
    assert_eq!(status(Method::GET, "/", &link), 200);
    assert_eq!(status(Method::POST, "/logs", &[host, cross, ("origin", "https://ops.example")]), 200);
    for own in ["same-origin", "same-site", "none"] {
        assert_eq!(status(Method::GET, "/logs", &[host, ("sec-fetch-site", own)]), 200, "{own}");
    }
}

#[test]
fn the_own_origin_and_none_may_change_something() {
    for headers in [
        &[("host", "localhost:5000")][..],
        &[("host", "localhost:5000"), ("origin", "http://localhost:5000")],
        &[("host", "LocalHost:5000"), ("origin", "http://localhost:5000")],
        &[("host", "[::1]:5000"), ("origin", "http://[::1]:5000")],
        &[("host", "logs.internal"), ("origin", "https://logs.internal")],
        &[("host", "logs.internal:443"), ("origin", "https://logs.internal")],
        &[
            ("host", "10.0.0.1:1"),
            ("x-forwarded-host", "logs.example, b:2"),
            ("origin", "https://logs.example"),
        ],
        &[("host", "localhost:5000"), ("origin", "https://OPS.example")],
        &[("host", "localhost:5000"), ("origin", "http://a:8080")],
    ] {
        assert_eq!(status(Method::POST, "/logs", headers), 200, "{headers:?}");
    }
}

#[test]
fn every_other_origin_is_foreign() {
    for headers in [
        &[("host", "localhost:5000"), ("origin", "https://evil.example")][..],
        &[("host", "localhost:5000"), ("origin", "http://localhost:5001")],
        &[("host", "localhost:5000"), ("origin", "http://localhost")],
        &[("host", "localhost:5000"), ("origin", "http://localhost.evil.example:5000")],
        &[("host", "localhost:5000"), ("origin", "http://ops.example")],
        &[("host", "localhost:5000"), ("origin", "null")],
        &[("host", "localhost:5000"), ("origin", "")],
        &[("host", "localhost:5000"), ("origin", "file://")],
        &[("host", "10.0.0.1:1"), ("x-forwarded-host", "b:2"), ("origin", "http://c:3")],
        &[("host", "10.0.0.1:1"), ("origin", "http://10.0.0.1:1"), ("origin", "http://evil.example")],
    ] {
        assert_eq!(status(Method::DELETE, "/logs", headers), 403, "{headers:?}");
        let mut handshake = headers.to_vec();
        handshake.push(("upgrade", "websocket"));
        assert_eq!(status(Method::GET, "/ws", &handshake), 403, "{headers:?}");
        assert_eq!(status(Method::GET, "/logs", headers), 200, "the browser hides the answer: {headers:?}");
    }
}

#[test]
fn settings_that_name_nothing_are_refused_with_the_word() {
    for wrong in ["*", "null", "ops.example", "localhost:5000", "https://a/path", "https://a?x"] {
        let settings = Settings { allowed_origins: vec![wrong.into()], ..Settings::default() };
        let error = Guard::new(&settings).expect_err(wrong);
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
    }
    for wrong in ["http://logs.example", "a b", "logs.example/", "user@logs.example"] {
        let settings = Settings { allowed_hosts: vec![wrong.into()], ..Settings::default() };
        let error = Guard::new(&settings).expect_err(wrong);
        assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
    }
}
