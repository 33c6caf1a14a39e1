//! On virtual time.

use std::sync::atomic::{AtomicU32, Ordering};

use flocker_base::{ManualClock, WallTime};
use tokio::sync::mpsc;

use super::*;

fn supervisor() -> (Supervisor, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(BootTime::ZERO, WallTime::from_millis(0)));
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    (Supervisor::new(shared, BackOff::default()).expect("valid"), clock)
}

#[tokio::test(start_paused = true)]
async fn a_failing_task_is_started_again_after_doubling_pauses() {
    let (supervisor, _clock) = supervisor();
    let (starts, mut started) = mpsc::channel(16);
    supervisor.spawn("flaky", move |_| {
        let starts = starts.clone();
        async move {
            starts.send(tokio::time::Instant::now()).await?;
            anyhow::bail!("no luck")
        }
    });
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push(started.recv().await.expect("started"));
    }
    let pauses: Vec<u128> = times.windows(2).map(|t| (t[1] - t[0]).as_millis()).collect();
    assert_eq!(pauses, [100, 200, 400, 800]);
    let state = &supervisor.states()[0];
    assert_eq!((state.name.as_str(), state.restarts), ("flaky", 4));
    assert_eq!(state.last_error.as_deref(), Some("no luck"));
    assert_eq!(supervisor.shutdown(Duration::from_secs(1)).await, Vec::<String>::new());
    assert_eq!(supervisor.states()[0].state, State::Stopped);
}

#[test]
fn pauses_have_a_limit_and_start_over_after_a_healthy_run() {
    let back_off = BackOff::default();
    let short = Duration::from_secs(1);
    assert_eq!(back_off.after(Some(Duration::from_secs(29)), short), Duration::from_secs(30));
    assert_eq!(back_off.after(Some(Duration::from_secs(30)), short), Duration::from_secs(30));
    assert_eq!(
        back_off.after(Some(Duration::from_secs(30)), Duration::from_secs(61)),
        back_off.first
    );
    let spinning = BackOff { first: Duration::ZERO, ..back_off };
    assert!(spinning.validate().is_err());
    assert!(BackOff { most: Duration::from_millis(1), ..back_off }.validate().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error_like_any_other() {
    let (supervisor, _clock) = supervisor();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let (done, mut finished) = mpsc::channel(1);
    supervisor.spawn("fragile", move |_| {
        let (run, done) = (counted.fetch_add(1, Ordering::Relaxed), done.clone());
        async move {
            assert!(run > 0, "the first run breaks");
            done.send(()).await?;
            Ok(())
        }
    });
    finished.recv().await.expect("second run");
    tokio::task::yield_now().await;
    let state = &supervisor.states()[0];
    assert_eq!((state.state, state.restarts), (State::Finished, 1));
    assert!(state.last_error.as_ref().expect("kept").contains("the first run breaks"));
    assert_eq!(runs.load(Ordering::Relaxed), 2, "one that is done is not started again");
}

#[tokio::test(start_paused = true)]
async fn shutdown_goes_from_the_newest_to_the_oldest_and_aborts_the_deaf() {
    let (supervisor, _clock) = supervisor();
    let (ended, mut order) = mpsc::channel(8);
    for name in ["store", "network", "deaf", "api"] {
        let ended = ended.clone();
        supervisor.spawn(name, move |stop| {
            let ended = ended.clone();
            async move {
                stop.cancelled().await;
                if name == "deaf" {
                    std::future::pending::<()>().await;
                }
                ended.send(name).await?;
                Ok(())
            }
        });
    }
    let aborted = supervisor.shutdown(Duration::from_secs(3)).await;
    assert_eq!(aborted, ["deaf"]);
    let states: Vec<State> = supervisor.states().iter().map(|s| s.state).collect();
    assert_eq!(states, [State::Stopped, State::Stopped, State::Aborted, State::Stopped]);
    supervisor.spawn("late", async |_| Ok(()));
    assert_eq!(supervisor.states().len(), 4, "nothing is started after the shutdown");
    drop(ended);
    let mut names = Vec::new();
    while let Ok(name) = order.try_recv() {
        names.push(name);
    }
    assert_eq!(names, ["api", "network", "store"]);
}
