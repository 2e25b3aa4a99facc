//! In which words do several outputs say the same? Times, counts, and what was lost.

use crate::event::{Attached, Lost, Report, Tally};
use crate::net::{BootTime, Timestamp};

/// Wall-clock time of a timestamp, as RFC 3339 has it, with nanoseconds; empty for one that no calendar holds.
pub fn rfc3339(at: Timestamp, boot_time: BootTime) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(boot_time.0) + i128::from(at.0)) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => String::new(),
    }
}

/// `1 packet`, `2 packets`.
pub fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// `1 packet was`, `2 packets were`.
pub fn counted_were(count: u64, what: &str) -> String {
    format!("{} {}", counted(count, what), if count == 1 { "was" } else { "were" })
}

/// Why a report that ends at this moment has nothing to show. Where a filter hid what there is, it may be of another time.
pub fn nothing_shown(report: &Report, end: Timestamp, boot_time: BootTime) -> String {
    if report.hidden == 0 {
        return "No packet to or from IMDS was seen.".to_owned();
    }
    let time = |at| format!("{}Z", rfc3339(at, boot_time).get(..19).unwrap_or_default());
    let from = report.coverage.listened.iter().map(|listened| listened.from).min();
    let recorded = from.map(|from| format!(" Recorded was from {} to {}.", time(from), time(end)));
    let hidden = counted_were(report.hidden, "exchange");
    format!("Nothing matches the filter; {hidden} not shown.{}", recorded.unwrap_or_default())
}

/// What is to be said where nothing was found; `None` if something was, or nobody asked.
pub fn verdict(report: &Report) -> Option<&'static str> {
    if report.subjects.is_empty() || !report.findings.is_empty() {
        return None;
    }
    let sum = |of: fn(&Tally) -> u64| report.subjects.iter().map(of).sum::<u64>();
    let (unanswered, unproved, unread) =
        (sum(|tally| tally.unanswered), sum(|tally| tally.unproved), sum(|tally| tally.unread));
    Some(match (unanswered, unproved, unread, report.lost.sum()) {
        (0, 0, 0, 0) if !report.coverage.unseen.is_empty() => "Nothing wrong was seen at the places that are watched.",
        (0, 0, 0, 0) if report.broken.is_empty() => "Nothing wrong was seen.",
        (0, 0, 0, 0) => "Nothing wrong was seen in what could be read.",
        (0, 0, 0, _) => "Nothing wrong was seen in what could be kept.",
        (0, 0, _, _) => "Nothing wrong was seen, but not every request or status was.",
        (0, _, _, _) => "Nothing wrong was seen, but nothing shows of every answer that it arrived.",
        _ => "Not every exchange was answered, and no rule names the cause.",
    })
}

/// ` (3 times)` behind a sentence; nothing for once.
pub fn times(count: u64) -> String {
    if count > 1 { format!(" ({count} times)") } else { String::new() }
}

/// `, 3 copies` behind a drop; nothing for one.
pub fn copies(count: u64) -> String {
    if count > 1 { format!(", {count} copies") } else { String::new() }
}

/// What is not intact that a report was concluded from, before the sentences that say why.
pub fn not_intact(report: &Report) -> &'static str {
    let mut hooks = report.coverage.listened.iter().flat_map(|listened| &listened.ready.hooks);
    let is_capture = hooks.any(|hook| matches!(hook, Attached::Capture { .. }));
    if is_capture { "Capture not intact" } else { "Recording not intact" }
}

/// What could not be kept, and what that means for what follows.
pub fn lost(lost: Lost) -> String {
    let Lost { ring_buffer, unreadable, state_evicted } = lost;
    format!(
        "{ring_buffer} records dropped (ring buffer full), {unreadable} unreadable, {state_evicted} tracked objects evicted; what \
         follows may be incomplete"
    )
}
