//! Are these lines the ones that were written, all of them, once, in this order? A chain of SHA-256 over the lines of a file.
//!
//! A seal is a line of its own whose last 64 characters before `"}` are a digest in hexadecimal: SHA-256 of the digest of the seal
//! before it (as text; none before the first), of the lines between the two, and of the seal's own line up to this digest. So nothing of a closed file can be changed, taken out, doubled or moved without a seal that no longer fits; and what
//! stands behind the next seal that fits is good again.
//!
//! It is no signature: whoever rewrites a file and every seal in it, and all files after it, is not noticed. Against that, the
//! digest that is told at the end must be kept elsewhere.

use sha2::{Digest, Sha256};

/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;
/// What stands before the digest in a seal, and after it.
const BEFORE: &str = ",\"digest\":\"";
const AFTER: &[u8] = b"\"}\n";

/// SHA-256 of some bytes, in hexadecimal.
pub fn hex(digest: &[u8]) -> String {
    const DIGIT: &[u8; 16] = b"0123456789abcdef";
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGIT[usize::from(digit)])).collect()
}

/// What has been seen since the last seal.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    hash: Sha256,
}

impl Chain {
    /// Takes in a line, or a part of one.
    pub fn absorb(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// The seal of everything absorbed so far: a line that begins with `body`, an object without its closing brace. The chain goes on
    /// from it.
    pub fn seal(&mut self, body: &str) -> Vec<u8> {
        let mut line = format!("{body}{BEFORE}").into_bytes();
        self.absorb(&line);
        let digest = hex(&std::mem::take(&mut self.hash).finalize());
        line.extend_from_slice(digest.as_bytes());
        line.extend_from_slice(AFTER);
        self.absorb(digest.as_bytes());
        line
    }

    /// Does a seal fit what was absorbed so far? The chain goes on from what it says, whether it fits or not.
    pub fn fits(&mut self, line: &[u8]) -> bool {
        let Some((body, said)) = parts(line) else { return false };
        self.absorb(body);
        let digest = hex(&std::mem::take(&mut self.hash).finalize());
        self.absorb(said);
        digest.as_bytes() == said
    }
}

/// A seal up to its digest, and the digest.
fn parts(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_suffix(AFTER)?;
    let (body, digest) = line.split_at_checked(line.len().checked_sub(DIGITS)?)?;
    body.ends_with(BEFORE.as_bytes()).then_some((body, digest))
}

/// Is this line a seal, or something that may have been one?
pub fn is_one(line: &[u8]) -> bool {
    (line.starts_with(b"{\"seal\":") || line.starts_with(b"{\"end\":")) && parts(line).is_some()
}

/// The JSON of a seal without its digest.
pub fn body(line: &[u8]) -> Option<Vec<u8>> {
    let (body, _) = parts(line)?;
    Some([body.strip_suffix(BEFORE.as_bytes())?, b"}"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_sha256sum_prints() {
        let empty = hex(&Sha256::new().finalize());
        assert_eq!(empty, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn a_seal_fits_what_it_was_made_for_and_nothing_else() {
        let mut writer = Chain::default();
        writer.absorb(b"one\n");
        let first = writer.seal("{\"seal\":{\"inputs\":1}");
        writer.absorb(b"two\n");
        let second = writer.seal("{\"seal\":{\"inputs\":2}");
        let check = |lines: &[&[u8]]| -> Vec<bool> {
            let mut reader = Chain::default();
            let mut fits = Vec::new();
            for line in lines {
                match is_one(line) {
                    true => fits.push(reader.fits(line)),
                    false => reader.absorb(line),
                }
            }
            fits
        };
        assert_eq!(check(&[b"one\n", &first, b"two\n", &second]), [true, true]);
        let changed = check(&[b"ane\n", &first, b"two\n", &second]);
        assert_eq!(changed, [false, true], "what stands behind the next seal is good again");
        assert!(!check(&[b"one\n", &first, &first])[1], "a seal stands for itself only once");
    }
}
