//! Has EC2 dropped packets because too many went to its link-local services?

use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use crate::ethtool::{self, LINK_LOCAL_EXCEEDED};

/// The check.
pub const CHECK: Check =
    Check { id: "ena", explain: "whether EC2 dropped packets over the link-local allowance (1,024 a second)", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    let uplinks = sight.uplinks();
    uplinks
        .into_iter()
        .filter(|name| name != "lo")
        .map(|name| judge(&name, ethtool::counter(&name, LINK_LOCAL_EXCEEDED)))
        .collect()
}

fn judge(name: &str, counter: Result<Option<u64>, ethtool::Error>) -> Answer {
    let answer = |status, summary: String| {
        Answer::new(Subject::Interface(name.to_owned()), status, summary)
            .look(format!("ethtool -S {} | grep allowance", diagnosis::printable::shell_word(name)))
    };
    match counter {
        Ok(Some(0)) => {
            answer(Status::Ok, format!("{LINK_LOCAL_EXCEEDED} is 0: EC2's link-local rate limit has dropped nothing."))
        }
        Ok(Some(count)) => answer(
            Status::Warning,
            format!(
                "{LINK_LOCAL_EXCEEDED} is {count}: EC2's link-local rate limit (1,024 packets a second) has dropped as many packets to \
                 IMDS, DNS and time services since the interface came up."
            ),
        ),
        Ok(None) => {
            let driver =
                ethtool::driver(name).map_or("its driver".to_owned(), |driver| format!("its driver, {driver},"));
            answer(
                Status::Unknown,
                format!(
                    "Whether EC2 dropped packets over the link-local allowance is not known: {driver} does not count them (needs ENA)."
                ),
            )
        }
        Err(error) => answer(
            Status::Unknown,
            format!("Whether EC2 dropped packets over the link-local allowance is not known: {error}."),
        ),
    }
}
