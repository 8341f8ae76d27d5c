//! Decompression of files of the host: kernels, kernel modules, root file systems.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::num::NonZeroUsize;

use flate2::read::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;
use ruzstd::decoding::StreamingDecoder;
use xz4rust::{DICT_SIZE_PROFILE_3, XzDecoder, XzReader};

/// The most memory for the data that a decoder refers to. `zstd -22 --ultra` and `xz -9` need this or less.
const MAX_WINDOW: usize = 128 << 20;
/// The size of the reads of compressed data.
const BUFFER: NonZeroUsize = NonZeroUsize::new(64 << 10).unwrap();

/// A compression format, detected by its magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Xz,
    Zstd,
    Lz4,
}

impl Compression {
    /// The format of data that begins with `start`.
    pub fn detect(start: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Compression); 5] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x04\x22\x4d\x18", Compression::Lz4),
            (b"\x02\x21\x4c\x18", Compression::Lz4), // legacy frame
        ];
        MAGIC.into_iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, compression)| compression)
    }

    /// A reader of the content of `source`, which is compressed in this format.
    ///
    /// # Errors
    ///
    /// `source` cannot be read, or its header is invalid.
    pub fn reader(self, source: impl Read + 'static) -> io::Result<Box<dyn Read>> {
        let buffered = |source| BufReader::with_capacity(BUFFER.get(), source);
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(buffered(source))),
            Self::Lz4 => Box::new(FrameDecoder::new(buffered(source))),
            Self::Zstd => {
                let decoder = StreamingDecoder::new_with_max_window_size(buffered(source), MAX_WINDOW as u64);
                Box::new(decoder.map_err(io::Error::other)?)
            }
            Self::Xz => {
                let decoder = XzDecoder::in_heap_with_alloc_dict_size(DICT_SIZE_PROFILE_3, MAX_WINDOW);
                Box::new(XzReader::new_with_buffer_size_and_decoder(source, BUFFER, decoder))
            }
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        })
    }
}
