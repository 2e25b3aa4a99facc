//! Did this host drop it because it does not forward at all?
//!
//! Told apart from `no-route`, where the way is what is missing: the kernel drops both in one function.

use super::drops::{Cause, Failed, failed};
use super::{Case, Rule, Severity, Verdict};
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "not-forwarding",
    severity: Severity::Error,
    explain: "A network namespace on the way does not forward: net.ipv4.ip_forward, net.ipv6.conf.all.forwarding or an interface's own \
              setting is 0.",
    examine,
};

/// What switching it on costs over IPv6 (`accept_ra` in the kernel's ip-sysctl).
const IPV6: &str = "If the second command shows a route, it goes with the third: a host that forwards keeps no default route from router \
                    advertisements, unless accept_ra of that interface is 2 (`sysctl -w net.ipv6.conf.<interface>.accept_ra=2`), and loses \
                    its IPv6. And it passes on everything that the FORWARD chain lets through, not only what goes to IMDS: `ip6tables \
                    -vnL FORWARD` shows its policy. It may be off on purpose.";

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let failed = failed(case).filter(|failed| failed.cause == Cause::NotForwarding)?;
    let drop = &failed.dropped.drop;
    let (enter, whose) = (case.enter(drop.netns), case.whose(drop.netns));
    let interface = drop.interface.as_ref().map(|interface| &*interface.name);
    let Settings { all, own } = settings(case, &failed, interface);
    let why = match (&all, &own) {
        (Some(all), None) => format!("{all} is 0"),
        (None, Some(own)) => format!("{own} is 0"),
        (all, own) => {
            let names: Vec<&str> = all.iter().chain(own).map(String::as_str).collect();
            format!("{} is 0", names.join(" or "))
        }
    };
    let by = failed.on().replacen(" on ", " what comes in by ", 1);
    let mut verdict = Verdict::certain(
        format!("{:?} {} {}", failed.heading, interface.unwrap_or_default(), drop.netns.0),
        format!(
            "{} was dropped in {}{}: {whose} does not forward{by} ({why}).",
            failed.packet(&case.subject()),
            drop.function(),
            failed.on(),
        ),
    );
    let keys: Vec<String> = all.into_iter().chain(own).map(|key| shell_word(&key)).collect();
    verdict.remedy.push(format!("{enter}sysctl {}", keys.join(" ")));
    if case.exchange.endpoint.address.is_ipv6() {
        verdict.remedy.push(format!("{enter}ip -6 route show default proto ra"));
    }
    verdict.remedy.extend(keys.iter().map(|key| format!("{enter}sysctl -w {key}=1")));
    verdict.lasting = Some(format!(
        "A file in /etc/sysctl.d with {}: Docker switches forwarding on when it starts, and `sysctl --system` may switch it off again.",
        keys.iter().map(|key| format!("`{key} = 1`")).collect::<Vec<_>>().join(" and ")
    ));
    verdict.caution = Some("With forwarding on, this host passes on everything that the FORWARD chain of its firewall lets through, not only \
                       what goes to IMDS: `iptables -vnL FORWARD` shows its policy. It may be off on purpose; then containers reach \
                       nothing outside the host."
        .to_owned());
    if case.exchange.endpoint.address.is_ipv6() {
        verdict.caution = Some(IPV6.to_owned());
    }
    Some(failed.concluded(verdict, case))
}

/// The settings that are 0, or may be: `all` speaks for the namespace, `own` for the interface.
struct Settings {
    all: Option<String>,
    own: Option<String>,
}

fn settings(case: &Case<'_>, failed: &Failed<'_>, interface: Option<&str>) -> Settings {
    if case.exchange.endpoint.address.is_ipv6() {
        return Settings { all: Some("net.ipv6.conf.all.forwarding".to_owned()), own: None };
    }
    let all = Some("net.ipv4.ip_forward".to_owned());
    // With slashes: a name may have dots.
    let own = interface.map(|name| format!("net/ipv4/conf/{name}/forwarding"));
    let known = (failed.dropped.drop.netns == case.host.netns).then_some(&case.host.forwarding);
    match known.and_then(|known| known.v4) {
        // Switching it on switches it on for every interface.
        Some(false) => Settings { all, own: None },
        Some(true) if own.is_some() => Settings { all: None, own },
        Some(true) | None => Settings { all, own },
    }
}
