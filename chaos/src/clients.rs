//! Clients that write numbered lines through every node's proxy, each line once, and record what
//! they were told.

use std::net::SocketAddr;
use std::time::Duration;

use flocker_base::{Clock as _, SystemClock};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::history::{History, Outcome, Write};
use crate::http::{Failure, HttpClient};

/// How long a client waits for one answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(12);
/// Pause after a failure, so that a dead node is not hammered.
const AFTER_FAILURE: Duration = Duration::from_millis(25);

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The service's host name.
    pub host: &'a str,
    /// Clients a node.
    pub clients: usize,
    /// Pause of each between two writes.
    pub pace: Duration,
}

/// Running clients.
#[derive(Debug)]
pub struct Clients {
    history: History,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Starts them, through the proxies of these nodes. `tag` tells their lines from those of
    /// other clients of the same service.
    #[must_use]
    pub fn start(nodes: &[(String, SocketAddr)], load: Load<'_>, tag: &str) -> Self {
        let (history, stop) = (History::default(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        for (node, at) in nodes {
            for number in 0..load.clients {
                let client = Client {
                    name: format!("{tag}-{node}-{number}"),
                    through: node.clone(),
                    http: HttpClient::new(*at, load.host),
                    pace: load.pace,
                    history: history.clone(),
                };
                tasks.spawn(client.run(stop.clone()));
            }
        }
        Self { history, stop, tasks }
    }

    /// What was recorded so far, and will be.
    #[must_use]
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// Ends them after their present request.
    pub async fn stop(mut self) -> History {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.history
    }
}

struct Client {
    name: String,
    through: String,
    http: HttpClient,
    pace: Duration,
    history: History,
}

impl Client {
    async fn run(mut self, stop: CancellationToken) {
        let mut number = 0_u64;
        while !stop.is_cancelled() {
            number += 1;
            let line = format!("{}-{number}", self.name);
            let sent = SystemClock.boot();
            let answer = self.http.post(&line, REQUEST_DEADLINE).await;
            let (outcome, pause) = match answer {
                Ok(_) => (Outcome::Acknowledged, self.pace),
                Err(Failure::Refused(why)) => (Outcome::Refused(why), AFTER_FAILURE.max(self.pace)),
                Err(Failure::Unanswered(why)) => {
                    (Outcome::Unknown(why), AFTER_FAILURE.max(self.pace))
                }
            };
            let ended = SystemClock.boot();
            let through = self.through.clone();
            self.history.add(Write { line, through, sent, ended, outcome });
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
