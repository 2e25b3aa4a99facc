//! How is it told who would break if the instance were set otherwise?

use std::fmt::Write as _;

use super::{BOLD, DIM, MAX_NAME, MAX_PATH, RED, YELLOW, counted, paragraph, subject, time};
use crate::event::{ClientOutlook, Outlook, WhatIf};
use crate::net::BootTime;
use crate::printable::printable;

/// Tells what would come of each.
pub fn tell(out: &mut String, what_if: &WhatIf, boot_time: BootTime) {
    let (style, word) = match what_if.outlook {
        Outlook::Breaks => (RED, "BREAKS"),
        Outlook::CannotBeTold => (YELLOW, "CANNOT BE TOLD"),
        Outlook::Works => (BOLD, "works"),
    };
    let why = printable(&what_if.why, usize::MAX);
    let head = format!("{BOLD}What if {}{BOLD:#}: {style}{word}{style:#}: {why}.", what_if.settings);
    let _ = writeln!(out, "\n{}", paragraph("", "  ", &head));
    for client in &what_if.clients {
        tell_client(out, client, boot_time);
    }
    if let Some(least) = least(what_if) {
        let _ = writeln!(out, "{}", paragraph("  ", "  ", &least));
    }
    let _ = writeln!(out, "{}", paragraph("  ", "  ", &format!("{DIM}Rests on{DIM:#} {}", basis(what_if))));
}

fn tell_client(out: &mut String, client: &ClientOutlook, boot_time: BootTime) {
    let word = match client.outlook {
        Outlook::Breaks => format!("{RED}breaks{RED:#}"),
        Outlook::CannotBeTold => format!("{YELLOW}cannot be told{YELLOW:#}"),
        Outlook::Works => "works".to_owned(),
    };
    let container = client.who.container.as_ref();
    let image = container.and_then(|container| container.image.as_deref());
    let image = image.map(|image| format!(", image {}", printable(image, MAX_PATH))).unwrap_or_default();
    let job = container.and_then(|container| container.job_id());
    let job = job.map(|job| format!(", CI job {}", printable(job, MAX_NAME))).unwrap_or_default();
    let process = client.who.process.as_ref().map(|process| match &process.exe {
        Some(exe) => format!(", {} ({})", printable(&process.comm, MAX_NAME), printable(exe, MAX_PATH)),
        None => format!(", {}", printable(&process.comm, MAX_NAME)),
    });
    let exchanges = counted(client.exchanges, "exchange");
    let line = format!("{word}  {}{}{image}{job}; {exchanges}", subject(&client.who), process.unwrap_or_default());
    let _ = writeln!(out, "{}", paragraph("  ", "      ", &line));
    for reason in &client.reasons {
        let text = printable(&reason.text, usize::MAX);
        let when = time(reason.last, boot_time);
        let times = if reason.count == 1 { "once".to_owned() } else { format!("{} times", reason.count) };
        let _ = writeln!(out, "{}", paragraph("      ", "      ", &format!("{text}: {times}, last at {when} UTC")));
    }
}

/// With which hop limit all work that asked for tokens.
fn least(what_if: &WhatIf) -> Option<String> {
    let who = what_if.least_for.as_ref().map(subject)?;
    let least = what_if.least;
    Some(match (least.at_least, least.enough) {
        (at_least, Some(enough)) if at_least == enough => {
            format!("The least hop limit at which tokens reach all that asked for one is {enough}: {who} needs it.")
        }
        (_, Some(enough)) => {
            format!(
                "With a hop limit of {enough} tokens reach all that asked for one; whether less is enough for {who} was not seen."
            )
        }
        (0, None) => format!("Which hop limit is needed was not seen: of {who} the way is not known."),
        (at_least, None) => {
            format!(
                "The hop limit must be {at_least} at least, for {who}; whether that is enough for all was not seen."
            )
        }
    })
}

/// How long was traced, and what is missing.
fn basis(what_if: &WhatIf) -> String {
    let basis = &what_if.basis;
    let traced = format!("{:.0} s of tracing", basis.traced.as_secs_f64());
    let unseen = match basis.unseen {
        0 => "no connection bypassed the watched interfaces".to_owned(),
        unseen => format!("{} beside what is watched", counted(unseen, "connection")),
    };
    let gaps = if basis.gaps.is_empty() { "nothing lost".to_owned() } else { basis.gaps.join("; ") };
    format!("{traced}, {unseen}, {}. Whoever asks seldom may not be in it.", printable(&gaps, usize::MAX))
}
