//! The exam over every transport of this build: `cargo test -p backbone-tests --test conformance -- memory::`.

use std::sync::Arc;

use event_client::transport::Capabilities;
use event_conformance::{Case, Fixture, cases, play_if_asked};
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};

mod memory;
mod servers;
mod sqlite;

fn main() -> std::process::ExitCode {
    // Cases with several processes start this program again.
    play_if_asked();
    let arguments = Arguments::from_args();
    let fixtures: [Arc<dyn Fixture>; 2] = [Arc::new(memory::Memory), Arc::new(sqlite::Sqlite)];
    let trials = fixtures.iter().flat_map(trials).collect();
    let conclusion: Conclusion = libtest_mimic::run(&arguments, trials);
    conclusion.exit_code()
}

/// Every case, also those that the transport's capabilities leave out: these show as ignored, by name.
fn trials(fixture: &Arc<dyn Fixture>) -> Vec<Trial> {
    let capabilities = capabilities(fixture);
    let trial = |case: Case| {
        let (name, applies) =
            (format!("{}::{}", fixture.name(), case.name()), case.applies(fixture.as_ref(), &capabilities));
        let fixture = fixture.clone();
        Trial::test(name, move || case.run(&fixture).map_err(Failed::from)).with_ignored_flag(!applies)
    };
    cases().into_iter().map(trial).collect()
}

fn capabilities(fixture: &Arc<dyn Fixture>) -> Capabilities {
    event_conformance::capabilities(fixture)
        .unwrap_or_else(|error| panic!("{} cannot be opened: {error}", fixture.name()))
}
