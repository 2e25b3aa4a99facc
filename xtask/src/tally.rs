//! How many tests was that?

use std::ops::AddAssign;

/// Counts of tests, added up over test programs and parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    /// Marked `#[ignore]`, so not run.
    pub ignored: usize,
}

impl Tally {
    /// The counts in the line that libtest (and libtest-mimic) ends with, if this is that line:
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    pub fn from_line(line: &str) -> Option<Self> {
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |name: &str| {
            let words = counts.split(';').find_map(|part| part.trim().strip_suffix(name))?;
            words.trim().parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }

    pub fn ran(self) -> usize {
        self.passed + self.failed
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { passed, failed, ignored } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_taken_apart() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 5 filtered out; finished in 1.20s";
        assert_eq!(Tally::from_line(line), Some(Tally { passed: 12, failed: 2, ignored: 1 }));
    }

    #[test]
    fn a_test_that_talks_about_results_is_not_counted() {
        assert_eq!(Tally::from_line("test result_line ... ok"), None);
        assert_eq!(Tally::from_line("the test result: ok. 1 passed; 0 failed; 0 ignored"), None);
    }

    #[test]
    fn several_programs_add_up() {
        let output = "running 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n\n\
                      test result: FAILED. 2 passed; 3 failed; 4 ignored; 0 measured\n";
        let mut sum = Tally::default();
        output.lines().filter_map(Tally::from_line).for_each(|tally| sum += tally);
        assert_eq!(sum, Tally { passed: 3, failed: 3, ignored: 4 });
        assert_eq!(sum.ran(), 6);
    }
}
