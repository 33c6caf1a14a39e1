//! What goes wrong in the simulated world, and its end.

use rand::RngExt;

use super::mutants::Mutant;
use super::network::{Network, chance};
use super::world::{FAULTS_END, Item, SECOND, World};

impl World {
    /// Kills a node's agent. What was not committed is lost; a commit under way may have reached
    /// the disk or not.
    fn crash(&mut self, node: usize) -> Result<(), String> {
        let reached = chance(&mut self.random, 500);
        let this = &mut self.nodes[node];
        if this.core.take().is_none() {
            return Ok(());
        }
        this.life += 1;
        let lost = this.waiting.take().is_some() || (this.committing.is_some() && !reached);
        if let Some((_, writes)) = this.committing.take().filter(|_| reached) {
            self.apply(node, writes)?;
        }
        self.note("crash");
        if lost {
            self.note("write lost in a crash");
        }
        let longest = if self.is_hasty() { SECOND / 2 } else { 8 * SECOND };
        let pause = self.random.random_range(SECOND / 20..longest);
        self.put(pause, Item::Restart { node });
        Ok(())
    }

    /// Lets something go wrong, and plans the next.
    pub(super) fn fault(&mut self) -> Result<(), String> {
        if self.now >= FAULTS_END {
            return Ok(());
        }
        let longest = if self.is_hasty() { SECOND } else { 4 * SECOND };
        let pause = self.random.random_range(SECOND / 5..longest);
        self.put(pause, Item::Fault);
        let count = self.nodes.len();
        let node = self.random.random_range(0..count);
        let other = (node + self.random.random_range(1..count)) % count;
        let kind = self.random.random_range(0..12);
        let kind = match self.mutant {
            // It shows only while old answers come late and new questions do not arrive.
            Some(Mutant::ReceiptTime) => [3, 3, 7, 11][kind % 4],
            _ => kind,
        };
        match kind {
            0..=2 => return self.crash(node),
            3 => {
                self.network.cut.insert((node, other));
                self.note("one-way cut");
            }
            4 => {
                for peer in (0..count).filter(|peer| *peer != node) {
                    self.network.cut.extend([(node, peer), (peer, node)]);
                }
                self.note("node cut off");
            }
            5 => self.network.loss = self.random.random_range(1..300),
            6 => self.network.doubling = self.random.random_range(1..300),
            7 => {
                let longest = if self.mutant == Some(Mutant::ReceiptTime) { 5 } else { 2 };
                self.network.delay = (200, self.random.random_range(SECOND / 20..longest * SECOND));
                self.note("slow network");
            }
            8 => {
                self.disk_delay = (300, self.random.random_range(SECOND / 20..SECOND));
                self.note("slow disk");
            }
            _ => {
                self.network = Network::good();
                self.disk_delay = (300, 8_000);
            }
        }
        Ok(())
    }

    /// Ends all faults.
    pub(super) fn repair(&mut self) -> Result<(), String> {
        self.network = Network::good();
        self.disk_delay = (300, 8_000);
        (0..self.nodes.len()).try_for_each(|node| self.boot(node))
    }

    /// Mutants that show only at a quick restart get many.
    const fn is_hasty(&self) -> bool {
        matches!(self.mutant, Some(Mutant::NoStartWait | Mutant::EarlyAnnouncement))
    }
}
