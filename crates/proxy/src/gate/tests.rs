//! The shell: that futures are woken, that dropped ones are forgotten, and that deadlines fire.
//! Time is tokio's paused clock, nothing sleeps.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use flocker_base::{Epoch, ManualClock, WallTime};
use tokio::task::JoinSet;

use super::*;
use crate::pool::tests::route;
use crate::route::Place;

fn gate() -> (Arc<Gate>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(BootTime::from_millis(1), WallTime::from_millis(1)));
    let limits =
        Limits { max_held: 100, max_held_bytes: 1_000_000, max_hold: Duration::from_secs(30) };
    (Gate::new(limits, Arc::clone(&clock) as Arc<dyn Clock>), clock)
}

fn somewhere(counter: u64) -> Option<Arc<Route>> {
    let epoch = Epoch { generation: 1, counter };
    Some(route(Place::Local { address: ([127, 0, 0, 1], 1).into(), epoch }))
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn held_requests_are_woken_by_the_place_and_count_as_in_flight() {
    let (gate, _) = gate();
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let gate = Arc::clone(&gate);
        tasks.spawn(async move { gate.enter(1).await.expect("admitted") });
    }
    settle().await;
    assert_eq!(gate.counts().held, 50);
    gate.place(somewhere(1));
    let passes = tasks.join_all().await;
    assert_eq!((gate.counts().held, gate.counts().in_flight), (0, 50));
    drop(passes);
    assert_eq!(gate.counts().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_is_forgotten_and_a_dropped_admission_is_not_in_flight() {
    let (gate, _) = gate();
    {
        let mut waiting = std::pin::pin!(gate.enter(1));
        assert!(futures_poll(waiting.as_mut()).await.is_none());
        assert_eq!(gate.counts().held, 1);
    }
    assert_eq!(gate.counts().held, 0);
    {
        let mut waiting = std::pin::pin!(gate.enter(1));
        assert!(futures_poll(waiting.as_mut()).await.is_none());
        gate.place(somewhere(1));
        assert_eq!(gate.counts().in_flight, 1);
    }
    assert_eq!(gate.counts().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_fires_even_if_the_clock_lags_behind_the_timer() {
    let (gate, _stands_still) = gate();
    let why = gate.enter(1).await.expect_err("nobody knows where it is");
    assert_eq!(why, Refusal::TooLong);
    assert_eq!(gate.counts().held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pass_given_back_waits_again_and_asks_for_one_probe() {
    let (gate, _) = gate();
    gate.place(somewhere(1));
    let (first, second) =
        (gate.enter(1).await.expect("admitted"), gate.enter(1).await.expect("admitted"));
    let (first, probe) = gate.enter_again(first, 1);
    let probe = probe.expect("someone must find out");
    let (second, none) = gate.enter_again(second, 1);
    assert!(none.is_none() && gate.wants(&probe));
    assert_eq!((gate.counts().held, gate.counts().in_flight), (2, 0));
    gate.revived(&probe);
    let passes = (first.verdict().await.expect("admitted"), second.verdict().await.expect("too"));
    assert_eq!((gate.counts().held, gate.counts().in_flight), (0, 2));
    drop(passes);
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_the_last_and_gives_up_at_the_deadline() {
    let (gate, _) = gate();
    gate.place(somewhere(1));
    let pass = gate.enter(1).await.expect("admitted");
    gate.hold();
    assert_eq!(gate.drain(Duration::from_secs(1)).await, 1);
    let done = Arc::new(AtomicUsize::new(9));
    let mut tasks = JoinSet::new();
    let (drained, other) = (Arc::clone(&done), Arc::clone(&gate));
    tasks.spawn(async move {
        drained.store(other.drain(Duration::from_secs(60)).await, SeqCst);
    });
    settle().await;
    assert_eq!(done.load(SeqCst), 9);
    drop(pass);
    tasks.join_all().await;
    assert_eq!(done.load(SeqCst), 0);
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}
