//! Typed events, requests and log shipping over one messaging contract
