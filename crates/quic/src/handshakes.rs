//! The handshakes that clients have not finished: how many there may be, and which one gives way.
//! A client that never finishes must cost a peer nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

/// Unfinished handshakes, each in a task that yields what came of it.
pub(crate) struct Handshakes<T> {
    tasks: JoinSet<Option<T>>,
    running: Vec<Running>,
}

struct Running {
    from: IpAddr,
    task: AbortHandle,
}

impl<T: Send + 'static> Handshakes<T> {
    pub(crate) fn new() -> Self {
        Self { tasks: JoinSet::new(), running: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Starts one. If that makes more than `most`, the oldest of the address with the most gives
    /// way; its address is returned.
    pub(crate) fn start(
        &mut self,
        runtime: &Handle,
        from: IpAddr,
        handshake: impl Future<Output = Option<T>> + Send + 'static,
        most: usize,
    ) -> Option<IpAddr> {
        self.running.retain(|r| !r.task.is_finished());
        let mut gave_way = None;
        if self.running.len() >= most
            && let Some(index) = yields(self.running.iter().map(|r| r.from))
        {
            let victim = self.running.remove(index);
            victim.task.abort();
            gave_way = Some(victim.from);
        }
        let task = self.tasks.spawn_on(handshake, runtime);
        self.running.push(Running { from, task });
        gave_way
    }

    /// The next that succeeded, in the order they end; `None` if none is left. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<T> {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Some(done)) => return Some(done),
                Ok(None) => {}
                Err(e) if e.is_cancelled() => {}
                Err(e) => tracing::error!("a handshake's task panicked: {e}"),
            }
        }
        None
    }
}

/// Which of these, oldest first, gives way: the oldest of the address that has the most.
fn yields(oldest_first: impl Iterator<Item = IpAddr> + Clone) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for from in oldest_first.clone() {
        *counts.entry(from).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    oldest_first.enumerate().find(|(_, from)| counts.get(from) == Some(&most)).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    #[test]
    fn the_oldest_of_the_address_with_the_most_gives_way() {
        let running = [ip(1), ip(2), ip(3), ip(3), ip(2), ip(2)];
        assert_eq!(yields(running.into_iter()), Some(1));
        assert_eq!(yields([ip(1), ip(2)].into_iter()), Some(0), "a tie: the oldest");
        assert_eq!(yields(std::iter::empty()), None);
    }

    #[tokio::test]
    async fn a_flood_displaces_itself_and_not_the_others() {
        let mut handshakes = Handshakes::new();
        let runtime = Handle::current();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        handshakes.start(&runtime, ip(1), async { finished.await.ok().map(|()| 7) }, 4);
        for _ in 0..100 {
            let gave_way = handshakes.start(&runtime, ip(9), std::future::pending(), 4);
            assert_ne!(gave_way, Some(ip(1)));
        }
        finish.send(()).expect("it still runs");
        assert_eq!(handshakes.next().await, Some(7));
    }
}
