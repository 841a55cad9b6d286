//! Checks host and origin of each request: it has to address this server by one of its names, and if a page in a
//! browser sent it, the page has to be of this server's address or of an allowed origin.
//!
//! The server has no login, and loopback does not protect it from web pages in a browser on this machine. Browsers
//! let a page of any site open a WebSocket to it, or send a POST that needs no preflight request, but they send the
//! page's origin in `Origin`, and a page cannot change this header. A page can also make its own host name resolve to
//! this machine after it was loaded (DNS rebinding); the browser then treats all responses as same-origin. But the
//! browser still sends that name in `Host`. An address cannot be rebound, and browsers resolve `localhost`
//! themselves. Other clients send no `Origin`.

use super::Settings;
use crate::{Error, ErrorKind};
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use std::collections::BTreeSet;
use url::{Host, Url};

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// The allowed hosts and origins.
#[derive(Debug)]
pub(super) struct Guard {
    /// Names in lower case, without port and final dot.
    hosts: BTreeSet<String>,
    any_host: bool,
    /// As browsers write them: lower case, without default port and trailing slash.
    origins: BTreeSet<String>,
}

impl Guard {
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        let mut hosts = BTreeSet::from(["localhost".to_owned()]);
        // An address needs no entry; `bind` refuses an invalid address.
        hosts.extend(Host::parse(&settings.host).ok().and_then(name_of));
        let given = || settings.allowed_hosts.iter().map(|host| host.trim()).filter(|host| !host.is_empty());
        for host in given().filter(|host| *host != "*") {
            match host_of(host) {
                Some(host) => hosts.extend(name_of(host)),
                None => {
                    let text = format!(
                        "an allowed host has to be a name such as logs.example or `*`, found {host:?}"
                    );
                    return Err(Error::new(ErrorKind::InvalidValue, text));
                }
            }
        }
        let origins = settings.allowed_origins.iter().map(|origin| origin.trim());
        let origins = origins.filter(|origin| !origin.is_empty()).map(origin_of).collect::<Result<_, _>>()?;
        Ok(Self { hosts, any_host: given().any(|host| host == "*"), origins })
    }

    /// Returns status and reason of a refusal; `None` when the request is allowed.
    pub(super) fn refusal(&self, request: &Request) -> Option<(StatusCode, String)> {
        let (headers, authority) = (request.headers(), request.uri().authority());
        self.misdirected(headers, authority, request.version())
            .or_else(|| self.refuse_foreign(headers, request.method()))
            .or_else(|| self.foreign(headers, authority, request.method()))
    }

    /// Returns 421, or 400, when the request is not addressed to this server.
    fn misdirected(
        &self,
        headers: &HeaderMap,
        authority: Option<&Authority>,
        version: Version,
    ) -> Option<(StatusCode, String)> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() || (host.is_none() && authority.is_none() && version == Version::HTTP_11) {
            return Some((StatusCode::BAD_REQUEST, "a request has to have one Host header".into()));
        }
        let named = host.map(|host| host.to_str().ok().and_then(authority_of));
        for named in named.into_iter().chain(authority.map(|authority| Some(authority.clone()))) {
            let Some(named) = named else {
                return Some((
                    StatusCode::BAD_REQUEST,
                    "the Host header has to be a name or an address".into(),
                ));
            };
            if !self.is_own(&named) {
                let text = format!(
                    "the host name {:?} is not allowed: add it to LOGTHON_ALLOWED_HOSTS to allow it",
                    named.host()
                );
                return Some((StatusCode::MISDIRECTED_REQUEST, text));
            }
        }
        None
    }

    fn is_own(&self, authority: &Authority) -> bool {
        match Host::parse(authority.host()) {
            Ok(Host::Ipv4(_) | Host::Ipv6(_)) => true,
            Ok(name) => self.any_host || name_of(name).is_some_and(|name| self.hosts.contains(&name)),
            Err(_) => false,
        }
    }

    /// Returns 403 when a browser reports that a page of another site sent this request, unless the user followed a
    /// link.
    fn refuse_foreign(&self, headers: &HeaderMap, method: &Method) -> Option<(StatusCode, String)> {
        let is = |name: &HeaderName, value: &str| headers.get(name).is_some_and(|found| found == value);
        let opened = method == Method::GET && is(&FETCH_MODE, "navigate") && is(&FETCH_DEST, "document");
        let allowed = headers
            .get(header::ORIGIN)
            .is_some_and(|origin| origin.to_str().is_ok_and(|origin| self.allows(origin)));
        if !is(&FETCH_SITE, "cross-site") || opened || allowed {
            return None;
        }
        let text = "requests from pages of other sites are refused: add the page's origin to LOGTHON_ALLOWED_ORIGINS to allow it";
        Some((StatusCode::FORBIDDEN, text.into()))
    }

    /// Returns 403 for handshakes and changes that a page of a foreign origin sends. HTTP/2 has the host in the
    /// `authority`.
    fn foreign(
        &self,
        headers: &HeaderMap,
        authority: Option<&Authority>,
        method: &Method,
    ) -> Option<(StatusCode, String)> {
        if method.is_safe() && !headers.contains_key(header::UPGRADE) {
            return None;
        }
        fn text(value: &HeaderValue) -> Option<&str> {
            value.to_str().ok()
        }
        // Each proxy on the path may have added the host that the client addressed.
        let forwarded =
            headers.get_all(FORWARDED_HOST).iter().filter_map(text).flat_map(|hosts| hosts.split(','));
        let named = headers.get_all(header::HOST).iter().filter_map(text);
        let hosts: Vec<&str> =
            named.chain(authority.map(Authority::as_str)).chain(forwarded).map(str::trim).collect();
        let known = |origin: &str| self.allows(origin) || hosts.iter().any(|host| is_at(origin, host));
        let foreign =
            headers.get_all(header::ORIGIN).iter().find(|origin| !origin.to_str().is_ok_and(known))?;
        let foreign = String::from_utf8_lossy(foreign.as_bytes());
        let text = format!(
            "this request is refused to pages of {foreign}: the origin is not this server's; add it to LOGTHON_ALLOWED_ORIGINS to allow it"
        );
        Some((StatusCode::FORBIDDEN, text))
    }

    fn allows(&self, origin: &str) -> bool {
        self.origins.contains(&origin.to_ascii_lowercase())
    }
}

/// Parses the host of a setting `host[:port]`, which may contain non-ASCII letters that browsers encode as ASCII.
fn host_of(text: &str) -> Option<Host<String>> {
    let more = |c: char| c.is_whitespace() || "/\\?#@".contains(c);
    let url = Url::parse(&format!("http://{text}")).ok().filter(|_| !text.contains(more))?;
    url.host().map(|host| host.to_owned())
}

/// Parses `host[:port]`; refuses a user part, which a URL may have.
fn authority_of(text: &str) -> Option<Authority> {
    text.parse().ok().filter(|authority: &Authority| !authority.as_str().contains('@'))
}

/// Returns the name by which a host is compared; an address has none.
fn name_of(host: Host<String>) -> Option<String> {
    let Host::Domain(name) = host else { return None };
    Some(name.trim_end_matches('.').to_owned())
}

fn origin_of(text: &str) -> Result<String, Error> {
    match Url::parse(text).map(|url| (url.origin().ascii_serialization(), url)) {
        // A path after the host would never match an `Origin`, so such a setting is an error.
        Ok((origin, url)) if url.origin().is_tuple() && url.as_str() == format!("{origin}/") => Ok(origin),
        _ => {
            let text =
                format!("an allowed origin has to be one such as https://ops.example:8443, found {text:?}");
            Err(Error::new(ErrorKind::InvalidValue, text))
        }
    }
}

/// Returns whether the origin is at this `host[:port]`; the default port of the origin's scheme may be omitted.
fn is_at(origin: &str, host: &str) -> bool {
    let Ok(origin) = Url::parse(origin) else { return false };
    let Ok(own) = Url::parse(&format!("{}://{host}", origin.scheme())) else { return false };
    // Origins without a host (`null`, `file://`) equal no other origin.
    origin.has_host() && origin.origin() == own.origin()
}

#[cfg(test)]
mod tests;
