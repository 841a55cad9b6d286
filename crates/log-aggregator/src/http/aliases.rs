//! The spellings of a path: what clients, gateways and older releases of Logthon call the same thing.

/// Every path under which `path` is served: as it is, as the platform's gateway passes it on (`/api/logs/…`,
/// `/api/logthon/…`), as older releases had it (`/api/…`), each with and without a slash at the end.
pub(super) fn aliases(path: &str) -> Vec<String> {
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
    use super::aliases;

    #[test]
    fn logs_have_eight_names() {
        let logs = aliases("/logs");
        for name in ["/logs", "/logs/", "/api/logs", "/api/logs/", "/api/logs/logs", "/api/logthon/logs/"] {
            assert!(logs.iter().any(|alias| alias == name), "{name}");
        }
        assert_eq!(logs.len(), 8);
        assert_eq!(aliases("/")[0], "/");
    }
}
