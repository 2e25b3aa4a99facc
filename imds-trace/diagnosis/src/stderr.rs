//! How is something said on stderr? A sentence a line; that nobody can read it is no reason to end, as it would be with `eprintln!`.

use std::fmt::Arguments;
use std::io::Write;

/// Says a line on stderr, as `eprintln!` does, and goes on if that cannot be written.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::stderr::say(format_args!($($arg)*)) };
}

/// What [`crate::say!`] does.
pub fn say(line: Arguments<'_>) {
    // In one piece, so lines of several threads do not mix.
    let line = format!("{line}\n");
    crate::progress::aside(|| {
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    });
}
