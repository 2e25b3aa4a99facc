//! How is the way of a request and its response drawn? A box for the client, each interface and IMDS; the TTL at each; where it died.

use std::fmt::Write as _;

use super::escaped;
use crate::finding::Path;
use crate::journey::{Fate, Hop};
use crate::net::Direction;

/// Between the middles of two boxes.
const STEP: usize = 150;
/// The middle of the first box.
const FIRST: usize = 90;
/// Where the lines of the request and of the response are.
const REQUEST: usize = 95;
const RESPONSE: usize = 150;
/// Boxes at most.
const MAX_COLUMNS: usize = 12;
/// Bytes of a name in a box.
const MAX_NAME: usize = 18;
/// Bytes of what a lost packet bears.
const MAX_LABEL: usize = 80;

/// Draws it. `client` is what the first box is called.
pub fn draw(out: &mut String, path: &Path, client: &str) {
    let mut names: Vec<&str> = Vec::new();
    let outward = path.outward.hops.iter();
    for hop in outward.chain(path.inward.hops.iter().rev()) {
        let name = &*hop.hook.interface.name;
        if !names.contains(&name) && names.len() < MAX_COLUMNS {
            names.push(name);
        }
    }
    let columns = names.len() + 2;
    let (width, height) = (2 * FIRST + STEP * (columns - 1), 205);
    let _ = write!(
        out,
        "<div class=\"wide\"><svg class=\"ladder\" role=\"img\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\"><title>The way of the request and of its response</title>"
    );
    let boxes = [client].into_iter().chain(names.iter().copied()).chain(["IMDS"]);
    for (column, name) in boxes.enumerate() {
        let x = at(column);
        let _ = write!(
            out,
            "<rect class=\"box\" x=\"{}\" y=\"10\" width=\"120\" height=\"34\" rx=\"5\"/><text x=\"{x}\" y=\"32\" text-anchor=\"middle\">{}</text><line class=\"row\" x1=\"{x}\" y1=\"44\" x2=\"{x}\" y2=\"170\"/>",
            x - 60,
            escaped(name, MAX_NAME)
        );
    }
    let column =
        |hop: &Hop| names.iter().position(|name| **name == *hop.hook.interface.name).map_or(0, |place| place + 1);
    let last = columns - 1;
    // A request that left by its last interface went on to IMDS, as far as anybody here knows.
    let leaves = path.outward.hops.last().is_some_and(|hop| hop.hook.direction == Direction::Egress);
    let end = if leaves && !matches!(path.outward.fate, Fate::Dropped(_)) { last } else { 0 };
    way(out, "request", &path.outward, REQUEST, (0, end), column, true);
    let comes = path.inward.hops.first().is_some_and(|hop| hop.hook.direction == Direction::Ingress);
    if !path.inward.hops.is_empty() || matches!(path.inward.fate, Fate::Dropped(_)) {
        let begin = if comes { last } else { path.inward.hops.first().map_or(last, column) };
        // Not to the client: it left the last place, which is no proof that it arrived.
        let end = path.inward.hops.last().map_or(begin, column);
        way(out, "response", &path.inward, RESPONSE, (begin, end), column, false);
    }
    out.push_str("</svg></div>");
}

/// One way: a line, the TTL at each place, and where it was lost.
fn way(
    out: &mut String,
    label: &str,
    way: &crate::finding::Way,
    y: usize,
    (begin, end): (usize, usize),
    column: impl Fn(&Hop) -> usize,
    outward: bool,
) {
    let lost = match &way.fate {
        Fate::Dropped(dropped) => Some(dropped),
        Fate::Delivered | Fate::Unresolved => None,
    };
    let seen = way.hops.last().map_or(begin, &column);
    let reached = if lost.is_some() { seen } else { if outward { end.max(seen) } else { end.min(seen) } };
    // It was lost before the next place.
    let died = if outward { at(reached) + STEP / 2 } else { at(reached).saturating_sub(STEP / 2) };
    let to = if lost.is_some() { died } else { at(reached) };
    let _ = write!(
        out,
        "<text x=\"4\" y=\"{}\">{label}</text><line class=\"way\" x1=\"{}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\"/>",
        y + 4,
        at(begin)
    );
    for hop in &way.hops {
        let x = at(column(hop));
        let _ = write!(
            out,
            "<circle class=\"dot\" cx=\"{x}\" cy=\"{y}\" r=\"4\"/><text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">ttl {}</text>",
            y - 9,
            hop.ttl.0
        );
    }
    if !outward && lost.is_none() && reached > 0 {
        // It left the last place, which is no proof that it arrived; or it was not seen again.
        if way.fate == Fate::Delivered {
            let _ = write!(out, "<line class=\"way on\" x1=\"{to}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\"/>", at(0));
        } else {
            let (x, y) = (to.saturating_sub(STEP / 2), y + 5);
            let _ =
                write!(out, "<text class=\"lost\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">not seen again</text>");
        }
    }
    if let Some(dropped) = lost {
        let reason = dropped.drop.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let text = format!("lost in {}, ttl {}{reason}", dropped.drop.function(), dropped.ttl.0);
        let _ = write!(
            out,
            "<path class=\"lost\" d=\"M{} {}l12 12m0 -12l-12 12\"/><text class=\"lost\" x=\"{died}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            died.saturating_sub(6),
            y - 6,
            y + 26,
            escaped(&text, MAX_LABEL)
        );
    }
}

fn at(column: usize) -> usize {
    FIRST + STEP * column
}
