//! Did a request leave this host, and did nothing come back?
//!
//! Told apart from drops on this host: there something came in, or nothing went out.

use std::net::IpAddr;

use super::silence::{Source, Unanswered, source, unanswered};
use super::{Case, Rule, Severity, Verdict};
use crate::exchange::Refused;
use crate::net::Direction;
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "unanswered",
    severity: Severity::Error,
    explain: "A request left the host and nothing came back.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let Unanswered { exchange, last, waited, absent, what } = unanswered(case)?;
    let elsewhere = match source(case, last) {
        Source::Inner(_) => return None,
        Source::Elsewhere(address) => Some(address),
        Source::Known => None,
    };
    let seconds = waited.as_secs_f64();
    let interface = &last.hook.interface.name;
    let exceeded = case.host.rise_of_exceeded(interface);
    let why = match exceeded {
        Some(0) => {
            "When it was read last, the ENA driver's linklocal_allowance_exceeded had not risen since the trace began: nothing speaks for \
             EC2's link-local rate limit."
                .into()
        }
        Some(packets) => format!(
            "Since the trace began the ENA driver has counted {packets} packets over the allowance for link-local services \
             (linklocal_allowance_exceeded): more than 1024 a second to IMDS, DNS and NTP together, and EC2 drops the rest."
        ),
        None => "The answer was lost before it reached this host, or never sent.".into(),
    };
    // That of IPv6 is asked for by some routes; that of IPv4 no interface of EC2 has.
    let link_local = match last.client.address {
        IpAddr::V4(address) if address.is_link_local() => Some(address),
        _ => None,
    };
    let came = match exchange.lost_refusal {
        _ if exchange.hung_up => {
            format!("its connection was ended from the other side without an answer in {seconds:.1} s.")
        }
        Some(how) => {
            let no = if how == Refused::Reset { "a TCP reset" } else { "an ICMP error" };
            format!("what came back in {seconds:.1} s was {no}, which was dropped before it reached the client.")
        }
        None => format!("nothing was seen coming back in {seconds:.1} s. {why}"),
    };
    let seen = match last.hook.direction {
        Direction::Egress => "seen leaving by",
        Direction::Ingress => "last seen coming in by",
    };
    let mut verdict = Verdict::likely(
        if exchange.asked.is_some() { "request" } else { "connect" },
        format!("{what} was {seen} {interface} and {came}"),
        absent,
    );
    verdict.path = case.path(None);
    if let Some(source) = link_local {
        verdict.summary.push_str(&format!(
            " It left as {source}, a link-local address, as a DHCP client gives itself one: EC2 answers the addresses of the instance's \
             network interface alone."
        ));
    } else if let Some(address) = elsewhere {
        verdict.summary.push_str(&format!(
            " It left as {address}, which no interface of this host has: EC2 answers it if it is an address of the instance's network \
             interface (pods of the VPC CNI, a delegated prefix, macvlan), and else never."
        ));
    }
    // A capture may not know its interfaces' names.
    let named = if case.rests_on_capture() { "<interface>".to_owned() } else { shell_word(interface) };
    verdict.remedy = vec![format!("ethtool -S {named} | grep linklocal_allowance_exceeded"), case.describe_options()];
    if link_local.is_some() {
        verdict.remedy.push(format!("ip route get {}", exchange.endpoint.address));
    } else if let Some(address) = elsewhere {
        let filter = if address.is_ipv4() { "addresses.private-ip-address" } else { "ipv6-addresses.ipv6-address" };
        verdict.remedy.push(format!("aws ec2 describe-network-interfaces --filters Name={filter},Values={address}"));
    }
    if exceeded.is_some_and(|packets| packets > 0) {
        verdict.caution = Some(
            "Ask less often: cache credentials and tokens (a token is good for up to six hours), and use a local DNS \
                           cache. The allowance is per network interface and cannot be raised."
                .to_owned(),
        );
    }
    Some(verdict)
}
