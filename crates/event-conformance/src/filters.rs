//! Cases for a group whose filters change: the latest subscription sets the filters for all members, and no
//! matching message is lost.

use event_client::bus::Settings;
use event_client::message::Message;
use event_client::service::{Handler, Raw, Service, State};
use event_client::subscription::Subscription;
use tokio::sync::mpsc::UnboundedSender;

use crate::case::cases;
use crate::events::{bus, channel, told};
use crate::exam::Exam;
use crate::message::{With, group, on, text};

cases! {
    the_next_subscription_decides;
    the_next_subscription_decides_for_a_keyed_group;
    a_live_member_follows_the_latest_filters;
    a_member_that_stands_by_follows_the_latest_filters;
    filters_that_change_again_and_again_lose_nothing;
    what_waits_under_earlier_filters_still_comes;
    a_drained_service_is_replaced_by_its_next_version;
}

/// Filters before and after a change, a subject that the new filters match, and one that they do not match.
struct Change {
    before: &'static [&'static str],
    after: &'static [&'static str],
    wanted: &'static str,
    unwanted: Option<&'static str>,
}

const CHANGES: [Change; 6] = [
    // Disjoint, in one topic and over two.
    Change { before: &["orders.a"], after: &["orders.b"], wanted: "orders.b", unwanted: Some("orders.a") },
    Change { before: &["orders.a"], after: &["bills.b"], wanted: "bills.b", unwanted: Some("orders.a") },
    // Narrower.
    Change { before: &["orders.>"], after: &["orders.b"], wanted: "orders.b", unwanted: Some("orders.a") },
    Change {
        before: &["orders.a", "bills.>"],
        after: &["bills.b"],
        wanted: "bills.b",
        unwanted: Some("orders.a"),
    },
    // Wider.
    Change { before: &["orders.a"], after: &["orders.>"], wanted: "orders.b", unwanted: None },
    Change { before: &["orders.a"], after: &["orders.a", "bills.>"], wanted: "bills.b", unwanted: None },
];

/// Receives one message of this subject and acknowledges it.
async fn takes(exam: &Exam, member: &Subscription, subject: &str, what: &str) {
    let wanted = format!("{subject} {what}");
    exam.publish(on(subject, wanted.as_str())).await;
    let delivery = exam.next_of(member, &wanted).await;
    assert_eq!(text(&delivery), wanted);
    exam.ack(delivery).await;
}

async fn decides(exam: Exam, keyed: bool) {
    for (n, change) in CHANGES.iter().enumerate() {
        let name = format!("g{n}");
        let spec = |filters| {
            let spec = group(&name, 4).filters(filters);
            if keyed { spec.keyed() } else { spec }
        };
        let first = exam.subscribe(spec(change.before)).await;
        let matched = change.before[0].replace('>', "a");
        takes(&exam, &first, &matched, &name).await;
        drop(first);
        let next = exam.subscribe(spec(change.after)).await;
        if let Some(unwanted) = change.unwanted {
            exam.publish(on(unwanted, "not for the group")).await;
        }
        for what in ["at once", "later"] {
            takes(&exam, &next, change.wanted, what).await;
        }
        exam.settled(&name).await;
        assert_eq!(exam.status(&name).await.filters, spec(change.after).filters);
    }
}

/// Disjoint, narrower and wider filters take effect at once, although a member with the earlier filters has
/// just left.
async fn the_next_subscription_decides(exam: Exam) {
    decides(exam, false).await;
}

/// The same for a keyed group.
async fn the_next_subscription_decides_for_a_keyed_group(exam: Exam) {
    decides(exam, true).await;
}

/// The same for services: the next version starts as soon as the previous one has drained.
async fn a_drained_service_is_replaced_by_its_next_version(exam: Exam) {
    async fn keep(State(seen): State<UnboundedSender<Message>>, Raw(message): Raw) {
        let _ = seen.send((*message).clone());
    }
    for (n, keyed) in [false, true].into_iter().enumerate() {
        let (keeping, mut kept) = channel();
        let ours = bus(&exam, Settings::default());
        for (version, filter) in ["orders.a", "bills.b", "bills.>", "orders.>"].into_iter().enumerate() {
            let handler = keep.plain().group(format!("g{n}"));
            let handler = if keyed { handler.keyed() } else { handler };
            let service = Service::new("billing").bus(ours.clone()).on_subject(filter, handler);
            let service = exam.ok("the service", service.with_state(keeping.clone()).start()).await;
            let wanted = filter.replace('>', "c");
            for text in [format!("{version} at once"), format!("{version} later")] {
                exam.publish(on(&wanted, text.as_str())).await;
                let message = told(&exam, &text, &mut kept).await;
                assert_eq!((message.subject.as_str(), &*message.payload), (wanted.as_str(), text.as_bytes()));
            }
            exam.ok("the drained service", service.drain()).await;
        }
    }
}

async fn follows(exam: Exam, keyed: bool) {
    for (n, change) in CHANGES.iter().enumerate() {
        let name = format!("g{n}");
        let spec = |filters| {
            let spec = group(&name, 4).filters(filters);
            if keyed { spec.keyed() } else { spec }
        };
        let staying = exam.subscribe(spec(change.before)).await;
        takes(&exam, &staying, &change.before[0].replace('>', "a"), &name).await;
        let other = exam.another().await;
        let passing = exam.ok("the other member", other.subscribe(spec(change.after))).await;
        drop(passing);
        exam.ok("close", other.close()).await;
        takes(&exam, &staying, change.wanted, "to the member that stayed").await;
        // From here on the member uses the changed filters.
        if let Some(unwanted) = change.unwanted {
            exam.publish(on(unwanted, "not for the group")).await;
        }
        takes(&exam, &staying, change.wanted, "after the unwanted message").await;
        exam.settled(&name).await;
    }
}

/// A member that stays receives the messages of the latest subscription's filters, after that subscription
/// has ended.
async fn a_live_member_follows_the_latest_filters(exam: Exam) {
    follows(exam, false).await;
}

/// The same for a keyed group, in which one member is active at a time.
async fn a_member_that_stands_by_follows_the_latest_filters(exam: Exam) {
    follows(exam, true).await;
}

/// Each subscription replaces one that has other filters and is still open; every message that matches its
/// own filters is delivered to it.
async fn filters_that_change_again_and_again_lose_nothing(exam: Exam) {
    for keyed in [false, true] {
        let name = if keyed { "keyed" } else { "g" };
        let mut last = None;
        for round in 0..8 {
            let (wanted, other) = [("orders.a", "orders.b"), ("orders.b", "orders.a")][round % 2];
            let spec = group(name, 8).filters(&[wanted]);
            let spec = if keyed { spec.keyed() } else { spec };
            let member = exam.subscribe(spec).await;
            let publishing: Vec<_> = (0..20)
                .flat_map(|n| [on(wanted, format!("{round} {n}")), on(other, "not for the group")])
                .map(|message| exam.bus().publish(message))
                .collect();
            drop(last.take());
            for confirm in publishing {
                exam.ok("publish", confirm).await;
            }
            let mut left: Vec<_> = (0..20).map(|n| format!("{round} {n}")).collect();
            while !left.is_empty() {
                let delivery = exam.next_of(&member, &format!("{left:?} of {wanted}")).await;
                let at = left.iter().position(|wanted| *wanted == text(&delivery));
                left.remove(at.unwrap_or_else(|| panic!("{} came, want {left:?}", text(&delivery))));
                exam.ack(delivery).await;
            }
            last = Some(member);
        }
        exam.settled(name).await;
    }
}

/// Messages published under earlier filters stay with the group, however many times the filters have changed
/// since.
async fn what_waits_under_earlier_filters_still_comes(exam: Exam) {
    let subjects: Vec<_> = (0..12).map(|n| format!("orders.s{n}")).collect();
    for subject in &subjects {
        drop(exam.subscribe(group("g", 1).filters(&[subject.as_str()])).await);
        exam.publish(on(subject, subject.as_str())).await;
        exam.publish(on("orders.nobody", "not for the group")).await;
    }
    let last = exam.subscribe(group("g", 4).filters(&["orders.last"])).await;
    let mut left = subjects;
    while !left.is_empty() {
        let delivery = exam.next_of(&last, &format!("{left:?}")).await;
        let at = left.iter().position(|wanted| *wanted == text(&delivery));
        left.remove(at.unwrap_or_else(|| panic!("{} came, want {left:?}", text(&delivery))));
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}
