//! Did a connect fail because its network namespace had no local port left?
//!
//! Told apart from a gateway that does not answer: there the socket got a port, and no packet of it was seen. Cannot know who holds the
//! ports.

use super::{Case, Rule, Severity, Verdict, capitalised};

/// The rule.
pub const RULE: Rule = Rule {
    id: "no-port",
    severity: Severity::Error,
    explain: "connect() failed with EADDRNOTAVAIL: every local port that may be used towards IMDS was in use.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.is_attempt())?;
    if !case.who.has_no_port {
        return None;
    }
    let endpoint = exchange.endpoint;
    // A port that the kernel was to choose fails without leaving the error in the socket.
    let own = if case.who.error.is_some() { ", or the one that it had bound itself to," } else { "" };
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        "port",
        capitalised(format!(
            "{subject} called connect() to {endpoint} and its socket got no local port, so no packet was sent: every port of the client's \
             network namespace that may be used towards IMDS{own} was in use (EADDRNOTAVAIL)."
        )),
    );
    let enter = case.who.netns.map(|netns| case.enter(netns)).unwrap_or_default();
    verdict.remedy = vec![
        format!("{enter}sysctl net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports"),
        format!("{enter}ss -tan dst {}", endpoint.address),
    ];
    verdict.caution = Some("The kernel's own range is 32768 to 60999: a narrower one can be widened with `sysctl -w net.ipv4.ip_local_port_range`, for IPv6 \
                       as well. With that range or a wider one, something opens connections faster than they end: a port stays in use for a minute after a connection that \
                       the client closed (TIME_WAIT). Keep connections open, and cache tokens and credentials."
        .to_owned());
    Some(verdict)
}
