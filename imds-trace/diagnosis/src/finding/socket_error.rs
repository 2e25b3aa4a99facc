//! Was the client's socket told that it was refused, whether or not the packet that said so was seen?

use std::time::Duration;

use super::Case;

/// Errors that a socket is told when it is refused (`errno.h`): EACCES, ENETUNREACH, ECONNRESET, ECONNREFUSED, EHOSTUNREACH. A
/// time-out (110) is none: it is what a socket tells itself.
const REFUSED: [(u16, &str); 5] = [
    (13, "permission denied"),
    (101, "network unreachable"),
    (104, "connection reset"),
    (111, "connection refused"),
    (113, "host unreachable"),
];

/// No client gives up its own connect so soon.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Was the client's socket told no, by a packet that passed no hook?
pub(super) fn is_refused(case: &Case<'_>) -> bool {
    error_of(case).is_some()
}

/// In words, the error of the client's socket.
pub(super) fn error_of(case: &Case<'_>) -> Option<&'static str> {
    match case.who.error {
        Some(error) => REFUSED.iter().find(|(known, _)| error == *known).map(|(_, words)| *words),
        // What is rejected while it is sent comes back as the result of connect() itself.
        None => case.who.failed_after.filter(|after| *after < AT_ONCE).map(|_| "an error at once"),
    }
}
