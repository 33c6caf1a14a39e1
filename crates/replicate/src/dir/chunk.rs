//! Chunks: their hash, and the frame in which one is stored and sent alike.
//!
//! A frame is never believed: its lengths are checked before anything is allocated, and its
//! content against its hash before anything is done with it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Smallest chunk that content is cut into, the end of a file apart.
pub(crate) const DATA_MIN: usize = 8 * 1024;
/// Aimed-at size of a chunk of content.
pub(crate) const DATA_AVERAGE: usize = 32 * 1024;
/// Largest chunk of content.
pub(crate) const DATA_MAX: usize = 128 * 1024;
/// Largest chunk of any kind: an index or a page of entries may be this large.
pub(crate) const CHUNK_MAX: usize = 8 * 1024 * 1024;
/// Length of a frame before its payload.
pub(crate) const FRAME_HEADER: usize = 32 + 1 + 4 + 4;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// Fast enough to keep up with a disk; what is not worth it is stored as it is.
const LEVEL: i32 = 1;

/// The BLAKE3 hash of a chunk's content: its only name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ChunkHash(pub(crate) [u8; 32]);

impl ChunkHash {
    pub(crate) fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// What precedes a chunk's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) hash: ChunkHash,
    pub(crate) form: u8,
    /// Length of the content.
    pub(crate) raw: u32,
    /// Length of the payload.
    pub(crate) stored: u32,
}

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..32].copy_from_slice(&self.hash.0);
        bytes[32] = self.form;
        bytes[33..37].copy_from_slice(&self.raw.to_le_bytes());
        bytes[37..].copy_from_slice(&self.stored.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER]) -> Result<Self, &'static str> {
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[..32]);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let header =
            Self { hash: ChunkHash(hash), form: bytes[32], raw: word(33), stored: word(37) };
        if header.raw as usize > CHUNK_MAX {
            return Err("a chunk is larger than the limit");
        }
        match header.form {
            RAW if header.stored == header.raw => Ok(header),
            ZSTD if header.stored < header.raw => Ok(header),
            RAW | ZSTD => Err("a chunk's lengths contradict each other"),
            _ => Err("a chunk is stored in an unknown form"),
        }
    }

    /// Length of the frame, header and payload.
    pub(crate) const fn frame_len(&self) -> u64 {
        FRAME_HEADER as u64 + self.stored as u64
    }
}

/// The chunk's content out of its frame, checked against its hash.
pub(crate) fn open(header: &FrameHeader, payload: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    let content = if header.form == ZSTD {
        zstd::bulk::decompress(&payload, header.raw as usize)
            .map_err(|_cause| "a chunk does not decompress to its length")?
    } else {
        payload
    };
    if content.len() != header.raw as usize {
        return Err("a chunk does not have its length");
    }
    if ChunkHash::of(&content) != header.hash {
        return Err("a chunk does not match its hash");
    }
    Ok(content)
}

/// Compresses chunks that are worth it.
pub(crate) struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self { zstd: zstd::bulk::Compressor::new(LEVEL).ok() }
    }

    /// The frame of this content; `content` must not be longer than [`CHUNK_MAX`].
    pub(crate) fn pack(&mut self, hash: ChunkHash, content: &[u8]) -> (FrameHeader, Vec<u8>) {
        let raw = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let packed = self.zstd.as_mut().and_then(|zstd| zstd.compress(content).ok());
        match packed {
            // An eighth is worth the reader's time.
            Some(packed) if packed.len() < content.len() - content.len() / 8 => {
                let stored = u32::try_from(packed.len()).unwrap_or(u32::MAX);
                (FrameHeader { hash, form: ZSTD, raw, stored }, packed)
            }
            _ => (FrameHeader { hash, form: RAW, raw, stored: raw }, content.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_packed_or_not() {
        for content in [b"".to_vec(), b"x".to_vec(), vec![7; 100_000]] {
            let (header, payload) = Packer::new().pack(ChunkHash::of(&content), &content);
            assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
            assert_eq!(header.form == ZSTD, content.len() > 1000);
            assert_eq!(open(&header, payload), Ok(content));
        }
    }

    #[test]
    fn lies_about_lengths_and_content_are_refused() {
        let content = vec![7; 100_000];
        let (good, payload) = Packer::new().pack(ChunkHash::of(&content), &content);
        let bomb = FrameHeader { raw: 1000, ..good };
        assert!(open(&bomb, payload.clone()).is_err());
        assert!(open(&FrameHeader { raw: 200_000, ..good }, payload.clone()).is_err());
        let wrong = FrameHeader { hash: ChunkHash::of(b"else"), ..good };
        assert!(open(&wrong, payload).is_err());
        let huge = FrameHeader { raw: u32::MAX, ..good };
        assert!(FrameHeader::decode(&huge.encode()).is_err());
        assert!(FrameHeader::decode(&FrameHeader { form: 9, ..good }.encode()).is_err());
        assert!(FrameHeader::decode(&FrameHeader { form: RAW, ..good }.encode()).is_err());
    }

    #[test]
    fn a_frame_header_keeps_its_bytes() {
        let header = FrameHeader { hash: ChunkHash([0xab; 32]), form: 1, raw: 258, stored: 3 };
        let mut golden = vec![0xab; 32];
        golden.extend([1, 2, 1, 0, 0, 3, 0, 0, 0]);
        assert_eq!(header.encode().to_vec(), golden);
    }
}
