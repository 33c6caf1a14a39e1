//! Questions asked again and again by clients that have nothing else under way: when the service
//! answers again. A client with a request in a dead host's hands waits for that first.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flocker_base::{BootTime, Clock as _, SystemClock};
use tokio::task::JoinSet;

use crate::http::HttpClient;
use crate::mesh::{HOST, PATIENCE};

/// Time between two questions.
const EVERY: Duration = Duration::from_millis(20);

/// Questions under way. Dropped, they end.
#[derive(Debug)]
pub struct Probes {
    first: Arc<Mutex<Option<BootTime>>>,
    _tasks: JoinSet<()>,
}

impl Probes {
    /// Asks through these proxies in turn from now on.
    #[must_use]
    pub fn start(through: Vec<SocketAddr>) -> Self {
        let first = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        tasks.spawn(ask(through, Arc::clone(&first)));
        Self { first, _tasks: tasks }
    }

    /// When the first question was answered.
    #[must_use]
    pub fn first(&self) -> Option<BootTime> {
        *self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(through: Vec<SocketAddr>, first: Arc<Mutex<Option<BootTime>>>) {
    let mut questions = JoinSet::new();
    for at in through.iter().cycle() {
        let (at, first) = (*at, Arc::clone(&first));
        questions.spawn(async move {
            if HttpClient::new(at, HOST).get("/", PATIENCE).await.is_ok() {
                let now = SystemClock.boot();
                first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
            }
        });
        while questions.try_join_next().is_some() {}
        tokio::time::sleep(EVERY).await;
    }
}
