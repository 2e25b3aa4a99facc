//! Why did tests fail? What they said, once more behind everything else, where a log that was cut still has it.

/// What the lab's tests write before one that failed and then passed.
const FLAKY: &str = "flaky: ";
/// Lines of one test that are shown again: its message stands in the first of them.
const LINES: usize = 12;
/// Characters of a line that are shown again.
const WIDTH: usize = 600;

/// Collects reasons from what test programs print.
#[derive(Debug, Default)]
pub struct Reasons {
    said: Vec<String>,
    /// Between the two lines `failures:` of libtest: how many lines of this test there were.
    reading: Option<usize>,
}

impl Reasons {
    /// Takes a line of a test program's stdout.
    pub fn take(&mut self, line: &str) {
        if line.starts_with(FLAKY) {
            return self.keep(line);
        }
        match (line, self.reading) {
            // The second begins the list of names.
            ("failures:", Some(_)) => self.reading = None,
            ("failures:", None) => self.reading = Some(0),
            (_, Some(_)) if line.starts_with("test result: ") => self.reading = None,
            (line, Some(_)) if line.starts_with("---- ") => {
                self.reading = Some(0);
                self.keep(line);
            }
            ("", _) | (_, None) => {}
            (line, Some(count)) => {
                self.reading = Some(count + 1);
                if count < LINES {
                    self.keep(line);
                }
            }
        }
    }

    fn keep(&mut self, line: &str) {
        self.said.push(line.chars().take(WIDTH).collect());
    }

    /// What there is to show, a line each.
    pub fn lines(&self) -> &[String] {
        &self.said
    }

    /// How many tests failed and then passed.
    pub fn flaky(&self) -> usize {
        self.said.iter().filter(|line| line.starts_with(FLAKY)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(output: &str) -> Reasons {
        let mut reasons = Reasons::default();
        output.lines().for_each(|line| reasons.take(line));
        reasons
    }

    #[test]
    fn what_a_failed_test_said_is_kept_and_the_list_of_names_is_not() {
        let output = "running 2 tests\ntest a ... FAILED\ntest b ... ok\n\nfailures:\n\n---- a stdout ----\npanicked at x:\n\
                      left 1\n\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\nafterwards\n";
        assert_eq!(reasons(output).lines(), ["---- a stdout ----", "panicked at x:", "left 1"]);
    }

    #[test]
    fn the_next_program_begins_anew() {
        let output =
            "failures:\n\n---- a ----\nwhy\n\ntest result: FAILED. 0 passed; 1 failed\nrunning 1 test\nnoise\n";
        assert_eq!(reasons(output).lines(), ["---- a ----", "why"]);
    }

    #[test]
    fn a_long_message_is_cut() {
        let output = format!("failures:\n---- a ----\n{}", "line\n".repeat(100));
        assert_eq!(reasons(&output).lines().len(), 1 + LINES);
    }

    #[test]
    fn a_test_that_failed_and_then_passed_is_told() {
        let reasons =
            reasons("test a ... \nflaky: trace::a: expected 1, got 2\nok\ntest result: ok. 1 passed; 0 failed\n");
        assert_eq!(reasons.lines(), ["flaky: trace::a: expected 1, got 2"]);
        assert_eq!(reasons.flaky(), 1);
    }
}
