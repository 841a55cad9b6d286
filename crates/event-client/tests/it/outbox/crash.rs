//! Tests a relay that is killed between publish and mark.

use super::*;

fn say(id: &MessageId) {
    let mut out = std::io::stdout().lock();
    writeln!(out, ">{id}").unwrap();
    out.flush().unwrap();
}

/// Not a test: a relay in a separate process whose bus stores every message and confirms none.
#[tokio::test]
#[ignore = "run by other tests as a child process"]
async fn relay_as_a_child() {
    let Some(folder) = std::env::var_os("OUTBOX_FOLDER") else { return };
    let folder = Path::new(&folder);
    let bus = Bus::connect(&format!("sqlite:{}", folder.join("bus.db").display())).await.unwrap();
    let silent = faulty(&bus, |sqlite, message| {
        let (id, stored) = (message.id.clone(), sqlite.publish(message));
        Confirm::boxed(async move {
            stored.await?;
            say(&id);
            std::future::pending().await
        })
    });
    let pool = open(&folder.join("service.db")).await;
    let dedup = std::env::var_os("OUTBOX_DEDUP").is_some();
    let relay = outbox::Relay::new(pool, silent).lease(Duration::from_millis(300)).dedup(dedup);
    relay.run_until(std::future::pending()).await.unwrap();
}

/// Lets a child publish the first staged event and kills it before it can mark it. Returns that event's id.
fn crash_between_publish_and_mark(folder: &Path, dedup: bool) -> MessageId {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["outbox::crash::relay_as_a_child", "--exact", "--ignored", "--nocapture"]);
    command.env("OUTBOX_FOLDER", folder).stdout(Stdio::piped());
    if dedup {
        command.env("OUTBOX_DEDUP", "1");
    }
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let published = lines.filter_map(|line| line.split_once('>').map(|(_, id)| id.to_owned())).next();
    child.kill().unwrap();
    child.wait().unwrap();
    published.expect("the child published before it died").into()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_publish_and_mark_it_repeats_the_id_and_the_inbox_knows_it() {
    type Seen = Arc<Mutex<Vec<String>>>;
    #[derive(Clone)]
    struct App(SqlitePool, Seen);
    impl FromRef<App> for SqlitePool {
        fn from_ref(app: &App) -> Self {
            app.0.clone()
        }
    }
    async fn apply(
        State(App(_, seen)): State<App>,
        inbox: Inbox<Sqlite>,
        attempt: Attempt,
        Msg(order): Msg<OrderPlaced>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if let Some(mut tx) = inbox.begin().await? {
            query("INSERT INTO effects VALUES (?)").bind(order.order_id as i64).execute(&mut *tx).await?;
            tx.commit().await?;
        }
        seen.lock().unwrap().push(attempt.idempotency_key().to_owned());
        Ok(())
    }
    let (folder, pool) = database().await;
    let bus = Bus::connect(&format!("sqlite:{}", folder.path().join("bus.db").display())).await.unwrap();
    let seen = Seen::default();
    let service = Service::new("books").bus(bus.clone()).on(apply.concurrency(4));
    let running = service.with_state(App(pool.clone(), seen.clone())).start().await.unwrap();
    let ids = stage_all(&pool, (0..3).map(placed)).await;
    let first = crash_between_publish_and_mark(folder.path(), false);
    assert!(ids.contains(&first));
    assert_eq!(count(&pool, WAITING).await, 3, "nothing was marked");

    let relay = outbox::Relay::new(pool.clone(), bus.clone()).dedup(false).poll(Duration::from_millis(20));
    let relay = Working::start(relay);
    until(&pool, WAITING, 0).await;
    relay.stop().await;
    until(&pool, EFFECTS, 3).await;
    // The child's window of three was in flight: the events that it stored are delivered twice.
    let repeated = || {
        let seen = seen.lock().unwrap();
        seen.iter().filter(|key| key.ends_with(&first.to_string())).count()
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while repeated() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "{first} came {} times", repeated());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    running.drain().await.unwrap();
    assert_eq!(count(&pool, EFFECTS).await, 3, "every effect once");
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_publish_and_mark_with_dedup_the_bus_keeps_one() {
    let (folder, pool) = database().await;
    let bus = Bus::connect(&format!("sqlite:{}", folder.path().join("bus.db").display())).await.unwrap();
    let subscription = listen(&bus).await;
    let ids = stage_all(&pool, (0..3).map(placed)).await;
    assert!(ids.contains(&crash_between_publish_and_mark(folder.path(), true)));
    assert_eq!(count(&pool, WAITING).await, 3, "nothing was marked");
    let relay = outbox::Relay::new(pool.clone(), bus.clone()).poll(Duration::from_millis(20));
    let relay = Working::start(relay);
    until(&pool, WAITING, 0).await;
    relay.stop().await;
    // This event is published after all of the relay's events: all repeated ones are delivered before it.
    bus.publish(placed(99)).await.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&99) {
        seen.push(
            Envelope::read(&*next(&subscription).await).unwrap().decode::<OrderPlaced>().unwrap().order_id,
        );
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 99]);
    bus.close().await.unwrap();
}
