//! Tests enqueueing.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::store::{Enqueued, NewTask, State};
use uuid::Uuid;

use super::{Store, claim, end, settle, succeeded, task, worker};

pub(crate) async fn stored_as_given(store: Store) {
    let due = Timestamp::from_millisecond(Timestamp::now().as_millisecond() + 3_600_000).unwrap();
    let mut given = NewTask::named("a", r#"[1,"two"]"#);
    given.kwargs = Some(r#"{"three":3}"#.to_owned());
    given.queue = "mail".to_owned();
    given.priority = -7;
    given.due = Some(due);
    given.expires = Some(due + Duration::from_secs(1));
    given.max_retries = 9;
    given.max_crashes = 2;
    given.unique = Some("key".to_owned());
    given.headers.insert("traceparent".to_owned(), "00-1-2-01".to_owned());
    let id = given.id;
    store.enqueue(vec![given]).await.unwrap();
    let kept = store.get(id).await.unwrap().unwrap();
    assert_eq!((kept.name.as_str(), kept.queue.as_str(), kept.state), ("a", "mail", State::Scheduled));
    assert_eq!(kept.args, serde_json::json!([1, "two"]));
    assert_eq!(kept.kwargs.unwrap(), serde_json::json!({ "three": 3 }));
    assert_eq!((kept.priority, kept.due, kept.max_retries, kept.max_crashes), (-7, due, 9, 2));
    assert_eq!(kept.expires, Some(due + Duration::from_secs(1)));
    assert_eq!(kept.unique.as_deref(), Some("key"));
    assert_eq!(kept.headers["traceparent"], "00-1-2-01");
}

pub(crate) async fn same_id_is_one_task(store: Store) {
    let (first, mut second) = (task("a"), task("a"));
    let id = first.id;
    second.id = id;
    assert_eq!(store.enqueue(vec![first]).await.unwrap(), [Enqueued { id, duplicate: false }]);
    assert_eq!(store.enqueue(vec![second.clone()]).await.unwrap(), [Enqueued { id, duplicate: true }]);
    let w = worker(&store).await;
    let leases = claim(&store, w, 10).await;
    assert_eq!(leases.len(), 1);
    settle(&store, vec![end(&leases[0], w, succeeded())]).await;
    assert_eq!(
        store.enqueue(vec![second]).await.unwrap(),
        [Enqueued { id, duplicate: true }],
        "ended, but known"
    );
}

pub(crate) async fn unique_key_is_held_until_the_end(store: Store) {
    let keyed = |name: &str| NewTask { unique: Some("k".to_owned()), ..task(name) };
    let first = store.enqueue(vec![keyed("a")]).await.unwrap()[0];
    let second = store.enqueue(vec![keyed("a"), keyed("b")]).await.unwrap();
    assert_eq!(second[0], Enqueued { id: first.id, duplicate: true });
    assert!(!second[1].duplicate, "another task kind has keys of its own");
    let w = worker(&store).await;
    let leases = claim(&store, w, 10).await;
    assert_eq!(leases.len(), 2);
    assert!(store.enqueue(vec![keyed("a")]).await.unwrap()[0].duplicate, "held while it runs");
    let ends = leases.iter().map(|lease| end(lease, w, succeeded())).collect();
    settle(&store, ends).await;
    assert!(!store.enqueue(vec![keyed("a")]).await.unwrap()[0].duplicate, "free after the end");
}

pub(crate) async fn a_batch_answers_in_order(store: Store) {
    let mut tasks: Vec<_> = (0..250).map(|_| task("a")).collect();
    let ids: Vec<Uuid> = tasks.iter().map(|task| task.id).collect();
    store.enqueue(vec![tasks[7].clone(), tasks[249].clone()]).await.unwrap();
    tasks.push(tasks[3].clone());
    let answers = store.enqueue(tasks).await.unwrap();
    assert_eq!(answers.iter().take(250).map(|answer| answer.id).collect::<Vec<_>>(), ids);
    let duplicates: Vec<_> = (0..251).filter(|index| answers[*index].duplicate).collect();
    assert_eq!(duplicates, [7, 249, 250]);
    assert!(store.enqueue(Vec::new()).await.unwrap().is_empty());
}
