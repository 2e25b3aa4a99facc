//! Is there room for new connections in the table of tracked ones?

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Answer, Check, Status, Subject};

/// The check.
pub const CHECK: Check =
    Check { id: "conntrack", explain: "how full the table of tracked connections is", examine: |_| vec![examine()] };

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

fn examine() -> Answer {
    let read = |path: &str| match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().parse::<u64>().ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    match (read(COUNT), read(MAX)) {
        (Ok(Some(count)), Ok(Some(max))) => judge(count, max, is_set_here()),
        (Ok(_), Ok(_)) => Answer::new(
            Subject::Host,
            Status::Ok,
            "nf_conntrack tracks no connections here, so its table cannot be full.",
        ),
        (Err(error), _) | (_, Err(error)) => Answer::new(
            Subject::Host,
            Status::Unknown,
            format!("How many connections are tracked could not be read: {error}."),
        ),
    }
}

/// One maximum holds for the whole machine, and it can be set only in the network namespace that the machine began with
/// (`nf_conntrack_standalone_init_sysctl` takes away the right to write elsewhere).
fn is_set_here() -> bool {
    const WRITE: u32 = 0o200;
    fs::metadata(MAX).is_ok_and(|data| data.permissions().mode() & WRITE != 0)
}

fn judge(count: u64, max: u64, is_set_here: bool) -> Answer {
    /// Percent from which it is a warning, and from which new connections are as good as lost.
    const FULL: (u64, u64) = (80, 95);
    // No maximum is no limit.
    let percent = count.saturating_mul(100).checked_div(max).unwrap_or(0);
    let status = match percent {
        percent if percent >= FULL.1 => Status::Broken,
        percent if percent > FULL.0 => Status::Warning,
        _ => Status::Ok,
    };
    let then = if status == Status::Ok { "" } else { ": when it is full, new connections are dropped" };
    let answer =
        Answer::new(Subject::Host, status, format!("{count} of {max} connections are tracked ({percent} %){then}."));
    let answer = answer.look(format!("cat {COUNT} {MAX}"));
    // Where it cannot be set, a command would only fail.
    if status == Status::Ok || !is_set_here {
        answer
    } else {
        answer.mend(format!("sysctl -w net/netfilter/nf_conntrack_max={}", max.saturating_mul(2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_full_before_the_last_place_is_taken() {
        assert_eq!(judge(80, 100, true).status, Status::Ok);
        assert_eq!(judge(81, 100, true).status, Status::Warning);
        assert_eq!(judge(95, 100, true).status, Status::Broken);
        assert_eq!(judge(7, 0, true).status, Status::Ok, "no limit");
    }

    #[test]
    fn a_command_is_offered_where_it_would_work() {
        assert_eq!(judge(95, 100, true).mend.as_deref(), Some("sysctl -w net/netfilter/nf_conntrack_max=200"));
        assert_eq!(judge(95, 100, false).mend, None);
        assert_eq!(judge(80, 100, true).mend, None);
    }
}
