//! What does somebody want to know of exchanges: which way of asking, by what to count, since when?

use std::time::Duration;

use super::{Error, duration};

/// In which way IMDS was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Without a token (IMDSv1).
    V1,
    /// With a token (IMDSv2).
    V2,
    /// For a token.
    Token,
}

/// What exchanges are counted together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// Container, or the host.
    Container,
    /// Pod; a container that is in none counts by itself.
    Pod,
    /// Kubernetes namespace.
    Namespace,
    /// What made the pod, by its name, with its namespace.
    Workload,
    /// Process.
    Process,
    /// Image of the container.
    Image,
    /// CI job that the container is of.
    Job,
    /// Path that was asked for.
    Path,
    /// The host that it was seen on.
    Host,
}

impl GroupBy {
    /// All of them, by what they are called.
    pub const ALL: [(&'static str, Self); 9] = [
        ("container", Self::Container),
        ("pod", Self::Pod),
        ("namespace", Self::Namespace),
        ("workload", Self::Workload),
        ("process", Self::Process),
        ("image", Self::Image),
        ("job", Self::Job),
        ("path", Self::Path),
        ("host", Self::Host),
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, by)| *by == self).map_or("", |(name, _)| name)
    }
}

/// A moment, as somebody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nanoseconds from the Unix epoch.
    At(i128),
    /// So long before now.
    Ago(Duration),
}

impl Moment {
    /// In nanoseconds from the Unix epoch, where `now` is that, too.
    pub fn instant(self, now: i128) -> i128 {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.saturating_sub(i128::try_from(ago.as_nanos()).unwrap_or(i128::MAX)),
        }
    }
}

/// Reads `--since` and `--until`: a moment, a day, a time of a day, or a time before now.
pub fn moment(option: &'static str, text: &str) -> Result<Moment, Error> {
    let bare = text.trim();
    let ago = bare.strip_suffix("ago").or_else(|| bare.strip_prefix('-')).map(str::trim);
    if let Some(ago) = ago {
        return duration(option, ago).map(Moment::Ago).map_err(|_| Error::Moment(option, text.to_owned()));
    }
    let utc = |time: jiff::civil::DateTime| time.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let at = bare.parse::<jiff::Timestamp>().ok();
    let at = at.or_else(|| utc(bare.parse().ok()?).map(|time| time.timestamp()));
    at.map(|at| Moment::At(at.as_nanosecond())).ok_or_else(|| Error::Moment(option, text.to_owned()))
}

/// Reads `--imds`.
pub fn asked(text: &str) -> Result<Asked, Error> {
    match text {
        "v1" => Ok(Asked::V1),
        "v2" => Ok(Asked::V2),
        "token" => Ok(Asked::Token),
        _ => Err(Error::Asked(text.to_owned())),
    }
}

/// Reads `--group-by`.
pub fn group_by(text: &str) -> Result<GroupBy, Error> {
    let known = GroupBy::ALL.iter().find(|(name, _)| *name == text);
    known.map(|(_, by)| *by).ok_or_else(|| Error::GroupBy(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_a_day_or_some_time_ago() {
        const DAY: i128 = 1_795_132_800_000_000_000;
        let hour = 3_600_000_000_000;
        for (text, at) in [
            ("2026-11-20", DAY),
            ("2026-11-20 08:00", DAY + 8 * hour),
            ("2026-11-20T08:00:00Z", DAY + 8 * hour),
            ("2026-11-20T08:00:00+02:00", DAY + 6 * hour),
        ] {
            assert_eq!(moment("--since", text), Ok(Moment::At(at)), "{text}");
        }
        for text in ["2h ago", "-2h", "- 2h", "2h  ago"] {
            assert_eq!(moment("--since", text), Ok(Moment::Ago(Duration::from_secs(7200))), "{text}");
        }
        for wrong in ["", "2h", "tuesday", "2026-13-01", "-", "ago", "0s ago", "--2h"] {
            assert_eq!(moment("--since", wrong), Err(Error::Moment("--since", wrong.into())), "{wrong}");
        }
    }
}
