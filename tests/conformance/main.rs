//! Runs the exam (conformance cases) over every transport of this build:
//! `cargo test -p backbone-tests --test conformance -- memory::`.

use std::sync::Arc;

use event_client::transport::Capabilities;
use event_conformance::{Case, Fixture, cases, play_if_asked};
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use test_servers::Generation;

mod memory;
mod nats;
mod outside;
mod rabbitmq;
mod redis;
mod servers;
mod sqlite;
mod tally;

use tally::Tally;

fn main() -> std::process::ExitCode {
    // Cases with several processes start this program again.
    play_if_asked();
    outside::register();
    let mut arguments = Arguments::from_args();
    // Cases mostly wait for leases, delays and restarts, and compute little.
    arguments.test_threads.get_or_insert(AT_ONCE);
    let fixtures: Vec<Arc<dyn Fixture>> = vec![
        Arc::new(memory::Memory),
        Arc::new(outside::OutsideTransport),
        Arc::new(sqlite::Sqlite),
        Arc::new(nats::Nats(Generation::Old)),
        Arc::new(nats::Nats(Generation::New)),
        Arc::new(redis::Redis(Generation::Old)),
        Arc::new(redis::Redis(Generation::New)),
        Arc::new(rabbitmq::RabbitMq(Generation::Old)),
        Arc::new(rabbitmq::RabbitMq(Generation::New)),
    ];
    let asked = fixtures.iter().filter(|fixture| is_asked_for(fixture.name(), &arguments));
    let (trials, tallies): (Vec<_>, Vec<_>) = asked.map(trials).unzip();
    let conclusion: Conclusion = libtest_mimic::run(&arguments, trials.into_iter().flatten().collect());
    tally::print(&tallies);
    conclusion.exit_code()
}

/// The number of cases at a time, whatever the number of processors.
const AT_ONCE: usize = 4;

/// Returns whether to include this transport, because listing its cases starts its server. Without a filter,
/// all are included.
fn is_asked_for(name: &str, arguments: &Arguments) -> bool {
    let asked = arguments.filter.as_deref().and_then(|filter| filter.split_once("::"));
    asked.is_none_or(|(asked, _)| asked == name)
}

/// Returns a trial for every case that applies to this transport.
fn trials(fixture: &Arc<dyn Fixture>) -> (Vec<Trial>, Arc<Tally>) {
    let capabilities = capabilities(fixture);
    let applies = |case: &Case| case.applies(fixture.as_ref(), &capabilities);
    let (own, others): (Vec<Case>, Vec<Case>) = cases().into_iter().partition(applies);
    let others = others.into_iter().map(|case| case.name().to_owned()).collect();
    let tally = Arc::new(Tally::new(fixture.name(), others));
    let trial = |case: Case| {
        let (name, fixture, tally) =
            (format!("{}::{}", fixture.name(), case.name()), fixture.clone(), tally.clone());
        Trial::test(name, move || tally.count(case.run(&fixture).map_err(Failed::from)))
    };
    (own.into_iter().map(trial).collect(), tally)
}

fn capabilities(fixture: &Arc<dyn Fixture>) -> Capabilities {
    event_conformance::capabilities(fixture)
        .unwrap_or_else(|error| panic!("{} cannot be opened: {error}", fixture.name()))
}
