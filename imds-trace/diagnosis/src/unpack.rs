//! What is in a compressed file? gzip and Zstandard, known by their first bytes, unpacked as they are read.
//!
//! Bounded: a file that unpacks to far more than any real one is not read to its end.

use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

/// What is read from.
pub type Input = Box<dyn Read + Send>;

/// How a file begins that gzip made (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// How one begins that Zstandard made (RFC 8878, section 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Or so, with 16 first bytes: a frame to be skipped stands in front (RFC 8878, section 3.1.2), as pzstd makes it.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Bytes that tell.
const MAGIC: usize = 4;
/// Up to so many bytes a file may unpack to anything: a gibibyte is read in seconds.
const ANY: u64 = 1 << 30;
/// Beyond that, to so many times its own bytes at most. Captures and recordings shrink to a tenth, rarely to a fiftieth.
const MOST: u64 = 200;

/// Gives the input as it is, or unpacked; and with what was it packed?
pub fn unpack(input: Input) -> io::Result<(Input, Option<&'static str>)> {
    let (magic, input) = peek(input, MAGIC)?;
    let is_gzip = magic.starts_with(&GZIP);
    if !is_gzip && !is_zstd(&magic) {
        return Ok((input, None));
    }
    let packed = Arc::new(AtomicU64::new(0));
    let counted = BufReader::new(Counted { input, count: packed.clone() });
    let unpacked: Input = match is_gzip {
        true => Box::new(MultiGzDecoder::new(counted)),
        false => Box::new(zstd::Decoder::with_buffer(counted)?),
    };
    let name = if is_gzip { "gzip" } else { "zstd" };
    Ok((Box::new(Bounded { unpacked, packed, count: 0 }), Some(name)))
}

fn is_zstd(magic: &[u8]) -> bool {
    let is_skippable = matches!(magic, [0x50..=0x5f, further @ ..] if *further == ZSTD_SKIPPABLE);
    is_skippable || *magic == ZSTD
}

/// The first bytes of an input, fewer if it has no more, and the whole input.
pub fn peek(mut input: Input, bytes: usize) -> io::Result<(Vec<u8>, Input)> {
    let mut first = Vec::new();
    match (&mut input).take(bytes as u64).read_to_end(&mut first) {
        // Compressed, and cut short in its first bytes: who unpacks says so once.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => input = Box::new(Ended),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let whole = Box::new(Cursor::new(first.clone()).chain(input));
    Ok((first, whole))
}

/// What ends where more must come.
struct Ended;

impl Read for Ended {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Counts what is read.
struct Counted {
    input: Input,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Ends in an error when it has become too much.
struct Bounded {
    unpacked: Input,
    packed: Arc<AtomicU64>,
    count: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.unpacked.read(buffer)?;
        self.count += read as u64;
        let most = ANY.max(self.packed.load(Ordering::Relaxed).saturating_mul(MOST));
        if self.count > most {
            return Err(io::Error::other(format!(
                "it unpacks to more than {MOST} times its size: unpack it first, if it is what it seems to be"
            )));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: Vec<u8>) -> (Vec<u8>, io::Result<usize>) {
        let (mut input, _) = unpack(Box::new(Cursor::new(bytes))).unwrap();
        let mut out = Vec::new();
        let end = input.read_to_end(&mut out);
        (out, end)
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let text = b"a capture".repeat(1000);
        let two = [gzip(&text), gzip(b"and more")].concat();
        for (bytes, expected) in [
            (text.clone(), text.clone()),
            (gzip(&text), text.clone()),
            // As `cat a.gz b.gz` makes it.
            (two, [&text[..], b"and more"].concat()),
            (zstd::encode_all(&text[..], 3).unwrap(), text.clone()),
            // As pzstd makes it: in front how long the frame is.
            (
                [b"\x50\x2a\x4d\x18\x04\0\0\0\x2a\0\0\0", &zstd::encode_all(&text[..], 3).unwrap()[..]].concat(),
                text.clone(),
            ),
            ([b"\x5f\x2a\x4d\x18\0\0\0\0", &zstd::encode_all(&text[..], 3).unwrap()[..]].concat(), text.clone()),
            (Vec::new(), Vec::new()),
        ] {
            assert_eq!(read(bytes).0, expected);
        }
    }

    #[test]
    fn what_is_cut_short_says_so() {
        let text: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        for whole in [gzip(&text), zstd::encode_all(&text[..], 3).unwrap()] {
            let (out, end) = read(whole[..whole.len() / 2].to_vec());
            assert!(text.starts_with(&out));
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..1100).for_each(|_| encoder.write_all(&zeros).unwrap());
        let (mut input, _) = unpack(Box::new(Cursor::new(encoder.finish().unwrap()))).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let error = std::iter::repeat_with(|| input.read(&mut buffer)).find_map(Result::err).unwrap();
        assert!(error.to_string().contains("200 times"), "{error}");
    }
}
