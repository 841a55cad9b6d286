//! Opens a transport: the scheme of the URL selects it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use event_transport::sync::lock;
use event_transport::url::{BusUrl, URLS};
use event_transport::{Error, ErrorKind, MemoryTransport, Result, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use transport_sqlite::SqliteTransport;

/// The schemes of the transports that this crate knows, in every build.
const OWN: [&str; 8] = ["memory", "sqlite", "nats", "tls", "redis", "rediss", "amqp", "amqps"];

/// Opens a transport of another crate.
type Connect = Arc<dyn Fn(BusUrl) -> BoxFuture<'static, Result<Arc<dyn Transport>>> + Send + Sync>;

/// The transports of other crates, by scheme.
static OTHERS: Mutex<BTreeMap<String, Connect>> = Mutex::new(BTreeMap::new());

/// Adds a transport of another crate: from now on [`open`], [`Bus::connect`](crate::Bus::connect) and
/// [`Bus::from_env`](crate::Bus::from_env) call `connect` for the URLs with this scheme.
///
/// A scheme is registered for the whole process, at the start of `main`, because a URL comes from configuration and is
/// opened in many places: by services, tools and tests. A program that opens its transport in one place only needs no
/// scheme, see [`Bus::with_transport`](crate::Bus::with_transport).
///
/// ```
/// use event_client::transport::{self, MemoryTransport, Transport};
/// use event_client::{Bus, url::BusUrl};
/// use std::sync::Arc;
///
/// # #[tokio::main] async fn main() -> event_client::Result<()> {
/// transport::register("carrier", |url: BusUrl| async move {
///     // Your own transport; this one keeps everything in memory.
///     let memory = MemoryTransport::open(format!("memory:{}", url.rest()).parse()?)?;
///     Ok(Arc::new(memory) as Arc<dyn Transport>)
/// })?;
/// let bus = Bus::connect("carrier:pigeons").await?;
/// # bus.close().await
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::Config`] for a scheme that is registered already, that this crate uses itself, or that no URL can have:
/// it has lower-case letters, digits, `+`, `-` and `.`.
pub fn register<C, F>(scheme: &str, connect: C) -> Result<()>
where
    C: Fn(BusUrl) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Arc<dyn Transport>>> + Send + 'static,
{
    let refuse = |why: &str| {
        let error = Error::new(ErrorKind::Config, why);
        Err(error.during("register transport").with("scheme", scheme))
    };
    let valid =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.');
    if scheme.is_empty() || !scheme.bytes().all(valid) {
        return refuse("a scheme has lower-case letters, digits, `+`, `-` and `.`");
    }
    let mut others = lock(&OTHERS);
    if OWN.contains(&scheme) || others.contains_key(scheme) {
        return refuse("this scheme has a transport already; choose another one");
    }
    others.insert(scheme.to_owned(), Arc::new(move |url| connect(url).boxed()));
    Ok(())
}

/// Opens the transport that `url` names. [`docs`](super::docs) has a page for each transport, with all its options.
///
/// # Errors
/// [`ErrorKind::Config`] for an unknown scheme or option, [`ErrorKind::Unsupported`] for a transport that this
/// build does not include, and the errors of the transport itself.
pub async fn open(url: BusUrl) -> Result<Arc<dyn Transport>> {
    let shown = url.to_string();
    match url.scheme() {
        "memory" => MemoryTransport::open(url).map(|memory| Arc::new(memory) as Arc<dyn Transport>),
        "sqlite" => {
            Box::pin(SqliteTransport::open(url)).await.map(|sqlite| Arc::new(sqlite) as Arc<dyn Transport>)
        }
        #[cfg(feature = "nats")]
        "nats" | "tls" => Box::pin(transport_nats::NatsTransport::open(url))
            .await
            .map(|nats| Arc::new(nats) as Arc<dyn Transport>),
        #[cfg(feature = "redis")]
        "redis" | "rediss" => Box::pin(transport_redis::RedisTransport::open(url))
            .await
            .map(|redis| Arc::new(redis) as Arc<dyn Transport>),
        #[cfg(feature = "rabbitmq")]
        "amqp" | "amqps" => Box::pin(transport_rabbitmq::RabbitTransport::open(url))
            .await
            .map(|rabbit| Arc::new(rabbit) as Arc<dyn Transport>),
        #[cfg(not(feature = "nats"))]
        "nats" | "tls" => Err(left_out("nats")),
        #[cfg(not(feature = "redis"))]
        "redis" | "rediss" => Err(left_out("redis")),
        #[cfg(not(feature = "rabbitmq"))]
        "amqp" | "amqps" => Err(left_out("rabbitmq")),
        scheme => {
            let other = lock(&OTHERS).get(scheme).cloned();
            match other {
                Some(connect) => connect(url).await,
                None => Err(unknown(scheme)),
            }
        }
    }
    .map_err(|error: Error| error.during("connect").with("url", shown))
}

fn unknown(scheme: &str) -> Error {
    let others: String = lock(&OTHERS).keys().map(|other| format!(", `{other}:`")).collect();
    Error::new(ErrorKind::Config, format!("unknown scheme `{scheme}`; use {URLS}{others}"))
}

#[allow(dead_code, reason = "for builds without some feature")]
fn left_out(feature: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("this build does not include the transport; build event-client with its feature `{feature}`"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(_: BusUrl) -> Result<Arc<dyn Transport>> {
        Err(Error::new(ErrorKind::Denied, "for a test"))
    }

    #[tokio::test]
    async fn a_registered_scheme_is_opened_and_named_to_users() {
        register("connect-test", refused).unwrap();
        let error = open("connect-test://user:secret@host".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("url=connect-test://***@host"), "{error}");
        let error = open("nothing:".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("`connect-test:`"), "{error}");
    }

    #[test]
    fn a_scheme_has_one_transport_and_a_form_that_urls_can_have() {
        register("connect-once", refused).unwrap();
        for scheme in ["connect-once", "sqlite", "tls", "", "Upper", "a b", "a:"] {
            assert_eq!(register(scheme, refused).unwrap_err().kind(), ErrorKind::Config, "{scheme}");
        }
    }
}
