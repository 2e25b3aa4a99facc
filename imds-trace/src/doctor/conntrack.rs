//! Is there room for new connections in the table of tracked ones?

use std::fs;

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
        (Ok(Some(count)), Ok(Some(max))) => judge(count, max),
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

fn judge(count: u64, max: u64) -> Answer {
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
    if status == Status::Ok {
        answer
    } else {
        answer.mend(format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_full_before_the_last_place_is_taken() {
        assert_eq!(judge(80, 100).status, Status::Ok);
        assert_eq!(judge(81, 100).status, Status::Warning);
        assert_eq!(judge(95, 100).status, Status::Broken);
        assert_eq!(judge(7, 0).status, Status::Ok, "no limit");
    }
}
