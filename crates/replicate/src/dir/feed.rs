//! Reads the frames of an incoming stream: first those kept from an earlier attempt, then those
//! that come, which are kept on the way. No length is believed before it is checked.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flocker_base::VolumeId;

use super::chunk::{self, FRAME_HEADER, FrameHeader};
use super::crash;
use super::pack::{MAGIC, Slot};
use crate::backend::{BackendError, Result};

/// One stream on its way to disk.
pub(crate) struct Feed<'a> {
    volume: VolumeId,
    path: PathBuf,
    kept: io::Take<BufReader<File>>,
    kept_len: u64,
    input: &'a mut dyn Read,
    out: BufWriter<File>,
    /// Bytes of the stream read so far.
    at: u64,
}

impl<'a> Feed<'a> {
    /// Goes on with the stream of which the file at `path` holds this many bytes.
    pub(crate) fn open(
        volume: VolumeId,
        path: &Path,
        kept_len: u64,
        input: &'a mut dyn Read,
    ) -> Result<Self> {
        let io = |e| BackendError::io("open", path, e);
        let mut kept = File::open(path).map_err(io)?;
        kept.seek(SeekFrom::Start(MAGIC.len() as u64)).map_err(io)?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        Ok(Self {
            volume,
            path: path.to_owned(),
            kept: BufReader::new(kept).take(kept_len),
            kept_len,
            input,
            out: BufWriter::with_capacity(256 * 1024, file),
            at: 0,
        })
    }

    /// Reads every frame of a stream of this length, and that nothing follows.
    pub(crate) fn frames(&mut self, length: u64) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        while self.at < length {
            let start = self.at;
            match self.frame(length)? {
                Ok(slot) => slots.push(slot),
                Err(_) if self.at <= self.kept_len => return Err(self.forget_from(start)),
                Err(why) => {
                    return Err(BackendError::BadStream {
                        volume: self.volume,
                        why: why.to_owned(),
                    });
                }
            }
        }
        let mut beyond = [0];
        match self.input.read(&mut beyond) {
            Ok(0) => Ok(slots),
            Ok(_) => Err(BackendError::BadStream {
                volume: self.volume,
                why: "it goes on beyond its length".to_owned(),
            }),
            Err(source) => Err(self.cut(source)),
        }
    }

    /// Writes out what is kept so far.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| BackendError::io("write", &self.path, e))
    }

    fn frame(&mut self, length: u64) -> Result<std::result::Result<Slot, &'static str>> {
        let mut header = [0; FRAME_HEADER];
        let left = length - self.at;
        if left < FRAME_HEADER as u64 {
            return Ok(Err("it ends within a frame"));
        }
        self.fill(&mut header)?;
        let header = match FrameHeader::decode(&header) {
            Ok(header) => header,
            Err(why) => return Ok(Err(why)),
        };
        if header.frame_len() > left {
            return Ok(Err("a frame goes on beyond the stream's end"));
        }
        let offset = MAGIC.len() as u64 + self.at;
        let mut payload = vec![0; header.stored as usize];
        self.fill(&mut payload)?;
        Ok(chunk::open(&header, payload).map(|_content| Slot { offset, header }))
    }

    /// Reads exactly this much, from what is kept and then from the input.
    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let read = if self.at < self.kept_len {
                self.kept.read(buffer).map_err(|e| BackendError::io("read", &self.path, e))?
            } else {
                let read = self.input.read(buffer).map_err(|source| self.cut(source))?;
                crash::point("write a stream")
                    .and_then(|()| self.out.write_all(&buffer[..read]))
                    .map_err(|e| BackendError::io("write", &self.path, e))?;
                read
            };
            if read == 0 {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "it ended too early");
                return Err(self.cut(source));
            }
            self.at += read as u64;
            buffer = &mut buffer[read..];
        }
        Ok(())
    }

    fn cut(&self, source: io::Error) -> BackendError {
        BackendError::Cut { volume: self.volume, at: self.at, source }
    }

    /// Drops what is kept from this byte on: a crash left it unwritten, so it has to come again.
    fn forget_from(&mut self, start: u64) -> BackendError {
        let keep = MAGIC.len() as u64 + start;
        if let Err(error) = self.out.get_ref().set_len(keep) {
            return BackendError::io("shorten", &self.path, error);
        }
        let source = io::Error::new(
            io::ErrorKind::InvalidData,
            "what was kept of it is damaged from here on and has to come again",
        );
        BackendError::Cut { volume: self.volume, at: start, source }
    }
}
