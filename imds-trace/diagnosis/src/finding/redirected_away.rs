//! Was a connection to IMDS sent elsewhere on this host (a redirect, DNAT), and did it end there?
//!
//! Told apart from `refused`, where somebody said no, and from `answered-locally`, where somebody answered. Cannot know which rule it was.

use super::drops::drops_whatever_its_way;
use super::socket_error::is_refused;
use super::{Case, Rule, Severity, Verdict};
use crate::exchange::Exchange;
use crate::journey::{Fate, Redirect};
use crate::net::{Direction, Endpoint};

/// The rule.
pub const RULE: Rule = Rule {
    id: "redirected-away",
    severity: Severity::Error,
    explain: "Something on this host sent a connection to IMDS elsewhere (a redirect, DNAT), and no answer came from there; or it took it \
              and let it go nowhere.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.answered.is_none() && !exchange.responded)?;
    // A time-out is no answer.
    let was_told = case.who.error.is_some() && is_refused(case);
    if exchange.refusal.is_some() || was_told || exchange.handshake && exchange.asked.is_none() {
        return None;
    }
    match exchange.redirected {
        Some(Redirect { to, .. }) => elsewhere(case, exchange, to),
        None => nowhere(case, exchange),
    }
}

/// Its SYN was seen on its way to somewhere else.
fn elsewhere(case: &Case<'_>, exchange: &Exchange, to: Endpoint) -> Option<Verdict> {
    let travel = exchange.outward.as_ref()?;
    // It turned on a bridge, and who is behind that answers there, which no hook sees.
    let turned = travel.hops.first().zip(travel.hops.last()).is_some_and(|(first, last)| {
        first.hook.interface.index == last.hook.interface.index && last.hook.direction == Direction::Egress
    });
    if turned && travel.fate == Fate::Delivered && !exchange.response_refuted {
        return None;
    }
    let subject = case.subject();
    let begin = format!("The connection of {subject} to {} was redirected to {to} on this host", exchange.endpoint);
    let cause_of = format!("{to}");
    let mut verdict = match &travel.fate {
        Fate::Dropped(dropped) => {
            if drops_whatever_its_way(case, dropped) {
                return None;
            }
            let reason = dropped.drop.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let why = match to.address.is_loopback() {
                true => {
                    ": the kernel takes no packet for the loopback address from another interface while route_localnet is 0"
                }
                false => "",
            };
            let location = dropped.drop.function();
            let whose = match dropped.drop.netns == case.host.netns {
                true => String::new(),
                false => format!(" in {}", case.whose(dropped.drop.netns)),
            };
            Verdict::certain(cause_of, format!("{begin}, and dropped in {location}{whose}{reason}{why}."))
        }
        Fate::Delivered | Fate::Unresolved => {
            // Nothing follows from not seeing an answer where one may have been missed.
            let absent = case.absent().ok()?;
            let left = travel.hops.last().filter(|hop| hop.hook.direction == Direction::Egress);
            let by = left.map(|hop| format!("left by {} ", hop.hook.interface.name)).unwrap_or_default();
            Verdict::likely(cause_of, format!("{begin}, {by}and nothing came back from there."), absent)
        }
    };
    verdict.path = case.path(None);
    if let Fate::Dropped(dropped) = &travel.fate {
        verdict.drop = Some(dropped.clone());
        verdict.weight = travel.copies.max(1);
        verdict.last = travel.last_lost;
    }
    verdict.remedy = case.redirects();
    if to.address.is_loopback()
        && let Some(first) = travel.hops.first()
    {
        let name = crate::printable::shell_word(&first.hook.interface.name);
        verdict.remedy.push(format!("sysctl net/ipv4/conf/{name}/route_localnet net/ipv4/conf/all/route_localnet"));
    }
    verdict.remedy.push(listeners(to));
    if !to.address.is_loopback() {
        verdict.remedy.push(format!("ip route get {}", to.address));
    }
    verdict.caution = Some("A metadata proxy (kube2iam, kiam, metadataproxy) installs such a rule, and does not take it with it when it goes. \
                       Deleting the rule lets clients reach IMDS and the instance's own role: it may stand there to keep them off it."
        .to_owned());
    Some(verdict)
}

/// It was seen coming in, and at no place behind that, nor dropped.
fn nowhere(case: &Case<'_>, exchange: &Exchange) -> Option<Verdict> {
    let travel = exchange.outward.as_ref().filter(|travel| travel.fate == Fate::Unresolved)?;
    let last = travel.hops.last().filter(|hop| hop.hook.direction == Direction::Ingress)?;
    // A hop less seen, a drop less seen, and it says nothing. Of one packet it says nothing either.
    let absent = case.absent_everywhere().ok()?;
    if case.rests_on_capture() || travel.copies < 2 || exchange.request_proof.is_some() {
        return None;
    }
    let what = match (&exchange.request, exchange.handshake) {
        (Some(request), true) => format!("The {} {} of {}", request.method, request.path, case.subject()),
        (None, true) => format!("A request of {}", case.subject()),
        (_, false) if exchange.inward.is_some() => return None,
        (_, false) => case.connection_attempt(),
    };
    // Who has the endpoint's address itself is no client, and which way a packet between the two goes cannot be told.
    if exchange.client().is_some_and(|client| client.address == exchange.endpoint.address) {
        return None;
    }
    let mut verdict = Verdict::likely(
        "nowhere",
        format!(
            "{} came in by {} {} times and was seen nowhere behind it, neither leaving nor dropped: something \
             on this host sends it elsewhere (a route, a redirect, DNAT, a program), or keeps it (a queue, a neighbour that does not answer).",
            what, last.hook.interface.name, travel.copies,
        ),
        absent,
    );
    verdict.path = case.path(None);
    verdict.remedy = case.redirects();
    let name = crate::printable::shell_word(&last.hook.interface.name);
    let (to, from) = (exchange.endpoint.address, last.client.address);
    verdict.remedy.push(format!("ip route get {to} from {from} iif {name}"));
    verdict.remedy.push(format!("bpftool net show dev {name}"));
    Some(verdict)
}

/// The command that shows who listens at a port.
pub(super) fn listeners(to: Endpoint) -> String {
    format!("ss -ltnp 'sport = :{}'", to.port)
}
