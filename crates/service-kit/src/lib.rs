//! What every process does first and last: configuration, telemetry, health, metrics, shutdown
