//! Hop by hop, where did a request and its response go, and where did they end?

use std::fmt::Write as _;

use super::RED;
use crate::finding::{Path, is_spent};
use crate::journey::{Dropped, Fate, Hop};
use crate::net::{Direction, Ttl};
use crate::printable::printable;

/// Bytes of an interface's name that are shown; the kernel allows 15.
const MAX_NAME: usize = 16;

/// One rung: where, with what TTL, and what of it.
struct Rung {
    place: String,
    ttl: String,
    remark: String,
}

/// Draws both ways under each other. The request left its socket with this TTL; so many copies were dropped.
pub fn draw(out: &mut String, path: &Path, initial: Option<Ttl>, copies: u64) {
    let mut outward = rungs(&path.outward.hops);
    let mut inward = rungs(&path.inward.hops);
    outward.splice(0..0, before(path, initial));
    match &path.outward.fate {
        Fate::Dropped(dropped) => outward.push(dropped_at(dropped, copies, path)),
        Fate::Delivered | Fate::Unresolved => {
            if let (Some(rung), Some(hop)) = (outward.last_mut(), path.outward.hops.last())
                && hop.hook.direction == Direction::Egress
            {
                rung.remark = format!("→ IMDS {}", rung.remark);
            }
        }
    }
    if let (Some(rung), Some(hop)) = (inward.first_mut(), path.inward.hops.first())
        && hop.hook.direction == Direction::Ingress
    {
        rung.remark = "← IMDS".to_owned();
    }
    if let Fate::Dropped(dropped) = &path.inward.fate {
        inward.push(dropped_at(dropped, copies, path));
    }
    if path.inward.fate != Fate::Delivered && !matches!(path.outward.fate, Fate::Dropped(_)) {
        inward.extend(missed(path));
    }
    let all = || outward.iter().chain(&inward);
    let place = all().map(|rung| rung.place.chars().count()).max().unwrap_or(0);
    let ttl = all().map(|rung| rung.ttl.len()).max().unwrap_or(0);
    for (label, rungs) in [("request", &outward), ("response", &inward)] {
        for (number, rung) in rungs.iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            let line = format!("    {label:8}  {:place$}  {:ttl$}  {}", rung.place, rung.ttl, rung.remark);
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
}

/// Where the address was translated, the new one is shown.
fn rungs(hops: &[Hop]) -> Vec<Rung> {
    let before = std::iter::once(None).chain(hops.iter().map(Some));
    hops.iter()
        .zip(before)
        .map(|(hop, before)| Rung {
            place: place(&hop.hook.interface.name, hop.hook.direction),
            ttl: format!("ttl {}", hop.ttl.0),
            remark: match before {
                Some(before) if before.client != hop.client => format!("as {}", hop.client),
                _ => String::new(),
            },
        })
        .collect()
}

/// What lies between the client's socket and the first hook, if its TTL fell there: namespaces of its own.
fn before(path: &Path, initial: Option<Ttl>) -> Option<Rung> {
    let (initial, first) = (initial?, path.outward.hops.first()?);
    let forwards = initial.0.checked_sub(first.ttl.0).filter(|forwards| *forwards > 0)?;
    let times = if forwards == 1 { "once".to_owned() } else { format!("{forwards} times") };
    Some(Rung {
        place: "its socket".to_owned(),
        ttl: format!("ttl {}", initial.0),
        remark: format!("forwarded {times} before {}", printable(&first.hook.interface.name, MAX_NAME)),
    })
}

fn dropped_at(dropped: &Dropped, count: u64, path: &Path) -> Rung {
    let reason =
        dropped.drop.reason.as_deref().map(|reason| format!(": {}", printable(reason, 64))).unwrap_or_default();
    let why = if is_spent(dropped) { " (TTL used up)" } else { "" };
    let copies = if count > 1 { format!(", {count} copies") } else { String::new() };
    let host = path.outward.hops.iter().chain(&path.inward.hops).map(|hop| hop.hook.interface.netns).next();
    let elsewhere = host.is_some_and(|host| host != dropped.drop.netns && dropped.drop.netns.0 != 0);
    let whose = if elsewhere { format!(", in network namespace {}", dropped.drop.netns.0) } else { String::new() };
    Rung {
        place: printable(dropped.drop.function(), 64),
        ttl: format!("ttl {}", dropped.ttl.0),
        remark: format!("{RED}✗ dropped{reason}{RED:#}{why}{whose}{copies}"),
    }
}

/// The hops that the response should have passed, were the way back the way out: those it was not seen at.
fn missed(path: &Path) -> Vec<Rung> {
    path.outward
        .hops
        .iter()
        .rev()
        .map(|hop| {
            let back = match hop.hook.direction {
                Direction::Ingress => Direction::Egress,
                Direction::Egress => Direction::Ingress,
            };
            (&hop.hook.interface, back)
        })
        .filter(|(interface, back)| {
            !path.inward.hops.iter().any(|hop| hop.hook.interface == **interface && hop.hook.direction == *back)
        })
        .map(|(interface, back)| Rung {
            place: place(&interface.name, back),
            ttl: "-".to_owned(),
            remark: "never seen".to_owned(),
        })
        .collect()
}

fn place(interface: &str, direction: Direction) -> String {
    format!("{} {direction}", printable(interface, MAX_NAME))
}
