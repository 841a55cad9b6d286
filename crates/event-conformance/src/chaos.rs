//! Cases with random consumers that fail, leave and vanish, and publishers that repeat messages; the seed is
//! `BACKBONE_SEED`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::delivery::Settlement;
use event_client::message::MessageId;
use event_client::subscription::Subscription;
use event_client::transport::DeadLetterFilter;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{SHORT, With, group, group_name, key, keyed, permanent, text};

cases! {
    failing_consumers_lose_and_repeat_nothing;
    failing_consumers_keep_the_order_of_keys;
    vanishing_consumers_lose_nothing.within(180);
    repeating_publishers_are_heard_once.when(|can| !can.dedup_window.is_zero());
}

const MESSAGES: usize = 300;

fn seed() -> u64 {
    std::env::var("BACKBONE_SEED").map_or(7, |text| text.parse().expect("BACKBONE_SEED is a number"))
}

/// The consumers' actions in order: key, number, and whether the action was final for the message.
type Story = Arc<Mutex<Vec<(String, usize, bool)>>>;

/// Settles deliveries at random until the subscription ends; records each action before it settles.
fn fail_at_random(
    exam: &Exam,
    subscription: Subscription,
    seed: u64,
    story: Story,
) -> tokio::task::JoinHandle<()> {
    let exam = exam.clone();
    tokio::spawn(async move {
        let mut random = fastrand::Rng::with_seed(seed);
        while let Some(delivery) = subscription.next().await {
            let settlement = match random.u8(..100) {
                0..60 => Some(Settlement::Ack),
                60..80 => {
                    let after = Duration::from_millis(random.u64(..8));
                    Some(Settlement::Retry { after, error: "at random".into() })
                }
                80..84 => Some(Settlement::Release),
                84..88 => Some(Settlement::Defer { after: Duration::from_millis(random.u64(0..20)) }),
                88..94 => Some(Settlement::Reject(permanent("at random"))),
                _ => None,
            };
            let end = matches!(settlement, Some(Settlement::Ack | Settlement::Reject(_)));
            let n = text(&delivery).parse().expect("a number");
            story.lock().expect("not poisoned").push((key(&delivery), n, end));
            match settlement {
                Some(settlement) => exam.ok("a settlement", delivery.settle(settlement)).await,
                None => drop(delivery),
            }
        }
    })
}

/// Publishes all messages while members join and leave; returns when the group has settled everything.
async fn run(exam: &Exam, name: &str, is_keyed: bool, story: &Story) {
    let spec = || if is_keyed { group(name, 8).keyed() } else { group(name, 8) };
    drop(exam.subscribe(spec()).await);
    let mut random = fastrand::Rng::with_seed(seed());
    let other = exam.another().await;
    let mut members: Vec<(Subscription, tokio::task::JoinHandle<()>)> = Vec::new();
    for n in 0..MESSAGES {
        if n % 25 == 0 {
            let bus = if n % 50 == 0 { exam.bus() } else { &other };
            let member = exam.ok("a member", bus.subscribe(spec())).await;
            members.push((member.clone(), fail_at_random(exam, member, random.u64(..), story.clone())));
            if members.len() > 3 {
                let (leaving, task) = members.swap_remove(random.usize(..members.len() - 1));
                leaving.stop();
                exam.waits_for("a member to leave");
                task.await.expect("a consumer failed");
            }
        }
        exam.publish(keyed(&format!("k{}", n % 7), (n / 7).to_string())).await;
    }
    exam.settled(name).await;
    for (member, task) in members {
        member.stop();
        exam.waits_for("a member to leave");
        task.await.expect("a consumer failed");
    }
}

/// Each message ends exactly once: acknowledged or as a dead letter.
async fn failing_consumers_lose_and_repeat_nothing(exam: Exam) {
    let story = Story::default();
    run(&exam, "g", false, &story).await;
    let story = story.lock().expect("not poisoned");
    let mut ends: HashMap<_, usize> = HashMap::new();
    for (key, n, _) in story.iter().filter(|(_, _, end)| *end) {
        *ends.entry((key.clone(), *n)).or_default() += 1;
    }
    assert_eq!(ends.len(), MESSAGES, "lost, seed {}", seed());
    assert!(ends.values().all(|count| *count == 1), "ended twice, seed {}: {ends:?}", seed());
}

/// Each key's messages end in the order of publication.
async fn failing_consumers_keep_the_order_of_keys(exam: Exam) {
    let story = Story::default();
    run(&exam, "g", true, &story).await;
    let story = story.lock().expect("not poisoned");
    let mut next: HashMap<&str, usize> = HashMap::new();
    for (key, n, end) in story.iter() {
        let next = next.entry(key).or_default();
        assert_eq!(n, next, "{key} out of order, seed {}", seed());
        *next += usize::from(*end);
    }
    assert_eq!(next.values().sum::<usize>(), MESSAGES, "lost, seed {}", seed());
}

/// Consumers vanish with deliveries in flight: every message ends at least once, and only messages that were
/// in flight end twice.
async fn vanishing_consumers_lose_nothing(exam: Exam) {
    let spec = || group("g", 4).lease(SHORT);
    drop(exam.subscribe(spec()).await);
    let mut random = fastrand::Rng::with_seed(seed());
    for n in 0..MESSAGES {
        exam.publish(keyed("k", n.to_string())).await;
    }
    let (mut acked, mut vanished) = (HashMap::<usize, usize>::new(), HashSet::new());
    for round in 0..6 {
        let member = exam.subscribe(spec()).await;
        for _ in 0..random.usize(5..40) {
            let delivery = exam.next_of(&member, &format!("a delivery in round {round}")).await;
            *acked.entry(text(&delivery).parse().expect("a number")).or_default() += 1;
            exam.ack(delivery).await;
        }
        let mut held = Vec::new();
        for _ in 0..random.usize(1..4) {
            let delivery =
                exam.next_of(&member, &format!("a delivery to vanish with in round {round}")).await;
            vanished.insert(text(&delivery));
            held.push(delivery);
        }
        crate::message::vanish(member, held);
    }
    let member = exam.subscribe(spec()).await;
    while acked.len() < MESSAGES {
        let delivery = exam.next_of(&member, &format!("{} messages of {MESSAGES}", acked.len() + 1)).await;
        let n = text(&delivery).parse().expect("a number");
        assert_eq!(delivery.info().attempt > 1, vanished.contains(&text(&delivery)), "message {n}");
        *acked.entry(n).or_default() += 1;
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
    assert!(acked.values().all(|count| *count == 1), "acknowledged twice, seed {}: {acked:?}", seed());
}

/// Several handles publish every message up to three times at the same time; each is delivered once.
async fn repeating_publishers_are_heard_once(exam: Exam) {
    let subscription = exam.subscribe(group("g", 16)).await;
    let other = exam.another().await;
    let mut random = fastrand::Rng::with_seed(seed());
    let mut publishes = Vec::new();
    for n in 0..MESSAGES {
        let mut message = keyed("k", n.to_string());
        message.id = MessageId::from(format!("order-{n}"));
        message.dedup = true;
        for _ in 0..random.usize(1..=3) {
            publishes.push(if random.bool() { exam.bus() } else { &other }.publish(message.clone()));
        }
    }
    let mut stored = 0;
    for confirm in publishes {
        stored += usize::from(!exam.ok("a confirmation", confirm).await.duplicate);
    }
    assert_eq!(stored, MESSAGES, "seed {}", seed());
    let mut seen = HashSet::new();
    while seen.len() < MESSAGES {
        let delivery =
            exam.next_of(&subscription, &format!("{} messages of {MESSAGES}", seen.len() + 1)).await;
        assert!(seen.insert(text(&delivery)), "{} came twice, seed {}", text(&delivery), seed());
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
    let dead = DeadLetterFilter { group: Some(group_name("g")), ..Default::default() };
    assert!(exam.ok("dead letters", exam.admin().dead_letters(dead)).await.is_empty());
}
