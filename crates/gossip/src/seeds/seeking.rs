//! When the seeds are tried: the decision alone. It reads no clock and resolves no name.

use std::time::Duration;

use flocker_base::BootTime;

/// A start finds the mesh by the addresses on disk, if it can: the seeds wait so long.
const HEAD_START: Duration = Duration::from_secs(2);

/// The pause of a node that is alone, after its first try; it doubles up to [`LONGEST_ALONE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_ALONE: Duration = Duration::from_secs(15);

/// The pause while some node is missing: the mesh may be in two parts that only the seeds know to
/// be one, but mostly the node is just off.
const SOME_MISSING: Duration = Duration::from_secs(60);

/// How much of the mesh is seen alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// No other node.
    None,
    /// Some, but not every one that is known.
    Some,
    /// Every one that is known.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Who is there now.
    Company(Company),
    /// The deadline has passed.
    Due,
    /// All seeds were tried.
    Sought {
        /// Whether a node was found that was not connected.
        found: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Try all seeds, then say so.
    Seek,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Seeking {
    company: Company,
    next: BootTime,
    tries: u32,
    seeking: bool,
}

impl Seeking {
    pub(super) fn new(now: BootTime) -> Self {
        Self { company: Company::None, next: now + HEAD_START, tries: 0, seeking: false }
    }

    pub(super) fn next_deadline(&self) -> BootTime {
        if self.seeking || self.company == Company::All { BootTime::NEVER } else { self.next }
    }

    pub(super) fn step(&mut self, now: BootTime, event: Event) -> Vec<Command> {
        match event {
            Event::Company(company) if company != self.company => {
                self.company = company;
                self.tries = 0;
                // Whoever is missing may be about to come: gossip is given the first chance.
                let pause = if company == Company::Some { SOME_MISSING } else { HEAD_START };
                self.next = now + pause;
                Vec::new()
            }
            Event::Company(_) => Vec::new(),
            Event::Due if now >= self.next_deadline() => {
                self.seeking = true;
                vec![Command::Seek]
            }
            Event::Due => Vec::new(),
            Event::Sought { found } => {
                self.seeking = false;
                self.tries = if found { 0 } else { self.tries.saturating_add(1) };
                let pause = match self.company {
                    Company::None => {
                        let doublings = self.tries.saturating_sub(1).min(8);
                        FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_ALONE)
                    }
                    Company::Some | Company::All => SOME_MISSING,
                };
                self.next = now + pause;
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> BootTime {
        BootTime::from_millis(secs * 1000)
    }

    #[test]
    fn a_node_that_is_alone_seeks_soon_and_again_ever_more_seldom() {
        let mut core = Seeking::new(at(0));
        assert_eq!(core.step(at(1), Event::Due), vec![]);
        for (due, next) in [(2, 4), (4, 8), (8, 16), (16, 31), (31, 46)] {
            assert_eq!(core.step(at(due), Event::Due), vec![Command::Seek]);
            assert_eq!(core.next_deadline(), BootTime::NEVER, "one at a time");
            assert_eq!(core.step(at(due), Event::Sought { found: false }), vec![]);
            assert_eq!(core.next_deadline(), at(next));
        }
    }

    #[test]
    fn a_whole_mesh_is_left_alone_and_a_part_is_looked_for_seldom() {
        let mut core = Seeking::new(at(0));
        core.step(at(1), Event::Company(Company::All));
        assert_eq!(core.next_deadline(), BootTime::NEVER);
        assert_eq!(core.step(at(100), Event::Due), vec![]);
        core.step(at(100), Event::Company(Company::Some));
        assert_eq!(core.next_deadline(), at(160));
        core.step(at(130), Event::Company(Company::Some));
        assert_eq!(core.next_deadline(), at(160), "the same again changes nothing");
        assert_eq!(core.step(at(160), Event::Due), vec![Command::Seek]);
        core.step(at(161), Event::Sought { found: true });
        assert_eq!(core.next_deadline(), at(221));
        core.step(at(200), Event::Company(Company::None));
        assert_eq!(core.next_deadline(), at(202), "alone: soon");
    }

    #[test]
    fn company_that_comes_and_goes_while_it_seeks_starts_no_second_search() {
        let mut core = Seeking::new(at(0));
        assert_eq!(core.step(at(2), Event::Due), vec![Command::Seek]);
        core.step(at(3), Event::Company(Company::Some));
        core.step(at(4), Event::Company(Company::None));
        assert_eq!(core.step(at(60), Event::Due), vec![]);
        core.step(at(61), Event::Sought { found: false });
        assert_eq!(core.next_deadline(), at(63));
    }
}
