//! How is it shown how far a long replay has come? A bar on stderr where that is a terminal, nothing elsewhere.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diagnosis::progress::{self, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is over sooner needs no bar.
const LONG: Duration = Duration::from_millis(500);
/// Where it is known how much there is.
const KNOWN: &str = "reading [{bar:30}] {percent} % of {binary_total_bytes}, {eta} left";
/// Where it is not, in a pipe.
const UNKNOWN: &str = "reading {spinner} {binary_bytes}";
/// Filled, on its way, empty: what every terminal has.
const CHARACTERS: &str = "=> ";

/// Has replays shown, if somebody looks at stderr.
pub fn show() {
    let can_move = std::env::var_os("TERM").is_some_and(|name| name != "dumb" && !name.is_empty());
    if can_move && io::stderr().is_terminal() {
        progress::show(Box::new(Bar { bar: ProgressBar::hidden(), is_drawn: AtomicBool::new(false) }));
    }
}

struct Bar {
    bar: ProgressBar,
    is_drawn: AtomicBool,
}

impl Progress for Bar {
    fn begin(&self, total: Option<u64>) {
        let template = if total.is_some() { KNOWN } else { UNKNOWN };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars(CHARACTERS).tick_chars("|/-\\ "));
        }
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.reset_elapsed();
    }

    fn advance(&self, bytes: u64) {
        if !self.is_drawn.load(Ordering::Relaxed) && self.bar.elapsed() >= LONG {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.is_drawn.store(true, Ordering::Relaxed);
        }
        self.bar.inc(bytes);
    }

    fn aside(&self, write: &mut dyn FnMut()) {
        self.bar.suspend(write);
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
