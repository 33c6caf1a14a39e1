//! What every engine must do. Runs on the fake and on the process engine alike.

use std::time::Duration;

use flocker::engine::{Ended, Engine, EngineError, Hold, Instance, Launch};
use flocker_base::ServiceId;

use crate::waiting::{LIMIT, until};

/// An engine and launches that suit it.
pub(crate) trait Bench {
    fn engine(&self) -> &dyn Engine;
    /// One that becomes ready.
    fn serving(&self, service: u8) -> Launch;
    /// One that runs and never becomes ready.
    fn silent(&self, service: u8) -> Launch;
    /// One whose command cannot be run.
    fn broken(&self, service: u8) -> Launch;
    /// Ends the service from outside.
    fn crash(&self, instance: &Instance);
    /// Whether the service makes progress.
    fn runs(&self, instance: &Instance) -> bool;
}

pub(crate) async fn run(bench: &dyn Bench) {
    starts_serves_and_stops(bench).await;
    refuses_a_second_start_and_strangers(bench).await;
    holds_are_counted(bench).await;
    a_lease_hold_is_not_run_on_to_stop(bench).await;
    a_crash_is_noticed(bench).await;
    failures_leave_nothing_behind(bench).await;
    readiness_has_a_deadline_and_ends_with_the_service(bench).await;
}

async fn shown(bench: &dyn Bench, service: ServiceId) -> Option<Instance> {
    bench.engine().instances().await.into_iter().find(|i| i.service == service)
}

async fn starts_serves_and_stops(bench: &dyn Bench) {
    let (engine, launch) = (bench.engine(), bench.serving(1));
    let mut exits = engine.exits();
    let instance = engine.start(&launch).await.expect("starts");
    assert_eq!((instance.service, instance.epoch), (launch.service, launch.epoch));
    assert_eq!(instance.volume, launch.volume);
    assert_eq!(instance.address.ip(), launch.host);
    engine.ready(launch.service, LIMIT).await.expect("ready");
    assert_eq!(shown(bench, launch.service).await, Some(instance.clone()));
    let exit = engine.stop(launch.service, LIMIT).await.expect("stops");
    assert_eq!((exit.how, exit.asked, exit.pid), (Ended::Code(0), true, instance.pid));
    assert_eq!(exits.recv().await.expect("told"), exit);
    assert_eq!(shown(bench, launch.service).await, None);
    let again = engine.start(&launch).await.expect("starts again");
    assert_ne!((again.pid, again.start_ticks), (instance.pid, instance.start_ticks));
    let exit = engine.kill(launch.service).await.expect("kills");
    assert_eq!((exit.how, exit.asked), (Ended::Signal(9), true));
}

async fn refuses_a_second_start_and_strangers(bench: &dyn Bench) {
    let (engine, launch) = (bench.engine(), bench.serving(2));
    let service = launch.service;
    assert!(matches!(engine.freeze(service, Hold::Lease), Err(EngineError::NotHere { .. })));
    assert!(matches!(engine.thaw(service, Hold::Lease), Err(EngineError::NotHere { .. })));
    assert!(matches!(engine.kill(service).await, Err(EngineError::NotHere { .. })));
    assert!(matches!(engine.stop(service, LIMIT).await, Err(EngineError::NotHere { .. })));
    assert!(matches!(engine.ready(service, LIMIT).await, Err(EngineError::NotHere { .. })));
    let (first, second) = tokio::join!(engine.start(&launch), engine.start(&launch));
    let refusals = [&first, &second]
        .map(|r| matches!(r, Err(EngineError::AlreadyRuns { .. } | EngineError::Starting { .. })));
    assert_eq!(refusals.iter().filter(|refused| **refused).count(), 1, "{first:?} {second:?}");
    let third = engine.start(&launch).await;
    assert!(matches!(third, Err(EngineError::AlreadyRuns { .. })), "{third:?}");
    engine.kill(service).await.expect("kills");
}

async fn holds_are_counted(bench: &dyn Bench) {
    let (engine, launch) = (bench.engine(), bench.serving(3));
    let service = launch.service;
    let instance = engine.start(&launch).await.expect("starts");
    engine.ready(service, LIMIT).await.expect("ready");
    for _ in 0..2 {
        engine.freeze(service, Hold::Snapshot).expect("freezes, and a frozen one too");
        assert!(shown(bench, service).await.expect("here").frozen);
        assert!(!bench.runs(&instance));
    }
    engine.freeze(service, Hold::Lease).expect("freezes");
    engine.thaw(service, Hold::Snapshot).expect("lifts the snapshot's hold");
    assert!(shown(bench, service).await.expect("here").frozen, "the lease's hold stands");
    assert!(!bench.runs(&instance));
    engine.thaw(service, Hold::Lease).expect("thaws");
    until("it runs again", || bench.runs(&instance)).await;
    assert!(!shown(bench, service).await.expect("here").frozen);
    engine.ready(service, LIMIT).await.expect("serves again");
    engine.freeze(service, Hold::Snapshot).expect("freezes");
    let exit = engine.stop(service, LIMIT).await.expect("one frozen for a snapshot can stop");
    assert_eq!(exit.how, Ended::Code(0));
}

async fn a_lease_hold_is_not_run_on_to_stop(bench: &dyn Bench) {
    let (engine, launch) = (bench.engine(), bench.serving(4));
    engine.start(&launch).await.expect("starts");
    engine.ready(launch.service, LIMIT).await.expect("ready");
    engine.freeze(launch.service, Hold::Lease).expect("freezes");
    let exit = engine.stop(launch.service, LIMIT).await.expect("ends");
    assert_eq!(exit.how, Ended::Signal(9));
}

async fn a_crash_is_noticed(bench: &dyn Bench) {
    let (engine, launch) = (bench.engine(), bench.serving(5));
    let mut exits = engine.exits();
    let instance = engine.start(&launch).await.expect("starts");
    engine.ready(launch.service, LIMIT).await.expect("ready");
    bench.crash(&instance);
    let exit = tokio::time::timeout(LIMIT, exits.recv()).await.expect("in time").expect("told");
    assert_eq!((exit.service, exit.asked), (launch.service, false));
    assert_eq!(exit.how, Ended::Signal(9));
    assert_eq!(shown(bench, launch.service).await, None);
}

async fn failures_leave_nothing_behind(bench: &dyn Bench) {
    let (engine, launch) = (bench.engine(), bench.broken(6));
    let error = engine.start(&launch).await.expect_err("cannot").to_string();
    assert!(error.contains(launch.name.as_str()) && error.contains("/no/such/program"), "{error}");
    assert_eq!(shown(bench, launch.service).await, None);
    engine.start(&bench.serving(6)).await.expect("the next start is free");
    engine.kill(launch.service).await.expect("kills");
}

async fn readiness_has_a_deadline_and_ends_with_the_service(bench: &dyn Bench) {
    let (engine, launch) = (bench.engine(), bench.silent(7));
    let service = launch.service;
    let instance = engine.start(&launch).await.expect("starts");
    let short = Duration::from_millis(60);
    assert!(matches!(engine.ready(service, short).await, Err(EngineError::NotReady { .. })));
    let crash = async {
        tokio::task::yield_now().await;
        bench.crash(&instance);
    };
    let (ready, ()) = tokio::join!(engine.ready(service, LIMIT), crash);
    assert!(matches!(ready, Err(EngineError::Ended { .. })), "{ready:?}");
}
