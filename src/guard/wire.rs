//! What the agent and the guard say to each other over the socket, and how it is written.
//!
//! ```text
//!   frame   = length u32 LE, payload
//!   payload = version u8, kind u8, body
//! ```
//!
//! Numbers are little-endian. Instants are nanoseconds of `CLOCK_BOOTTIME`, the largest meaning
//! never. A length is checked before a byte of the payload is awaited.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, Incarnation, ServiceId};

use crate::engine::ProcessGroup;

/// The version that this binary speaks.
pub const VERSION: u8 = 1;
/// The longest request. It holds more than a thousand extensions.
pub const MOST_REQUEST_BYTES: usize = 64 << 10;
/// The longest reply: the list of everything.
pub const MOST_REPLY_BYTES: usize = 1 << 20;
/// The longest path of a device.
const MOST_PATH_BYTES: usize = 4_096;
/// Extensions in one request.
pub const MOST_EXTENSIONS: usize = 1_000;

/// What the guard is to hold a service to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected {
    /// Its processes.
    pub group: ProcessGroup,
    /// The epoch that it runs under.
    pub epoch: Epoch,
    /// When to freeze it, unless an extension comes.
    pub freeze_at: BootTime,
    /// When to kill it, unless an extension comes. [`BootTime::NEVER`] for a service whose lease
    /// cannot end by itself: the only voter is its own node.
    pub deadline: BootTime,
}

/// A later deadline for one epoch of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Which service.
    pub service: ServiceId,
    /// The epoch that the deadline is for; for any other it counts for nothing.
    pub epoch: Epoch,
    /// When to freeze it.
    pub freeze_at: BootTime,
    /// When to kill it.
    pub deadline: BootTime,
    /// The engine holds the service frozen for a reason of its own: do not thaw it.
    pub keep_frozen: bool,
    /// It was found stopped, by whom nobody knows: let it run on if its time has not come. Only the
    /// guard may do so, for it looks at the clock as it does.
    pub resume: bool,
}

/// How a protected service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It runs.
    Running = 0,
    /// The guard has frozen it.
    Frozen = 1,
    /// Its deadline has passed: the guard kills it until it is gone.
    Killing = 2,
}

/// What an agent asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who asks: always the first word. Agents older than the newest are refused from then on.
    Hello(Incarnation),
    /// Hold this service to a deadline.
    Protect(Protected),
    /// Later deadlines.
    Extend(Vec<Extension>),
    /// The agent ended the service: hold it no more. What still runs stays held.
    Release(ServiceId),
    /// Tell everything that is held.
    List,
    /// Are you there?
    Ping,
    /// Feed this watchdog device from now on.
    Watch(PathBuf),
}

/// What the guard answers: to each request one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// Not done, and why.
    Refused(String),
    /// Done but for these services, which are not held under that epoch or are being killed.
    Extended(Vec<ServiceId>),
    /// Everything that is held.
    Held(Vec<(Protected, Phase)>),
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Another version.
    #[error(
        "version {0} is not spoken here, only {VERSION}: agent and guard differ, restart the agent"
    )]
    Version(u8),
    /// A kind that there is not.
    #[error("kind {0} is unknown")]
    Kind(u8),
    /// Too short, too long, or a value that there is not.
    #[error("the message is malformed")]
    Malformed,
    /// A frame over the limit.
    #[error("a frame of {0} bytes is over the limit")]
    TooLong(usize),
}

impl Request {
    /// The frame, length and all.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Hello(incarnation) => framed(1, |o| o.extend(incarnation.0.to_le_bytes())),
            Self::Protect(protected) => framed(2, |o| put_protected(o, protected)),
            Self::Extend(extensions) => framed(3, |o| {
                put_count(o, extensions.len());
                extensions.iter().for_each(|e| put_extension(o, e));
            }),
            Self::Release(service) => framed(4, |o| o.extend(service.as_bytes())),
            Self::List => framed(5, |_| ()),
            Self::Ping => framed(6, |_| ()),
            Self::Watch(device) => {
                framed(7, |o| o.extend(device.as_os_str().as_bytes().iter().take(MOST_PATH_BYTES)))
            }
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`WireError`], never a panic, whatever the bytes.
    pub fn from_payload(payload: &[u8]) -> Result<Self, WireError> {
        let (kind, mut body) = opened(payload)?;
        let request = match kind {
            1 => Self::Hello(Incarnation(body.u64()?)),
            2 => Self::Protect(body.protected()?),
            3 => Self::Extend(body.many(MOST_EXTENSIONS, Reader::extension)?),
            4 => Self::Release(body.service()?),
            5 => Self::List,
            6 => Self::Ping,
            7 => Self::Watch(body.path()?),
            other => return Err(WireError::Kind(other)),
        };
        body.end(request)
    }
}

impl Reply {
    /// The frame, length and all.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Done => framed(129, |_| ()),
            Self::Refused(why) => framed(130, |o| o.extend(why.bytes().take(4096))),
            Self::Extended(missed) => framed(131, |o| {
                put_count(o, missed.len());
                missed.iter().for_each(|s| o.extend(s.as_bytes()));
            }),
            Self::Held(held) => framed(132, |o| {
                put_count(o, held.len());
                for (protected, phase) in held {
                    put_protected(o, protected);
                    o.push(*phase as u8);
                }
            }),
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`WireError`], never a panic, whatever the bytes.
    pub fn from_payload(payload: &[u8]) -> Result<Self, WireError> {
        let (kind, mut body) = opened(payload)?;
        let reply = match kind {
            129 => Self::Done,
            130 => Self::Refused(String::from_utf8_lossy(body.rest()).into_owned()),
            131 => Self::Extended(body.many(MOST_EXTENSIONS, Reader::service)?),
            132 => Self::Held(body.many(usize::MAX, |r| Ok((r.protected()?, r.phase()?)))?),
            other => return Err(WireError::Kind(other)),
        };
        body.end(reply)
    }
}

/// The whole payload at the front of a buffer and how many bytes its frame takes; `None` while
/// bytes are missing.
///
/// # Errors
/// [`WireError::TooLong`], as soon as the length is there.
pub fn split_frame(buffer: &[u8], most: usize) -> Result<Option<(&[u8], usize)>, WireError> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > most {
        return Err(WireError::TooLong(length));
    }
    Ok(rest.get(..length).map(|payload| (payload, length + 4)))
}

fn framed(kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 0, VERSION, kind];
    body(&mut out);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_le_bytes());
    out
}

fn opened(payload: &[u8]) -> Result<(u8, Reader<'_>), WireError> {
    match payload {
        [VERSION, kind, body @ ..] => Ok((*kind, Reader(body))),
        [version, _, ..] => Err(WireError::Version(*version)),
        _ => Err(WireError::Malformed),
    }
}

fn nanos(at: BootTime) -> u64 {
    u64::try_from(at.since_boot().as_nanos()).unwrap_or(u64::MAX)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_epoch(out: &mut Vec<u8>, epoch: Epoch) {
    out.extend(epoch.generation.to_le_bytes());
    out.extend(epoch.counter.to_le_bytes());
}

pub(super) fn put_protected(out: &mut Vec<u8>, protected: &Protected) {
    let Protected { group, epoch, freeze_at, deadline } = protected;
    out.extend(group.service.as_bytes());
    out.extend(group.leader.to_le_bytes());
    out.extend(group.start_ticks.to_le_bytes());
    put_epoch(out, *epoch);
    out.extend(nanos(*freeze_at).to_le_bytes());
    out.extend(nanos(*deadline).to_le_bytes());
}

fn put_extension(out: &mut Vec<u8>, extension: &Extension) {
    out.extend(extension.service.as_bytes());
    put_epoch(out, extension.epoch);
    out.extend(nanos(extension.freeze_at).to_le_bytes());
    out.extend(nanos(extension.deadline).to_le_bytes());
    out.push(u8::from(extension.keep_frozen) | u8::from(extension.resume) << 1);
}

/// Takes values from the front.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn path(&mut self) -> Result<PathBuf, WireError> {
        let path = PathBuf::from(OsStr::from_bytes(self.rest()));
        let short = path.as_os_str().len() <= MOST_PATH_BYTES;
        if short && path.is_absolute() { Ok(path) } else { Err(WireError::Malformed) }
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    const fn rest(&mut self) -> &'a [u8] {
        let rest = self.0;
        self.0 = &[];
        rest
    }

    pub(super) fn end<T>(&self, value: T) -> Result<T, WireError> {
        if self.0.is_empty() { Ok(value) } else { Err(WireError::Malformed) }
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.take().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.take().map(u32::from_le_bytes)
    }

    fn instant(&mut self) -> Result<BootTime, WireError> {
        Ok(match self.u64()? {
            u64::MAX => BootTime::NEVER,
            nanos => BootTime::from_duration(Duration::from_nanos(nanos)),
        })
    }

    fn service(&mut self) -> Result<ServiceId, WireError> {
        self.take().map(ServiceId::from_bytes)
    }

    fn epoch(&mut self) -> Result<Epoch, WireError> {
        Ok(Epoch::new(self.u32()?, self.u64()?))
    }

    pub(super) fn protected(&mut self) -> Result<Protected, WireError> {
        let (service, leader, start_ticks) = (self.service()?, self.u32()?, self.u64()?);
        Ok(Protected {
            group: ProcessGroup { service, leader, start_ticks },
            epoch: self.epoch()?,
            freeze_at: self.instant()?,
            deadline: self.instant()?,
        })
    }

    fn extension(&mut self) -> Result<Extension, WireError> {
        let (service, epoch) = (self.service()?, self.epoch()?);
        let (freeze_at, deadline) = (self.instant()?, self.instant()?);
        let [flags] = self.take()?;
        if flags > 3 {
            return Err(WireError::Malformed);
        }
        let (keep_frozen, resume) = (flags & 1 != 0, flags & 2 != 0);
        Ok(Extension { service, epoch, freeze_at, deadline, keep_frozen, resume })
    }

    fn phase(&mut self) -> Result<Phase, WireError> {
        match self.take()? {
            [0] => Ok(Phase::Running),
            [1] => Ok(Phase::Frozen),
            [2] => Ok(Phase::Killing),
            _ => Err(WireError::Malformed),
        }
    }

    /// Nothing is reserved on the word of a count.
    pub(super) fn many<T>(
        &mut self,
        most: usize,
        mut one: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(WireError::Malformed);
        }
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(one(self)?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
