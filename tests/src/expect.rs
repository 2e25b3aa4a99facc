//! How does a test wait for what must become true, and prove what must never be?

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use imds_trace_replay_tests::expect_equal;
#[cfg(feature = "schema")]
pub use imds_trace_replay_tests::schema::expect_valid;

/// Asks `look` again and again until it has an answer; after `deadline` fails saying `what` was waited for.
///
/// This is the one place where tests poll with a short sleep: they wait for conditions, never for time to pass.
pub fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if started.elapsed() >= deadline {
            bail!("waited {:.1} s in vain for {what}", deadline.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes any line: this was built without the schemas.
#[cfg(not(feature = "schema"))]
pub fn expect_valid(_line: &serde_json::Value) -> Result<()> {
    Ok(())
}

/// Fails with `claim` unless it holds; `seen` is shown beside it.
pub fn expect_that(claim: &str, holds: bool, seen: impl std::fmt::Debug) -> Result<()> {
    if !holds {
        bail!("not so: {claim}; saw {seen:?}");
    }
    Ok(())
}

/// A secret is betrayed by this many of its characters in a row: a cut-off copy counts.
const TELLING: usize = 16;

/// Fails if any of `outputs` (name, bytes), or any file below any of `dirs`, holds 16 characters in a row of any
/// of `secrets`, as they are, in hex, or in base64 at any of its three alignments. The error does not repeat the secret.
pub fn assert_no_secret(outputs: &[(&str, &[u8])], dirs: &[&Path], secrets: &[String]) -> Result<()> {
    if secrets.is_empty() {
        bail!("no secrets were handed out, so finding none would prove nothing");
    }
    let search = Search::new(secrets);
    for (name, bytes) in outputs {
        search.through(name, bytes)?;
    }
    for dir in dirs {
        for file in files_below(dir)? {
            let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            search.through(&file.display().to_string(), &bytes)?;
        }
    }
    Ok(())
}

struct Search {
    windows: HashSet<[u8; TELLING]>,
    /// Which pairs of first bytes any window begins with: most places of a file are left at this.
    begins: Vec<bool>,
}

impl Search {
    fn new(secrets: &[String]) -> Search {
        let mut windows = HashSet::new();
        for secret in secrets {
            for spelling in spellings(secret.as_bytes()) {
                windows.extend(
                    spelling.windows(TELLING).map(|window| <[u8; TELLING]>::try_from(window).expect("its length")),
                );
            }
        }
        let mut begins = vec![false; 1 << 16];
        for window in &windows {
            begins[usize::from(window[0]) << 8 | usize::from(window[1])] = true;
        }
        Search { windows, begins }
    }

    fn through(&self, name: &str, bytes: &[u8]) -> Result<()> {
        for (at, window) in bytes.windows(TELLING).enumerate() {
            if self.begins[usize::from(window[0]) << 8 | usize::from(window[1])] && self.windows.contains(window) {
                bail!("{name} betrays a secret at byte {at}");
            }
        }
        Ok(())
    }
}

fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    for skipped in 0..3.min(secret.len()) {
        let whole = &secret[skipped..];
        // Only whole groups of three: their base64 does not depend on what follows.
        let encoded = base64(&whole[..whole.len() / 3 * 3], b"+/");
        all.push(encoded.into_bytes());
    }
    all
}

/// Base64 with padding; `last_two` are the letters for 62 and 63.
pub(crate) fn base64(bytes: &[u8], last_two: &[u8; 2]) -> String {
    let mut letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789".to_vec();
    letters.extend(last_two);
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            if place <= group.len() {
                text.push(char::from(letters[(bits >> (18 - 6 * place)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_usual_one() {
        assert_eq!(base64(b"Man", b"+/"), "TWFu");
        assert_eq!(base64(b"Ma", b"+/"), "TWE=");
        assert_eq!(base64(b"M", b"+/"), "TQ==");
    }

    #[test]
    fn a_secret_is_found_plain_in_hex_in_base64_and_cut_short() {
        let secret = "AQAEAxyzXYZ0123456789abcdefghijkLMNOPQRSTUVWXyz_-1234==".to_owned();
        let secrets = [secret.clone()];
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let shifted = base64(format!("xx{secret}").as_bytes(), b"+/");
        for text in [secret.clone(), hex, shifted, secret[3..20].to_owned()] {
            assert!(assert_no_secret(&[("it", text.as_bytes())], &[], &secrets).is_err(), "{text}");
        }
        assert!(assert_no_secret(&[("it", b"nothing to see here, move along please")], &[], &secrets).is_ok());
        assert!(assert_no_secret(&[("it", b"")], &[], &[]).is_err(), "no secrets is no proof");
    }
}
