//! Did a request leave with an address that is not this host's, so that no answer can find back?

use super::silence::{Source, Unanswered, source, unanswered};
use super::{Case, Rule, Severity, Verdict};
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "not-masqueraded",
    severity: Severity::Error,
    explain: "A request left the host with a source address of a network that ends on this host, and nothing came back.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let Unanswered { exchange, last, waited, absent, what } = unanswered(case)?;
    let Source::Inner(address) = source(case, last) else { return None };
    let interface = &last.hook.interface.name;
    let mut verdict = Verdict::likely(
        format!("{address}"),
        format!(
            "{what} left by {interface} with the source address {address}, which is one of a network on this host and none of \
             the host's own, and nothing was seen coming back in {:.1} s: EC2 answers only addresses of the network interface.",
            waited.as_secs_f64()
        ),
        absent,
    );
    verdict.path = case.path(None);
    let (iptables, endpoint) = (case.iptables(), exchange.endpoint.address);
    let bits = if endpoint.is_ipv4() { 32 } else { 128 };
    verdict.remedy = vec![
        format!("{iptables} -t nat -vnL POSTROUTING --line-numbers"),
        format!(
            "{iptables} -t nat -I POSTROUTING 1 -s {address}/{bits} -d {endpoint}/{bits} -o {} -j MASQUERADE",
            shell_word(interface)
        ),
    ];
    verdict.caution = Some("Docker masquerades its bridges unless told not to (daemon option --ip-masq=false, network option \
                       com.docker.network.bridge.enable_ip_masquerade=false), or unless a reload of the firewall removed its \
                       rules: restarting Docker puts them back. The rule above is gone after a reboot."
        .to_owned());
    Some(verdict)
}
