//! How is it told who was seen, so that others can be told from them? An allow-list for `--allow`, to be read before it is used.
//!
//! Refuses entries that would let others through as well: those stand there as comments.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::{Kind, Output};
use crate::allow::entry;
use crate::event::{Event, Report};
use crate::exchange::{Imds, imds::role};
use crate::identity::Attribution;
use crate::net::{BootTime, Timestamp};
use crate::printable::printable;
use crate::words::{self, rfc3339};

/// The kind.
pub const KIND: Kind = Kind {
    name: "allow",
    explain: "an allow-list of whoever asked for a token or credentials, for --allow",
    needs_path: false,
    packets: false,
    verbatim: false,
    several: false,
    generated: true,
    open: |stream, boot_time| Box::new(Allow { stream, boot_time, seen: BTreeMap::new(), over: 0 }),
};

/// Clients told apart at most.
const MAX_CLIENTS: usize = 8_192;
/// Roles of one client.
const MAX_ROLES: usize = 16;
/// Bytes of a sentence in one.
const MAX_WHY: usize = 1024;
/// Bytes of a name in a comment.
const MAX_NAME: usize = 200;

struct Allow {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    /// By what tells entries apart.
    seen: BTreeMap<String, Seen>,
    over: u64,
}

struct Seen {
    who: Attribution,
    roles: Vec<String>,
    /// Did anything of it arrive?
    brought: bool,
    last: Timestamp,
}

impl Output for Allow {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        let Event::Exchange(event) = event else { return Ok(()) };
        let exchange = &event.exchange;
        let role = exchange.request.as_ref().and_then(|request| role(&request.path));
        if exchange.imds() != Some(Imds::Token) && exchange.issued.is_none() && role.is_none() {
            return Ok(());
        }
        let key = match entry(&event.who, &[]) {
            Ok(text) => text,
            Err(why) => {
                format!("{why} {:?} {:?}", event.who.subject(), event.who.process.as_ref().map(|process| &process.comm))
            }
        };
        if self.seen.len() >= MAX_CLIENTS && !self.seen.contains_key(&key) {
            self.over += 1;
            return Ok(());
        }
        let new = || Seen { who: event.who.clone(), roles: Vec::new(), brought: false, last: exchange.opened };
        let seen = self.seen.entry(key).or_insert_with(new);
        seen.brought |= exchange.brought();
        seen.last = seen.last.max(exchange.opened);
        if let Some(role) = role
            && seen.roles.len() < MAX_ROLES
            && !seen.roles.iter().any(|known| known == role)
        {
            seen.roles.push(role.to_owned());
        }
        Ok(())
    }

    fn report(&mut self, _: Timestamp, report: &Report) -> io::Result<()> {
        let out = &mut self.stream;
        writeln!(out, "# Who asked IMDS for a token or credentials, for `imds-trace watch --allow FILE`.")?;
        writeln!(out, "# Whoever was there when it was recorded is in it: read it before you use it.")?;
        for why in &report.broken {
            writeln!(out, "# {}: {}.", words::not_intact(report), printable(why, MAX_WHY))?;
        }
        if report.lost.sum() + self.over > 0 {
            writeln!(out, "# {} records were lost: somebody may be missing.", report.lost.sum() + self.over)?;
        }
        for seen in self.seen.values() {
            let came = if seen.brought {
                "it got what it asked for"
            } else {
                "nothing that it asked for is known to have arrived"
            };
            let last = rfc3339(seen.last, self.boot_time);
            writeln!(out, "\n# {}: {came}; last asked {}", title(&seen.who), last.get(..19).unwrap_or_default())?;
            match entry(&seen.who, &seen.roles) {
                Ok(text) => write!(out, "{text}")?,
                Err(why) => writeln!(out, "# No entry: {why}.")?,
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A client, on one line whatever it is called.
fn title(who: &Attribution) -> String {
    let place = match &who.container {
        Some(container) => printable(&container.title(), MAX_NAME),
        None if who.by == crate::identity::Key::Cgroup => "this host".to_owned(),
        None => who.unnamed(),
    };
    match &who.process {
        Some(process) => format!("{} of {place}", printable(&process.comm, MAX_NAME)),
        None => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_whose_process_is_not_known_is_told_by_its_place_alone() {
        let who = Attribution::of_nobody("10.0.0.7".parse().ok());
        assert_eq!(title(&who), "the client at 10.0.0.7");
    }
}
