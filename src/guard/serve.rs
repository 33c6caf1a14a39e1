//! The guard's shell: one thread that waits for the timer or the socket, steps the table, and
//! signals. Waiting decides nothing.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use flocker_base::{BootTime, Clock, Incarnation, SystemClock};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;
use rustix::process::Resource;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::hands::Hands;
use super::notes::Notes;
use super::peer::{Peer, PeerError};
use super::store::{self, Found};
use super::table::{Action, Event, Table};
use super::watchdog::{FEED_EVERY, Watchdog};
use super::wire::{Protected, Reply, Request};
use super::{GuardOptions, LOCK, SOCKET};
use crate::engine::group::{Sent, Stat, living_groups};
use crate::engine::{ProcessGroup, mark};

const MOST_PEERS: usize = 16;
/// A connection that has not said who it is by then is closed.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// The first agent gets at least this long to connect.
const FIRST_LINGER: Duration = Duration::from_secs(5);
/// Between two looks for groups that are gone.
const SWEEP: Duration = Duration::from_secs(1);

pub(super) fn run(options: &GuardOptions) -> anyhow::Result<()> {
    let folder = &options.runtime_dir;
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let _lock = take_lock(folder)?;
    let notes = Notes::start(folder.clone()).context("cannot start a thread")?;
    stand_apart(&notes);
    let mut table = restore(folder, &notes).context("cannot read /proc")?;
    let hands = Hands::new(folder);
    table.note_frozen(|group| hands.is_frozen(group));
    notes.say(format!("services are frozen by {}", hands.name()));
    let listener = listen(folder)?;
    let timer = rustix::time::timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    );
    let timer = timer.context("cannot make a timer")?;
    let now = SystemClock.boot();
    let mut shell = Shell {
        boot: crate::engine::boot_id().context("cannot read the boot's id")?,
        options: options.clone(),
        table: table.with_frozen_limit(options.frozen_limit),
        hands,
        listener,
        timer,
        notes,
        peers: Vec::new(),
        idle_since: now,
        linger: options.linger.max(FIRST_LINGER),
        next_sweep: now,
        watchdog: None,
        changed: true,
    };
    let outcome = shell.serve();
    fs::remove_file(folder.join(SOCKET)).ok();
    shell.hands.close();
    // After a failure it is left to reset the machine.
    if let Some(dog) = shell.watchdog.take_if(|_| outcome.is_ok())
        && let Err(error) = dog.close()
    {
        shell.notes.say(format!("cannot stop the watchdog: {error}"));
    }
    shell.notes.end();
    if outcome.is_ok() {
        store::remove(folder);
    }
    outcome.context("the guard's loop failed")
}

/// One guard a folder. The file says which process it is, for an agent that finds it hanging.
fn take_lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another guard has {}", folder.display());
    }
    let pid = std::process::id();
    let start = Stat::read(pid).context("cannot read /proc/self/stat")?.start_ticks;
    file.set_len(0).context("cannot write the lock file")?;
    write!(file, "{pid} {start}").context("cannot write the lock file")?;
    Ok(file)
}

/// Out of the terminal's session, into locked memory, ahead of others: each as far as it is
/// allowed.
fn stand_apart(notes: &Notes) {
    rustix::process::setsid().ok();
    std::env::set_current_dir("/").ok();
    let root = rustix::process::geteuid().is_root();
    let mut flags = rustix::mm::MlockAllFlags::CURRENT;
    if root {
        flags |= rustix::mm::MlockAllFlags::FUTURE;
    }
    if let Err(e) = rustix::mm::mlockall(flags) {
        notes
            .say(format!("cannot lock the memory ({e}): under memory pressure a kill may be late"));
    }
    rustix::process::setpriority_process(None, -20).ok();
    let oom = OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    oom.and_then(|mut file| file.write_all(b"-1000")).ok();
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(Resource::Nofile, files).ok();
}

/// What the guard before this one held; all that carries the mark and is not held is killed.
fn restore(folder: &Path, notes: &Notes) -> io::Result<Table> {
    let table = match store::load(folder, &crate::engine::boot_id()?) {
        Found::Table(table) => table,
        Found::Nothing => Table::default(),
        Found::Lost(why) => {
            notes.say(format!("{why}: everything managed is killed"));
            Table::default()
        }
    };
    let groups: Vec<ProcessGroup> = table.held().map(|(p, _)| p.group).collect();
    let is_held = |pid| {
        Stat::read(pid).is_some_and(|s| groups.iter().any(|g| g.leader == s.group && g.is_proven()))
    };
    let killed = mark::kill_managed(folder, is_held)?;
    if killed > 0 {
        notes.say(format!("killed {killed} processes that no table held to a deadline"));
    }
    Ok(table)
}

fn listen(folder: &Path) -> anyhow::Result<UnixListener> {
    let handle = File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
    let path = socket_path(&handle);
    fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", folder.join(SOCKET).display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context("cannot set its mode")?;
    listener.set_nonblocking(true).context("cannot set up the socket")?;
    Ok(listener)
}

/// A socket's path may have 107 bytes; this one is short however long the folder's is.
pub(super) fn socket_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

struct Shell {
    options: GuardOptions,
    boot: String,
    table: Table,
    hands: Hands,
    listener: UnixListener,
    timer: OwnedFd,
    notes: Notes,
    peers: Vec<Peer>,
    /// Since when there has been no agent and nothing to hold.
    idle_since: BootTime,
    linger: Duration,
    next_sweep: BootTime,
    watchdog: Option<Watchdog>,
    /// The table's file is to be written.
    changed: bool,
}

impl Shell {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let mut actions = Vec::new();
            self.table.step(SystemClock.boot(), Event::Tick, &mut actions);
            self.act(&actions);
            self.sweep();
            self.feed();
            if std::mem::take(&mut self.changed) {
                self.notes.table(store::encode(&self.table, &self.boot));
            }
            if self.is_done() {
                return Ok(());
            }
            self.set_timer()?;
            self.wait()?;
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut fds = Vec::with_capacity(2 + self.peers.len());
        fds.push(PollFd::from_borrowed_fd(self.timer.as_fd(), PollFlags::IN));
        fds.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        fds.extend(self.peers.iter().map(|p| PollFd::from_borrowed_fd(p.fd(), p.interest())));
        let mut most = self.options.linger.min(SWEEP).max(Duration::from_millis(10));
        if self.watchdog.is_some() {
            most = most.min(FEED_EVERY);
        }
        let most = Timespec {
            tv_sec: i64::try_from(most.as_secs()).unwrap_or(1),
            tv_nsec: i64::from(most.subsec_nanos()),
        };
        match rustix::event::poll(&mut fds, Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let awake: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if awake[0] {
            let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
        }
        let mut index = 1;
        let mut peers = std::mem::take(&mut self.peers);
        peers.retain_mut(|peer| {
            index += 1;
            !awake[index] || self.attend(peer).map_err(|e| self.part(peer, &e)).is_ok()
        });
        self.peers = peers;
        if awake[1] {
            self.accept();
        }
        Ok(())
    }

    fn part(&self, peer: &Peer, why: &PeerError) {
        if !matches!((why, peer.incarnation), (PeerError::Gone, Some(_))) {
            self.notes.say(format!("closed a connection: {why}"));
        }
    }

    fn accept(&mut self) {
        let own = rustix::process::geteuid();
        while let Ok((stream, _)) = self.listener.accept() {
            let user = rustix::net::sockopt::socket_peercred(&stream).map(|c| c.uid);
            if !user.is_ok_and(|u| u == own || u.is_root()) {
                self.notes.say("refused a connection of another user".to_owned());
                continue;
            }
            if self.peers.len() >= MOST_PEERS {
                let stranger = self.peers.iter().position(|p| p.incarnation.is_none());
                self.peers.remove(stranger.unwrap_or_default());
            }
            if let Ok(peer) = Peer::new(stream, SystemClock.boot()) {
                self.peers.push(peer);
            }
        }
    }

    fn attend(&mut self, peer: &mut Peer) -> Result<(), PeerError> {
        peer.send()?;
        peer.receive()?;
        while let Some(request) = peer.next_request()? {
            let reply = self.answer(peer, &request);
            peer.reply(&reply.to_frame())?;
        }
        Ok(())
    }

    fn answer(&mut self, peer: &mut Peer, request: &Request) -> Reply {
        let from = match (peer.incarnation, request) {
            (_, Request::Hello(incarnation)) => *incarnation,
            (Some(incarnation), _) => incarnation,
            (None, _) => return Reply::Refused("say hello first".to_owned()),
        };
        match request {
            Request::Protect(wanted) if !wanted.group.leader_stands() => {
                let leader = wanted.group.leader;
                return Reply::Refused(format!(
                    "pid {leader} leads no group or is another process"
                ));
            }
            Request::Release(service) => self.forget_gone(|g| g.service == *service),
            _ => {}
        }
        let mut actions = Vec::new();
        let reply = self.table.step(SystemClock.boot(), Event::Asked(from, request), &mut actions);
        self.act(&actions);
        match (request, &reply) {
            (Request::Hello(_), Reply::Done) => self.welcome(peer, from),
            (Request::Watch(device), Reply::Done) => return self.watch(device),
            _ => {}
        }
        self.changed |= !matches!(request, Request::List | Request::Ping);
        reply
    }

    /// Takes a watchdog on. One that is fed already is kept: to leave it would reset the machine.
    fn watch(&mut self, device: &Path) -> Reply {
        match &self.watchdog {
            Some(dog) if dog.path() == device => return Reply::Done,
            Some(dog) => {
                let other = dog.path().display();
                return Reply::Refused(format!(
                    "it feeds the watchdog {other} already: stop the agent and its services to \
                     change that"
                ));
            }
            None => {}
        }
        match Watchdog::open(device, SystemClock.boot()) {
            Ok((dog, note)) => {
                self.notes.say(note);
                self.watchdog = Some(dog);
                Reply::Done
            }
            Err(error) => {
                Reply::Refused(format!("cannot open the watchdog {}: {error}", device.display()))
            }
        }
    }

    fn feed(&mut self) {
        let since = self.table.killing_since();
        if let Some(dog) = &mut self.watchdog
            && let Some(note) = dog.feed(SystemClock.boot(), since)
        {
            self.notes.say(note);
        }
    }

    fn welcome(&mut self, peer: &mut Peer, incarnation: Incarnation) {
        if peer.incarnation != Some(incarnation) {
            self.notes.say(format!("agent start {} is here", incarnation.0));
        }
        peer.incarnation = Some(incarnation);
        self.linger = self.options.linger;
    }

    /// Signals first, then looks at what is left.
    fn act(&mut self, actions: &[Action]) {
        let mut killed = Vec::new();
        let mut looked_at = Vec::new();
        for action in actions {
            let (protected, sent, word) = match action {
                Action::Freeze { protected, first, overdue } => {
                    if *overdue {
                        looked_at.push(*protected);
                    }
                    (protected, self.hands.freeze(&protected.group), first.then_some("froze"))
                }
                Action::Thaw { protected, keep_frozen, resume } => {
                    let thawed = self.hands.thaw(&protected.group, *keep_frozen, *resume);
                    (protected, thawed, Some("thawed"))
                }
                Action::Kill { protected, first } => {
                    if *first {
                        killed.push((protected.group.service, protected.epoch));
                    }
                    (protected, self.hands.kill(&protected.group), first.then_some("killed"))
                }
            };
            if let Some(word) = word {
                self.tell(word, protected, sent);
            }
        }
        self.look(&looked_at);
        if !killed.is_empty()
            && let Err(e) = mark::kill_strays(&self.options.runtime_dir, &killed)
        {
            self.notes.say(format!("cannot look for strays: {e}"));
        }
        if actions.iter().any(|a| matches!(a, Action::Kill { .. })) {
            self.forget_gone(|_| true);
        }
    }

    fn tell(&mut self, word: &str, protected: &Protected, sent: io::Result<Sent>) {
        let (service, epoch, pid) =
            (protected.group.service, protected.epoch, protected.group.leader);
        let outcome = sent.map_or_else(|e| e.to_string(), |sent| format!("{sent:?}"));
        self.notes.say(format!("{word} service {service} epoch {epoch} pid {pid}: {outcome}"));
        self.changed = true;
    }

    /// Kills at once what does not stand still past its deadline.
    fn look(&mut self, overdue: &[Protected]) {
        if overdue.is_empty() {
            return;
        }
        let moving = self.hands.moving(overdue, &self.options.runtime_dir);
        for protected in moving {
            let mut actions = Vec::new();
            let event = Event::Moves(protected.group);
            self.table.step(SystemClock.boot(), event, &mut actions);
            self.act(&actions);
        }
    }

    fn forget_gone(&mut self, asked: impl Fn(&ProcessGroup) -> bool) {
        let Ok(living) = living_groups() else { return };
        let held: Vec<ProcessGroup> = self.table.held().map(|(p, _)| p.group).collect();
        for group in held.into_iter().filter(asked) {
            let stands = living.contains(&group.leader) && group.is_proven();
            if !stands && self.hands.is_empty(&group) {
                self.table.step(SystemClock.boot(), Event::Gone(group), &mut Vec::new());
                self.changed = true;
            }
        }
    }

    fn sweep(&mut self) {
        let now = SystemClock.boot();
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP.min(self.options.linger);
        if !self.table.is_empty() {
            self.forget_gone(|_| true);
        }
        self.peers.retain(|p| p.incarnation.is_some() || now < p.since + HELLO_LIMIT);
    }

    fn is_done(&mut self) -> bool {
        let now = SystemClock.boot();
        let newest = self.table.newest();
        let has_agent = self.peers.iter().any(|p| p.incarnation == Some(newest));
        if has_agent || !self.table.is_empty() {
            self.idle_since = now;
        }
        now >= self.idle_since + self.linger
    }

    /// Absolute, on the clock that counts suspend: one that has passed meanwhile fires at once.
    fn set_timer(&self) -> io::Result<()> {
        let next = self.table.next_deadline().since_boot();
        let at = match i64::try_from(next.as_secs()) {
            Ok(secs) if next != Duration::MAX => {
                Timespec { tv_sec: secs, tv_nsec: i64::from(next.subsec_nanos().max(1)) }
            }
            _ => Timespec { tv_sec: 0, tv_nsec: 0 },
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}
