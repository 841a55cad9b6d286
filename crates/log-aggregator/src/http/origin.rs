//! Who may change or watch from a browser: pages of this server's own address, and those that the settings name.
//!
//! There is no login here, and loopback does not keep a page out that a browser of this very machine shows: no
//! rule of browsers hinders a page of any site from opening a WebSocket here, or from sending a POST that needs no
//! permission first. But a browser says in `Origin` where the page came from, and no page can change that; other
//! clients send none. What only reads (GET) needs no guard: without CORS headers, of which there are none here,
//! browsers hide the answer from pages of other origins.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use reqwest::Url;

use super::{App, reply};

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Refuses handshakes and changes that a page of a foreign origin sends.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let harmless = request.method().is_safe() && !headers.contains_key(header::UPGRADE);
    if !harmless
        && let Some(origin) = foreign(headers, request.uri().authority(), &app.config.allowed_origins)
    {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let text = format!(
            "pages of {origin} may not do this here: the origin is not this server's; name it in LOGTHON_ALLOWED_ORIGINS to allow it"
        );
        return reply::refuse(StatusCode::FORBIDDEN, text);
    }
    next.run(request).await
}

/// The first origin that is neither the server's nor allowed. HTTP/2 has the host in the `authority`.
fn foreign<'a>(
    headers: &'a HeaderMap,
    authority: Option<&Authority>,
    allowed: &[String],
) -> Option<&'a HeaderValue> {
    let text = |value: &'a HeaderValue| value.to_str().ok();
    // Each proxy on the way may have added the host that it was asked for.
    let forwarded =
        headers.get_all(FORWARDED_HOST).iter().filter_map(text).flat_map(|hosts| hosts.split(','));
    let hosts: Vec<&str> = headers
        .get_all(header::HOST)
        .iter()
        .filter_map(text)
        .chain(authority.map(Authority::as_str))
        .chain(forwarded)
        .map(str::trim)
        .collect();
    let known = |origin: &str| {
        allowed.iter().any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
            || hosts.iter().any(|host| is_at(origin, host))
    };
    headers.get_all(header::ORIGIN).iter().find(|origin| !origin.to_str().is_ok_and(known))
}

/// Whether the origin is at this `host[:port]`; the port of the origin's scheme may be left out.
fn is_at(origin: &str, host: &str) -> bool {
    let Ok(origin) = Url::parse(origin) else { return false };
    let Ok(own) = Url::parse(&format!("{}://{host}", origin.scheme())) else { return false };
    // Origins without a host (`null`, `file://`) are equal to none.
    origin.has_host() && origin.origin() == own.origin()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        foreign(&map, None, &["https://ops.example/".into()]).is_some()
    }

    #[test]
    fn the_server_s_own_origin_and_none_pass() {
        for headers in [
            &[("host", "localhost:5000")][..],
            &[("host", "localhost:5000"), ("origin", "http://localhost:5000")],
            &[("host", "LocalHost:5000"), ("origin", "http://localhost:5000")],
            &[("host", "[::1]:5000"), ("origin", "http://[::1]:5000")],
            &[("host", "logs.example"), ("origin", "https://logs.example")],
            &[("host", "logs.example:443"), ("origin", "https://logs.example")],
            &[("host", "a:1"), ("x-forwarded-host", "logs.example, b:2"), ("origin", "https://logs.example")],
            &[("host", "localhost:5000"), ("origin", "https://OPS.example")],
        ] {
            assert!(!refused(headers), "{headers:?}");
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
            &[("host", "a:1"), ("x-forwarded-host", "b:2"), ("origin", "http://c:3")],
            &[("origin", "http://localhost:5000")],
            &[("host", "a:1"), ("origin", "http://a:1"), ("origin", "http://evil.example")],
        ] {
            assert!(refused(headers), "{headers:?}");
        }
    }

    #[test]
    fn http_2_names_the_host_as_authority() {
        let headers = HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static("http://logs:5000"))]);
        let (own, other) = (Authority::from_static("logs:5000"), Authority::from_static("logs:5001"));
        assert!(foreign(&headers, Some(&own), &[]).is_none());
        assert!(foreign(&headers, Some(&other), &[]).is_some());
    }
}
