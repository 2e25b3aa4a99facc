//! Did the answer come from this host, and not from EC2?

use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::net::{Direction, has_fallen};

/// The rule.
pub const RULE: Rule = Rule {
    id: "answered-locally",
    severity: Severity::Warning,
    explain: "The answer did not come in by an interface towards IMDS: something on this host answers in its place (a redirect, a \
              metadata proxy).",
    examine,
};

/// Did it leave by an interface, and come back in by that, which no container is behind? What lies there is not this host, whatever its
/// routes said at the time.
fn went_both_ways(case: &Case<'_>) -> bool {
    let last = case.exchange.outward.as_ref().and_then(|travel| travel.hops.last());
    let first = case.exchange.inward.as_ref().and_then(|travel| travel.hops.first());
    last.zip(first).is_some_and(|(left, came)| {
        let interface = left.hook.interface.index;
        let is_back = interface == came.hook.interface.index && came.hook.direction == Direction::Ingress;
        is_back && left.hook.direction == Direction::Egress && !case.host.inward.contains(&interface)
    })
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed()?;
    exchange.answered?;
    let inward = exchange.inward.as_ref().filter(|travel| !travel.hops.is_empty())?;
    // A TTL that had fallen before the first place that saw the answer: it was forwarded here, from where nobody listens.
    let redirected = exchange.redirected.map(|redirect| redirect.to);
    if redirected.is_none()
        && inward.hops.first().is_some_and(|hop| hop.hook.direction == Direction::Egress && has_fallen(hop.ttl))
    {
        return None;
    }
    let came_in = inward.hops.iter().any(|hop| case.host.is_uplink(hop, Direction::Ingress));
    let went_out = exchange.outward.iter().flat_map(|travel| &travel.hops);
    let went_out = went_out.into_iter().any(|hop| case.host.is_uplink(hop, Direction::Egress));
    if redirected.is_none() && (came_in || went_out || went_both_ways(case)) {
        return None;
    }
    let server = exchange.response.as_ref().and_then(|response| response.server.as_deref());
    let server = server.map(|server| format!(" It calls itself {server}.")).unwrap_or_default();
    let subject = case.subject();
    // Docker loads br_netfilter: then the redirect is made before a packet enters the bridge, where the first hook is.
    let what = if exchange.request.is_some() { format!("The {}", case.request_line()) } else { "A request".to_owned() };
    let mut verdict = match redirected {
        Some(to) => Verdict::certain(
            "local",
            format!(
                "{what} of {subject} was answered by {to} in IMDS's place: something on this host sent the connection there (a redirect, \
                 DNAT).{server}"
            ),
        ),
        // Known by what did not pass there: only with hooks there, and with nothing lost.
        None => Verdict::certain_by_absence(
            "local",
            format!(
                "{what} of {subject} was answered on this host: neither request nor answer passed an interface towards IMDS.{server}"
            ),
            case.absent_everywhere().ok()?,
        ),
    };
    if came_in && redirected.is_some_and(|to| to.address.is_loopback() || case.host.addresses.contains(&to.address)) {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (The answer came in from outside: a later SYN may have gone to IMDS after all.)");
    }
    verdict.remedy = case.redirects();
    verdict.remedy.push(format!("ip route get {}", exchange.endpoint.address));
    verdict.remedy.push("ss -ltnp".to_owned());
    verdict.caution = Some(
        "A metadata proxy (kube2iam, kiam, an ECS or test stand-in) does this on purpose; then the hop limit does not \
                       matter for its clients, and the credentials are those that it chooses to give."
            .to_owned(),
    );
    verdict.path = case.path(None);
    Some(verdict)
}
