//! Cases for provisioning: the modes under which groups are created and changed, and the effects of `plan`
//! and `apply`.

use std::collections::HashSet;
use std::sync::Arc;

use event_client::ErrorKind;
use event_client::subject::Group;
use event_client::transport::{Action, Subscribe, Topology, Transport};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{With, group, message, on, pattern, text};

cases! {
    missing_group_is_not_created;
    existing_group_is_used;
    other_filters_are_refused_by_verify;
    off_leaves_the_filters_as_they_are;
    unknown_mode_is_refused;
    apply_creates_what_plan_names;
    apply_changes_filters_and_keeps_what_waits;
    a_topology_with_ill_names_changes_nothing;
}

async fn provisioned(exam: &Exam, mode: &str) -> Arc<dyn Transport> {
    exam.another_with(&format!("provision={mode}")).await
}

fn topology(specs: &[Subscribe]) -> Topology {
    let mut topology = Topology::default();
    specs.iter().for_each(|spec| topology.add(spec));
    topology
}

/// `off` and `verify` create nothing: a missing group is refused, and the error names the remedy.
async fn missing_group_is_not_created(exam: Exam) {
    for mode in ["off", "verify"] {
        let bus = provisioned(&exam, mode).await;
        let error = exam.refused(ErrorKind::NotFound, mode, bus.subscribe(group("g", 1))).await;
        assert!(error.to_string().contains("topology apply"), "{error}");
        let groups = exam.ok("the groups", exam.admin().groups()).await;
        assert!(groups.is_empty(), "{mode} made {groups:?}");
    }
}

/// A group that is as required is used under every mode.
async fn existing_group_is_used(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    for mode in ["off", "verify", "create", "update"] {
        let bus = provisioned(&exam, mode).await;
        let subscription = exam.ok(mode, bus.subscribe(group("g", 1))).await;
        exam.ok("publish", bus.publish(message(mode))).await;
        let delivery = exam.next_of(&subscription, mode).await;
        assert_eq!(text(&delivery), mode);
        exam.ack(delivery).await;
        exam.ok("close", bus.close()).await;
    }
}

/// `verify` refuses a group with other filters, reports the difference, and does not change the group.
async fn other_filters_are_refused_by_verify(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    let bus = provisioned(&exam, "verify").await;
    let spec = Subscribe::group(Group::new("g").expect("a name"), [pattern("exam.other")]);
    let error = exam.refused(ErrorKind::Config, "verify", bus.subscribe(spec)).await;
    assert!(error.to_string().contains("exam.other"), "{error}");
    let other = group("g", 1).keyed();
    exam.refused(ErrorKind::Config, "verify, keyed", bus.subscribe(other)).await;
    assert_eq!(exam.status("g").await.filters, group("g", 1).filters);
}

/// `off` uses the group unchanged, including its filters.
async fn off_leaves_the_filters_as_they_are(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    let bus = provisioned(&exam, "off").await;
    let spec = Subscribe::group(Group::new("g").expect("a name"), [pattern("exam.other")]);
    let subscription = exam.ok("subscribe", bus.subscribe(spec)).await;
    exam.publish(on("exam.other", "not for the group")).await;
    exam.publish(message("for the group")).await;
    assert_eq!(text(&exam.next(&subscription).await), "for the group");
    assert_eq!(exam.status("g").await.filters, group("g", 1).filters);
}

/// An unknown mode is refused, and the error names it.
async fn unknown_mode_is_refused(exam: Exam) {
    let url = exam.url_with("provision=perhaps");
    let error = exam.refused(ErrorKind::Config, "opening", crate::exam::open(&url)).await;
    assert!(error.to_string().contains("off, verify, create or update"), "{error}");
}

/// `plan` lists missing objects and creates nothing; `apply` creates them; then `verify` succeeds.
async fn apply_creates_what_plan_names(exam: Exam) {
    let wanted = topology(&[group("g", 1), group("keyed", 1).keyed()]);
    let planned = exam.ok("plan", exam.admin().plan(wanted.clone())).await;
    assert!(
        planned.len() >= 2 && planned.iter().all(|change| change.action == Action::Create),
        "{planned:?}"
    );
    assert!(exam.ok("the groups", exam.admin().groups()).await.is_empty(), "a plan makes nothing");

    let bus = provisioned(&exam, "verify").await;
    let applied = exam.ok("apply", bus.admin().apply(wanted.clone())).await;
    assert_eq!(applied, planned);
    assert_eq!(exam.ok("plan", exam.admin().plan(wanted)).await, []);
    exam.publish(message("after apply")).await;
    let subscription = exam.ok("subscribe", bus.subscribe(group("g", 1))).await;
    assert_eq!(text(&exam.next(&subscription).await), "after apply");
    let keyed = exam.ok("subscribe", bus.subscribe(group("keyed", 1).keyed())).await;
    assert_eq!(text(&exam.next(&keyed).await), "after apply");
}

/// `apply` changes a group's filters for later messages; messages that wait already are still delivered.
async fn apply_changes_filters_and_keeps_what_waits(exam: Exam) {
    drop(exam.subscribe(group("g", 1)).await);
    exam.publish(message("waits")).await;
    let spec = Subscribe::group(Group::new("g").expect("a name"), [pattern("exam.other")]);
    let wanted = topology(std::slice::from_ref(&spec));
    let planned = exam.ok("plan", exam.admin().plan(wanted.clone())).await;
    assert!(
        !planned.is_empty() && planned.iter().any(|change| change.action == Action::Update),
        "{planned:?}"
    );
    assert!(planned.iter().any(|change| change.to_string().contains("exam.other")), "{planned:?}");
    assert_eq!(exam.ok("apply", exam.admin().apply(wanted.clone())).await, planned);
    assert_eq!(exam.ok("plan", exam.admin().plan(wanted)).await, []);

    exam.publish(message("not any more")).await;
    exam.publish(on("exam.other", "from now on")).await;
    let subscription = exam.subscribe(spec).await;
    // Two topics: there is an order only within one topic.
    let mut wanted = HashSet::from(["waits".to_owned(), "from now on".to_owned()]);
    while !wanted.is_empty() {
        let delivery = exam.next_of(&subscription, &format!("{wanted:?}")).await;
        assert!(wanted.remove(&text(&delivery)), "{}", text(&delivery));
        exam.ack(delivery).await;
    }
}

/// An invalid topology is refused as a whole: nothing is created.
async fn a_topology_with_ill_names_changes_nothing(exam: Exam) {
    let mut wanted = topology(&[group("g", 1), group("h", 1)]);
    wanted.groups[1].group = "No Such Name".into();
    exam.refused(ErrorKind::InvalidName, "plan", exam.admin().plan(wanted.clone())).await;
    exam.refused(ErrorKind::InvalidName, "apply", exam.admin().apply(wanted.clone())).await;
    wanted.groups[1].group = "h".into();
    wanted.groups[1].filters.clear();
    exam.refused(ErrorKind::Config, "apply", exam.admin().apply(wanted)).await;
    assert!(exam.ok("the groups", exam.admin().groups()).await.is_empty());
}
