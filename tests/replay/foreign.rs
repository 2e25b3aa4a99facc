//! Do bytes from others do no harm? Each parser's property over the files of the tests, and over what chance makes of them.
//!
//! `fuzz/` looks longer and where this does not come, but needs nightly Rust; this is what runs wherever the tests run.

use std::time::{Duration, Instant};

use anyhow::Result;
use imds_trace_replay_tests::foreign::{PROPERTIES, Property};
use imds_trace_replay_tests::kept;
use libtest_mimic::Trial;

/// So long each property is tried, once all seeds were.
const TIME: Duration = Duration::from_secs(2);

/// One for each parser.
pub fn trials() -> Vec<Trial> {
    let trial = |property: &'static Property| {
        Trial::test(format!("foreign::{}_does_no_harm", property.name), move || Ok(holds(property)?))
    };
    PROPERTIES.iter().map(trial).collect()
}

fn holds(property: &Property) -> Result<()> {
    let seeds: Vec<Vec<u8>> = kept::seeds(property.name)?.into_iter().map(|(_, seed)| seed).collect();
    let mut random = Random(0x0f0e_1617);
    for seed in &seeds {
        (property.holds)(&seed[..seed.len().min(property.most)]);
    }
    let started = Instant::now();
    while started.elapsed() < TIME {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        bytes.truncate(property.most);
        for _ in 0..=random.below(8) {
            mutate(&mut bytes, &mut random, &seeds);
        }
        bytes.truncate(property.most);
        (property.holds)(&bytes);
    }
    Ok(())
}

/// One change: a byte, a bit, a piece cut out, doubled, or taken from another seed, or the end cut off.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'/'];
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = random.below(bytes.len());
    let end = at + random.below(bytes.len() - at + 1).min(64);
    match random.below(6) {
        0 => bytes[at] = TELLING[random.below(TELLING.len())],
        1 => bytes[at] ^= 1 << random.below(8),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        4 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            bytes.splice(at..end, other[from..other.len().min(from + 64)].iter().copied());
        }
        _ => bytes.truncate(at),
    }
}

/// A generator of our own, so that the same bytes come again: xorshift, Marsaglia 2003.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }
}
