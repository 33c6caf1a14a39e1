//! Each deadline of a connection, on a clock that moves by hand.

use flocker_base::{ManualClock, WallTime};

use super::*;

fn watch() -> (Arc<ManualClock>, Watch) {
    let clock = Arc::new(ManualClock::new(BootTime::from_millis(5_000), WallTime::from_millis(0)));
    let config = ProxyConfig {
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(75),
        body_stall: Duration::from_secs(30),
        write_stall: Duration::from_secs(20),
        response_timeout: Duration::from_secs(60),
        response_idle: Duration::from_secs(300),
        ..ProxyConfig::default()
    };
    let limits = Limits::client(&config, Duration::from_secs(95));
    let watch = Watch::new(Arc::clone(&clock) as Arc<dyn Clock>, limits, Phase::Head);
    (clock, watch)
}

fn is_later(check: Check) -> bool {
    matches!(check, Check::Later(_))
}

#[test]
fn a_head_has_its_time_however_it_drips() {
    let (clock, watch) = watch();
    for _ in 0..9 {
        clock.advance(Duration::from_secs(1));
        watch.received();
        assert!(is_later(watch.check()));
    }
    clock.advance(Duration::from_secs(1));
    assert_eq!(watch.check(), Check::Head);
}

#[test]
fn an_idle_connection_is_kept_longer_and_its_next_head_starts_anew() {
    let (clock, watch) = watch();
    watch.enter(Phase::Idle);
    clock.advance(Duration::from_secs(70));
    assert!(is_later(watch.check()));
    watch.received();
    clock.advance(Duration::from_secs(9));
    assert!(is_later(watch.check()));
    clock.advance(Duration::from_secs(1));
    assert_eq!(watch.check(), Check::Head);
    watch.enter(Phase::Idle);
    clock.advance(Duration::from_secs(75));
    assert_eq!(watch.check(), Check::Idle);
}

#[test]
fn a_silent_backend_is_told_once_and_then_cut() {
    let (clock, watch) = watch();
    watch.enter_waiting(false);
    clock.advance(Duration::from_secs(60));
    assert_eq!((watch.check(), watch.expired()), (Check::Tell, Some(Expired::Response)));
    assert_eq!(watch.check(), Check::Cut);
    watch.enter_waiting(true);
    assert_eq!(watch.expired(), None);
    clock.advance(Duration::from_secs(90));
    assert!(is_later(watch.check()), "a peer may hold the request first");
}

#[test]
fn a_client_that_stops_sending_is_told_before_the_backend_is_blamed() {
    let (clock, watch) = watch();
    watch.enter_waiting(false);
    clock.advance(Duration::from_secs(40));
    watch.body_awaited(true);
    clock.advance(Duration::from_secs(29));
    watch.body_awaited(false);
    watch.body_awaited(true);
    clock.advance(Duration::from_secs(29));
    assert!(is_later(watch.check()), "each piece that comes starts its time anew");
    clock.advance(Duration::from_secs(1));
    assert_eq!((watch.check(), watch.expired()), (Check::Tell, Some(Expired::Body)));
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let (clock, watch) = watch();
    watch.enter(Phase::Sending);
    watch.write_blocked(true);
    clock.advance(Duration::from_secs(19));
    assert!(is_later(watch.check()));
    watch.write_blocked(true);
    clock.advance(Duration::from_secs(1));
    assert_eq!(watch.check(), Check::Cut);
    watch.write_blocked(false);
    assert!(is_later(watch.check()));
    clock.advance(Duration::from_secs(300));
    assert_eq!(watch.check(), Check::Cut, "and so is a backend that sends nothing for long");
}

#[test]
fn waiting_at_the_gate_has_no_deadline_here_and_looks_come_often_enough() {
    let (clock, watch) = watch();
    watch.enter(Phase::Held);
    clock.advance(Duration::from_secs(1_000));
    assert_eq!(watch.check(), Check::Later(Duration::from_secs(10)));
    watch.enter(Phase::Idle);
    let Check::Later(pause) = watch.check() else { panic!("nothing is due") };
    assert!(pause <= Duration::from_secs(11), "a head that begins meanwhile is seen in time");
}
