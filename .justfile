# Shortcuts for daily work; `just` lists them. CI runs .ci/run, which does not use this file.

default:
    @just --list

# Formatting and lints, warnings as errors (seconds when warm)
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Every test; arguments replace --workspace: just test -p task-queue
test *args:
    ops/test {{args}}

# The API documentation, broken links as errors
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# Licences, duplicate versions, sources and advisories (cargo install cargo-deny; fetches from GitHub)
deny:
    cargo deny --config .deny.toml check
