//! Tests of a circuit's state changes, without services around it.

use super::*;

fn circuit(failures: u32) -> Arc<Circuit> {
    CircuitBreaker::new().failures(failures).open_for(Duration::from_secs(60)).circuit("bank").clone()
}

async fn pass(time: u64) {
    tokio::time::advance(Duration::from_secs(time)).await;
}

#[tokio::test(start_paused = true)]
async fn opens_after_failures_in_a_row_only() {
    let circuit = circuit(3);
    for _ in 0..10 {
        circuit.failed(false);
        circuit.failed(false);
        circuit.succeeded(false);
    }
    assert_eq!(circuit.try_pass(), Ok(false));
    (0..3).for_each(|_| circuit.failed(false));
    assert!(circuit.try_pass().unwrap_err() <= Duration::from_secs(60));
    assert_eq!(circuit.cell.load().as_str(), "open");
}

#[tokio::test(start_paused = true)]
async fn one_probe_decides() {
    let circuit = circuit(1);
    circuit.failed(false);
    pass(59).await;
    assert!(circuit.try_pass().is_err());
    pass(2).await;
    assert_eq!(circuit.try_pass(), Ok(true), "the first is the probe");
    assert!(circuit.try_pass().is_err(), "one at a time");
    circuit.succeeded(false);
    assert_eq!(
        circuit.cell.load().as_str(),
        "half-open",
        "a late success of an earlier call changes nothing"
    );
    circuit.failed(true);
    assert!(circuit.try_pass().is_err(), "open for another while");
    pass(61).await;
    assert_eq!(circuit.try_pass(), Ok(true));
    circuit.succeeded(true);
    assert_eq!(circuit.try_pass(), Ok(false));
    assert_eq!(circuit.cell.load(), CircuitState::Closed { failures: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_given_up_makes_way_for_another() {
    let circuit = circuit(1);
    circuit.failed(false);
    pass(61).await;
    let probe = circuit.try_pass().unwrap();
    drop(Pass { circuit: circuit.clone(), probe });
    assert_eq!(circuit.try_pass(), Ok(true));
    // The same holds when a crashed process that shares the store held the probe: it is given up after `open_for`.
    pass(61).await;
    assert_eq!(circuit.try_pass(), Ok(true));
}
