//! The rounds that a host runs with its mesh: grow it, have something told, kill a node, look on.
//! A round that does not come to its end is an error, never a figure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail};
use flocker_base::{BootTime, Clock as _, SystemClock};
use serde::{Deserialize, Serialize};

use super::agents::{Agents, Heard, Whose};
use super::costs::{NodeCost, Reading};
use super::ms;
use super::said::Said;

/// How long a round waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// When the others knew something, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// From the cause to the first other node's knowledge.
    pub first_ms: f64,
    /// To the last one's.
    pub all_ms: f64,
}

/// How something told spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// From the start of the command to the teller's own knowledge.
    pub own_ms: f64,
    /// From there to each of the other nodes'.
    pub others_ms: Vec<f64>,
}

impl Told {
    /// When the last node had it, in milliseconds after the teller.
    #[must_use]
    pub fn last_ms(&self) -> f64 {
        self.others_ms.iter().copied().fold(0.0, f64::max)
    }
}

/// A death and the return.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Death {
    /// From SIGKILL to the others' knowledge.
    pub known: Spread,
    /// From the restart to the others' knowledge.
    pub returned: Spread,
}

/// A mesh and what was said that nobody caused.
#[derive(Debug)]
pub struct Rounds {
    agents: Agents,
    whose: Whose,
    dead: BTreeSet<usize>,
    false_suspicions: u64,
    marks: u64,
}

impl Rounds {
    /// With agents of which none runs yet.
    #[must_use]
    pub const fn new(agents: Agents, whose: Whose) -> Self {
        Self { agents, whose, dead: BTreeSet::new(), false_suspicions: 0, marks: 0 }
    }

    /// Suspicions of nodes that lived, so far.
    #[must_use]
    pub const fn false_suspicions(&self) -> u64 {
        self.false_suspicions
    }

    /// Starts the agents one after the other; each only when all know the one before. Answers
    /// when each was known.
    ///
    /// # Errors
    /// If one does not come up or is not known in time.
    pub async fn grow(&mut self) -> Result<Vec<Spread>> {
        let mut spreads = Vec::new();
        for node in 0..self.agents.count() {
            let at = self.agents.start(node).await?;
            self.until_up(node).await?;
            if node > 0 {
                let others = (0..node).collect();
                spreads.push(self.until_known(node, at, &others, true).await?);
            }
        }
        Ok(spreads)
    }

    async fn until_up(&mut self, node: usize) -> Result<()> {
        let deadline = SystemClock.boot() + PATIENCE;
        let mut others = Vec::new();
        while let Some(heard) = self.agents.next(deadline).await {
            if heard.node == node && heard.said == Said::Up {
                // What was said meanwhile of others is not said twice.
                self.agents.keep(others);
                return Ok(());
            }
            others.push(heard);
        }
        bail!("agent {node} does not come up")
    }

    /// Waits until all of these others know that a node lives, and it of them; or that it fails.
    async fn until_known(
        &mut self,
        node: usize,
        since: BootTime,
        others: &BTreeSet<usize>,
        lives: bool,
    ) -> Result<Spread> {
        let name = Agents::name(node);
        let mut by_others = BTreeMap::new();
        let mut missing_to_it: BTreeSet<String> =
            if lives { others.iter().map(|o| Agents::name(*o)).collect() } else { BTreeSet::new() };
        let deadline = SystemClock.boot() + PATIENCE;
        while by_others.len() < others.len() || !missing_to_it.is_empty() {
            let Some(heard) = self.agents.next(deadline).await else {
                let silent: Vec<_> =
                    others.iter().filter(|o| !by_others.contains_key(*o)).collect();
                let word = if lives { "alive" } else { "dead" };
                bail!(
                    "{name} was not known to be {word} in time by {silent:?}, nor these to it: \
                     {missing_to_it:?}"
                );
            };
            match &heard.said {
                Said::Lives(other) if lives && *other == name && others.contains(&heard.node) => {
                    by_others.entry(heard.node).or_insert(heard.at);
                }
                Said::Lives(other) if heard.node == node => {
                    missing_to_it.remove(other);
                }
                Said::Fails(other) if !lives && *other == name => {
                    by_others.entry(heard.node).or_insert(heard.at);
                }
                _ => self.overhear(&heard),
            }
        }
        let times: Vec<f64> = by_others.values().map(|at| ms(at.saturating_since(since))).collect();
        Ok(Spread {
            first_ms: times.iter().copied().fold(f64::INFINITY, f64::min),
            all_ms: times.iter().copied().fold(0.0, f64::max),
        })
    }

    /// What is said beside what a round waits for: it may be a false suspicion.
    fn overhear(&mut self, heard: &Heard) {
        if let Said::Fails(name) = &heard.said
            && !self.dead.iter().any(|dead| Agents::name(*dead) == *name)
        {
            self.false_suspicions += 1;
        }
    }

    fn overhear_all(&mut self) {
        for heard in self.agents.unheard() {
            self.overhear(&heard);
        }
    }

    /// Has a node tell something and waits until all have it.
    ///
    /// # Errors
    /// If one does not get it in time.
    pub async fn tell(&mut self, node: usize) -> Result<Told> {
        self.overhear_all();
        self.marks += 1;
        let given = format!("mark-{}", self.marks);
        let began = self.agents.tell(node, &given).await?;
        let mut first = BTreeMap::<(usize, String), BootTime>::new();
        let mut mark = (self.whose == Whose::Serf).then_some(given);
        let deadline = SystemClock.boot() + PATIENCE;
        loop {
            if let Some(mark) = &mark {
                let has = |n: usize| first.get(&(n, mark.clone())).copied();
                if let Some(own) = has(node)
                    && (0..self.agents.count()).all(|n| has(n).is_some())
                {
                    let others = (0..self.agents.count()).filter(|n| *n != node);
                    return Ok(Told {
                        own_ms: ms(own.saturating_since(began)),
                        others_ms: others
                            .filter_map(has)
                            .map(|at| ms(at.saturating_since(own)))
                            .collect(),
                    });
                }
            }
            let Some(heard) = self.agents.next(deadline).await else {
                bail!("not all have what agent {node} told: {mark:?}; they have {first:?}")
            };
            match heard.said {
                Said::Has(what) => {
                    // The teller's newest root is the one that all have to reach.
                    if heard.node == node && self.whose == Whose::Ours {
                        mark = Some(what.clone());
                    }
                    first.entry((heard.node, what)).or_insert(heard.at);
                }
                _ => self.overhear(&heard),
            }
        }
    }

    /// Kills a node, waits until all others know, starts it again, waits until all know that.
    ///
    /// # Errors
    /// If either does not come about in time.
    pub async fn kill(&mut self, node: usize) -> Result<Death> {
        self.overhear_all();
        let others = (0..self.agents.count()).filter(|n| *n != node).collect();
        self.dead.insert(node);
        let at = self.agents.kill(node).await?;
        let known = self.until_known(node, at, &others, false).await?;
        let at = self.agents.start(node).await?;
        let returned = self.until_known(node, at, &others, true).await?;
        self.dead.remove(&node);
        Ok(Death { known, returned })
    }

    /// Looks on for a while; answers the cost of a node.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub async fn look_on(&mut self, span: Duration) -> Result<NodeCost> {
        let before = Reading::take()?;
        self.listen_for(span).await;
        Reading::take()?.cost_since(&before, self.agents.count())
    }

    /// Has nodes tell so many things in equal steps over a span; answers the bytes that a node
    /// sent in it.
    ///
    /// # Errors
    /// If a command fails.
    pub async fn tell_many(&mut self, times: usize, span: Duration) -> Result<f64> {
        let before = Reading::take()?;
        let began = SystemClock.boot();
        for time in 0..times {
            self.marks += 1;
            let mark = format!("many-{}", self.marks);
            self.agents.tell(time % self.agents.count(), &mark).await?;
            let step =
                span / u32::try_from(times).unwrap_or(1) * u32::try_from(time + 1).unwrap_or(1);
            self.listen_for((began + step).saturating_since(SystemClock.boot())).await;
        }
        Ok(Reading::take()?.bytes_since(&before, self.agents.count()))
    }

    async fn listen_for(&mut self, span: Duration) {
        let until = SystemClock.boot() + span;
        while let Some(heard) = self.agents.next(until).await {
            self.overhear(&heard);
        }
    }

    /// Ends all agents.
    pub async fn end(&mut self) {
        self.agents.end().await;
    }
}
