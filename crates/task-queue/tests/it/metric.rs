//! Tests that the metrics count only what the store has recorded.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use task_queue::{
    TaskError,
    store::{NewTask, State},
    task,
};

use crate::support::{Bench, SOON, until};

#[task(retries = 1, backoff = "1ms")]
async fn measured(outcome: String) -> Result<(), TaskError> {
    match outcome.as_str() {
        "good" => Ok(()),
        "bad" => Err("as told".into()),
        _ => Err(TaskError::permanent("as told")),
    }
}

#[test]
fn every_end_is_counted_once_with_task_and_queue() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // A recorder belongs to one thread, so this runtime uses one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(ends()));
    let told = handle.render();
    let counts = |metric: &str, count: u32| {
        let line = format!("{metric}{{task=\"measured\",queue=\"default\"}} {count}\n");
        assert!(told.contains(&line), "{line} in\n{told}");
    };
    counts("tasks_enqueued", 5);
    counts("tasks_succeeded", 2);
    // One task fails twice, one is permanent, one has arguments that do not fit.
    counts("tasks_failed", 4);
    counts("tasks_retried", 1);
    counts("tasks_dead", 3);
    let unknown = "tasks_dead{task=\"unheard of\",queue=\"default\"} 1\n";
    assert!(told.contains(unknown), "{told}");
    assert!(told.contains("task_queue_depth{queue=\"default\",state=\"queued\"}"), "{told}");
}

async fn ends() {
    let bench = Bench::with(|options| options.patience = Duration::from_millis(50)).await;
    bench.client.send(vec![NewTask::named("unheard of", "[]")]).await.unwrap();
    let worker = bench.work(|worker| worker.register(measured).concurrency(2));
    let call = |outcome: &str| measured.apply_async((outcome.to_owned(),)).unique(outcome).on(&bench.client);
    let good = call("good").await.unwrap();
    let calls = [good.clone(), call("bad").await.unwrap(), call("permanent").await.unwrap()];
    for task in calls {
        task.wait(SOON).await.unwrap();
    }
    let mut unfit = NewTask::named("measured", "[7]");
    unfit.unique = Some("held".to_owned());
    let sent = bench.client.send(vec![unfit]).await.unwrap();
    sent[0].wait(SOON).await.unwrap();
    // A refused task and a duplicate do not count as enqueued.
    bench.client.send(vec![NewTask::named("", "[]")]).await.unwrap_err();
    let mut again = NewTask::named("measured", "[\"good\"]");
    again.id = good.id();
    assert!(bench.client.send(vec![again.clone()]).await.unwrap()[0].is_duplicate());
    again.id = uuid::Uuid::now_v7();
    bench.client.send(vec![again]).await.unwrap()[0].wait(SOON).await.unwrap();
    until("the unknown one is dead", || async {
        bench.store.depths().await.unwrap()[0].counts.get(&State::Dead) == Some(&4)
    })
    .await;
    worker.stop().await.unwrap();
}
