//! NATS' keys, and the tokens of its operator mode: an operator signs an account, the account signs a user.

use crate::{Error, ErrorKind, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// One key pair, as text.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub(crate) public: String,
    pub(crate) seed: String,
}

impl Keys {
    /// Creates a new user's keys.
    pub(crate) fn user() -> Result<Self> {
        let pair = KeyPair::new_user();
        Ok(Self { public: pair.public_key(), seed: pair.seed().map_err(refused)? })
    }
}

/// One operator with one account (and the system account) and one user of that account.
#[derive(Debug)]
pub(crate) struct Operator {
    token: String,
    accounts: [(String, String); 2],
    user: String,
    seed: String,
}

impl Operator {
    pub(crate) fn new() -> Result<Self> {
        let operator = KeyPair::new_operator();
        let user = Keys::user()?;
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        // The system account must not have JetStream.
        let system_limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1,
        });
        let account = |pair: &KeyPair, name: &str, limits: Value| -> Result<(String, String)> {
            let nats = json!({ "type": "account", "version": 2, "limits": limits });
            Ok((pair.public_key(), signed(&operator, name, &pair.public_key(), &nats)?))
        };
        let (system, account_key) = (KeyPair::new_account(), KeyPair::new_account());
        let accounts = [account(&system, "SYS", system_limits)?, account(&account_key, "TEST", limits)?];
        let nats = json!({ "type": "operator", "version": 2, "system_account": accounts[0].0 });
        let token = signed(&operator, "test", &operator.public_key(), &nats)?;
        let nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {} });
        let jwt = signed(&account_key, "tester", &user.public, &nats)?;
        Ok(Self { token, accounts, user: jwt, seed: user.seed })
    }

    /// Returns the operator's lines in the server's configuration.
    pub(crate) fn configuration(&self) -> String {
        let [(system, system_token), (account, token)] = &self.accounts;
        format!(
            "operator: {}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{ {system}: {system_token}\n {account}: {token} }}\n",
            self.token
        )
    }

    /// Returns the content of the user's credentials file.
    pub(crate) fn creds(&self) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            self.user, self.seed
        )
    }
}

fn signed(signer: &KeyPair, name: &str, subject: &str, nats: &Value) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let claims = json!({ "jti": subject, "iat": now, "iss": signer.public_key(), "name": name, "sub": subject, "nats": nats });
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = format!("{}.{}", encode(&header), encode(&claims));
    let signature = signer.sign(body.as_bytes()).map_err(refused)?;
    Ok(format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn refused(error: nkeys::error::Error) -> Error {
    Error::new(ErrorKind::System, format!("cannot make NATS keys: {error}"))
}
