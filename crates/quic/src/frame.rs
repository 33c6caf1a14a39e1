//! Frames: a length (u32, little-endian) and that many bytes. The length is checked before
//! anything is kept, and memory grows with what arrives, never with what is claimed.

use std::io;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most bytes set aside ahead of their arrival.
const STEP: usize = 64 * 1024;
/// A payload up to this size goes out in one write with its length.
const SMALL: usize = 16 * 1024;
const LENGTH: usize = size_of::<u32>();

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is larger than allowed here.
    #[error("a frame of {length} bytes, where {max} are allowed")]
    TooLarge {
        /// The length, as claimed or as given.
        length: usize,
        /// The largest allowed.
        max: usize,
    },
    /// The stream ended inside the frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Io(#[source] io::Error),
    /// The bytes are not the value expected, or the value has no encoding.
    #[error("not the message expected: {0}")]
    Codec(#[source] postcard::Error),
    /// Bytes are left over after the value.
    #[error("not the message expected: {0} bytes too many")]
    Trailing(usize),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

/// Reads one frame of at most `max` bytes. Not cancel safe: the bytes read so far are lost.
///
/// # Errors
/// [`FrameError`]; the stream can't be used for frames after one.
pub async fn read_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
    max: usize,
) -> Result<Bytes, FrameError> {
    let length = usize::try_from(reader.read_u32_le().await?).unwrap_or(usize::MAX);
    if length > max {
        return Err(FrameError::TooLarge { length, max });
    }
    let mut payload = BytesMut::with_capacity(length.min(STEP));
    let mut limited = reader.take(length as u64);
    while payload.len() < length {
        let step = (length - payload.len()).min(STEP);
        payload.reserve(step);
        if limited.read_buf(&mut payload).await? == 0 {
            return Err(FrameError::Truncated);
        }
    }
    Ok(payload.freeze())
}

/// Writes one frame. It does not finish the stream. Not cancel safe: half a frame may be out.
///
/// # Errors
/// [`FrameError::TooLarge`] beyond 4 GiB, or [`FrameError::Io`].
pub async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    payload: &[u8],
) -> Result<(), FrameError> {
    write_prefixed(writer, &[], payload).await
}

/// Writes one frame with these bytes before its length, in one write where it is small.
///
/// # Errors
/// As [`write_frame`].
pub async fn write_prefixed<W: AsyncWrite + Unpin>(
    writer: &mut W,
    prefix: &[u8],
    payload: &[u8],
) -> Result<(), FrameError> {
    let length = u32::try_from(payload.len()).map_err(|_too_large| FrameError::TooLarge {
        length: payload.len(),
        max: u32::MAX as usize,
    })?;
    let small = payload.len() <= SMALL;
    let mut head =
        Vec::with_capacity(prefix.len() + LENGTH + if small { payload.len() } else { 0 });
    head.extend_from_slice(prefix);
    head.extend_from_slice(&length.to_le_bytes());
    if small {
        head.extend_from_slice(payload);
        writer.write_all(&head).await?;
    } else {
        writer.write_all(&head).await?;
        writer.write_all(payload).await?;
    }
    Ok(())
}

/// The postcard encoding of a value.
///
/// # Errors
/// [`FrameError::Codec`] if the value has none.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    postcard::to_stdvec(value).map_err(FrameError::Codec)
}

/// The value that these bytes, all of them, encode.
///
/// # Errors
/// [`FrameError::Codec`] or [`FrameError::Trailing`].
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    let (value, rest) = postcard::take_from_bytes(payload).map_err(FrameError::Codec)?;
    if rest.is_empty() { Ok(value) } else { Err(FrameError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(future)
    }

    #[test]
    fn the_bytes_are_these() {
        let mut out = Vec::new();
        run(write_prefixed(&mut out, &[9], b"abc")).expect("written");
        assert_eq!(out, [9, 3, 0, 0, 0, b'a', b'b', b'c']);
    }

    #[test]
    fn a_lying_length_costs_nothing() {
        let claimed = u32::MAX.to_le_bytes();
        let error = run(read_frame(&mut &claimed[..], 1024)).expect_err("refused");
        assert!(matches!(error, FrameError::TooLarge { max: 1024, .. }));
        let claimed = (1_u32 << 30).to_le_bytes();
        let error = run(read_frame(&mut &claimed[..], usize::MAX)).expect_err("refused");
        assert!(matches!(error, FrameError::Truncated), "and 1 GiB was not set aside for it");
    }

    #[test]
    fn a_value_with_bytes_behind_it_is_refused() {
        let mut bytes = encode(&(7_u32, "x".to_owned())).expect("encodes");
        assert_eq!(decode::<(u32, String)>(&bytes).expect("decodes"), (7, "x".to_owned()));
        bytes.push(0);
        assert!(matches!(decode::<(u32, String)>(&bytes), Err(FrameError::Trailing(1))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(fill in any::<u8>(), length in 0..200_000_usize) {
            let payload = vec![fill; length];
            let mut out = Vec::new();
            run(write_frame(&mut out, &payload)).expect("written");
            let mut input = &out[..];
            let read = run(read_frame(&mut input, payload.len())).expect("read");
            prop_assert_eq!(&read[..], &payload[..]);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn hostile_bytes_end_in_an_error_or_a_bounded_frame(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok(frame) = run(read_frame(&mut &bytes[..], 100)) {
                prop_assert!(frame.len() <= 100);
            }
        }
    }
}
