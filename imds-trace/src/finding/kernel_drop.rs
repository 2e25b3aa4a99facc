//! Did the kernel drop a packet for a reason that no other rule names, and did the exchange fail with it?

use super::{Case, Rule, Severity, Verdict, is_spent};
use crate::exchange::{Exchange, Moment};
use crate::journey::{Dropped, Fate};
use crate::net::Heading;

/// The rule.
pub const RULE: Rule = Rule {
    id: "kernel-drop",
    severity: Severity::Error,
    explain: "The kernel dropped a packet of an exchange that got no answer, for another reason than a used-up TTL.",
    examine,
};

/// A client that sends broken packets is refused for them, which is no loss.
const MALFORMED: [&str; 5] = ["IP_INHDR", "IP_CSUM", "TCP_CSUM", "PKT_TOO_SMALL", "HDR_TRUNC"];

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.exchange;
    if exchange.answered.is_some() {
        // Sent again, and that arrived.
        return None;
    }
    let (heading, dropped, weight, last) = match case.moment {
        Moment::Closed => {
            let outward = exchange.request_drop().map(|dropped| (Heading::ToImds, dropped, exchange.outward.as_ref()));
            let inward = exchange.response_drop().map(|dropped| (Heading::FromImds, dropped, exchange.inward.as_ref()));
            let (heading, dropped, travel) = inward.or(outward)?;
            (heading, dropped, travel?.copies, travel?.last_lost)
        }
        // More copies of what it failed by; what is dropped after the client has gone for another reason is no cause.
        Moment::Lost(journey) if exchange.closed.is_some() && journey.carries() => match &journey.fate {
            Fate::Dropped(dropped) if failed_by(exchange, journey.heading, dropped) => {
                (journey.heading, dropped, 1, None)
            }
            Fate::Dropped(_) | Fate::Delivered | Fate::Unresolved => return None,
        },
        Moment::Asked | Moment::Answered | Moment::Lost(_) => return None,
    };
    let reason = dropped.drop.reason.as_deref().unwrap_or_default();
    let is_malformed = heading == Heading::ToImds && MALFORMED.contains(&reason);
    if is_malformed || heading == Heading::FromImds && is_spent(dropped) {
        return None;
    }
    let mut verdict = verdict(case, heading, dropped);
    verdict.weight = weight;
    verdict.last = last;
    Some(verdict.resting_on_absence(case))
}

/// Was this way's packet dropped at the same place before the exchange ended?
fn failed_by(exchange: &Exchange, heading: Heading, dropped: &Dropped) -> bool {
    let before = match heading {
        Heading::ToImds => exchange.request_drop(),
        Heading::FromImds => exchange.response_drop(),
    };
    before
        .is_some_and(|before| before.drop.location == dropped.drop.location && before.drop.netns == dropped.drop.netns)
}

fn verdict(case: &Case<'_>, heading: Heading, dropped: &Dropped) -> Verdict {
    let drop = &dropped.drop;
    let what = match heading {
        Heading::ToImds => format!("A request packet of {}", case.subject()),
        Heading::FromImds => format!("A response packet to {}", case.subject()),
    };
    let on = drop.interface.as_ref().map(|interface| format!(" on {}", interface.name)).unwrap_or_default();
    let reason = drop.reason.as_deref().unwrap_or("this kernel gives no reason");
    let mut verdict = Verdict::certain(
        format!("{heading:?} {} {reason} {}", drop.location, drop.netns.0),
        format!(
            "{what} was dropped by the kernel in {}{on} ({reason}), and no answer reached the client.",
            drop.location
        ),
    );
    verdict.path = case.path(None);
    verdict.drop = Some(dropped.clone());
    verdict
}
