//! Was an answer dropped because the way back to IMDS is another than the one that it came by?

use super::drops::{Cause, failed};
use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::net::Heading;
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "reverse-path",
    severity: Severity::Error,
    explain: "Reverse-path filtering (rp_filter) dropped a packet of an exchange that got no answer: its way back would be by \
              another interface.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let failed = failed(case).filter(|failed| failed.cause == Cause::ReversePath)?;
    let drop = &failed.dropped.drop;
    let interface = drop.interface.as_ref().map_or("<interface>", |interface| &*interface.name);
    let subject = case.subject();
    let what = failed.packet(&subject);
    let (back, source) = match failed.heading {
        Heading::FromImds => ("to IMDS", case.exchange.endpoint.address),
        Heading::ToImds => ("to the client", case.who.address?),
    };
    let mut verdict = Verdict::certain(
        format!("{:?} {interface} {}", failed.heading, drop.netns.0),
        format!(
            "{what} was dropped by reverse-path filtering on {interface}: by the routes of {} the way back {back} does not \
             lead out by that interface, {}.",
            case.whose(drop.netns),
            failed.so()
        ),
    );
    if drop.reason.is_none() {
        verdict.confidence = Confidence::Likely;
        verdict.summary += " (This kernel gives no reasons; it was dropped where its route was looked for.)";
    }
    let enter = case.enter(drop.netns);
    // With slashes: an interface's name may have dots.
    let setting = shell_word(&format!("net/ipv4/conf/{interface}/rp_filter=2"));
    verdict.remedy = vec![
        format!("{enter}ip route get {source}"),
        format!("{enter}ip rule show"),
        format!("{enter}sysctl -w {setting}"),
    ];
    verdict.caution = Some("2 is loose filtering: a packet is let in if any interface leads back. It gives up some protection against \
                       forged source addresses on that interface; a route that leads back by it needs no such change. The larger \
                       of conf.all and conf.INTERFACE holds."
        .to_owned());
    Some(failed.concluded(verdict, case))
}
