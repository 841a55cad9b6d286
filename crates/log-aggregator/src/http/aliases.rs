//! Lists the alternative paths of a route, which clients, gateways and older releases of Logthon use.

/// Returns every path under which `path` is served: unchanged, with the prefixes of the platform's gateway
/// (`/api/logs/…`, `/api/logthon/…`), with the prefix of older releases (`/api/…`), each with and without a trailing
/// slash.
pub fn paths(path: &str) -> Vec<String> {
    let mut all = Vec::new();
    for prefix in ["", "/api", "/api/logs", "/api/logthon"] {
        let bare = format!("{prefix}{}", path.trim_end_matches('/'));
        let slashed = format!("{bare}/");
        all.extend([bare, slashed].into_iter().filter(|path| !path.is_empty()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::paths;

    #[test]
    fn logs_have_eight_names() {
        let logs = paths("/logs");
        for name in ["/logs", "/logs/", "/api/logs", "/api/logs/", "/api/logs/logs", "/api/logthon/logs/"] {
            assert!(logs.iter().any(|alias| alias == name), "{name}");
        }
        assert_eq!(logs.len(), 8);
        assert_eq!(paths("/")[0], "/");
    }
}
