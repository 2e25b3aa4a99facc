//! Did a request leave this host, and did nothing come back?
//!
//! Told apart from drops on this host: there something came in, or nothing went out.

use super::silence::{Unanswered, foreign_source, unanswered};
use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "unanswered",
    severity: Severity::Error,
    explain: "A request left the host and nothing came back.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let Unanswered { exchange, last, waited, what } = unanswered(case)?;
    if foreign_source(case, last).is_some() {
        return None;
    }
    let seconds = waited.as_secs_f64();
    let interface = &last.hook.interface.name;
    let exceeded = case.host.rise_of_exceeded(interface);
    let why = match exceeded {
        Some(0) => {
            "The ENA driver counted no packet over the link-local allowance meanwhile: it was not for too many of them."
                .into()
        }
        Some(packets) => format!(
            "Meanwhile the ENA driver counted {packets} packets over the allowance for link-local services \
             (linklocal_allowance_exceeded): more than 1024 a second to IMDS, DNS and NTP together, and EC2 drops the rest."
        ),
        None => "The answer was lost before it reached this host, or never sent.".into(),
    };
    let mut verdict = Verdict::certain(
        if exchange.handshake { "request" } else { "connect" },
        format!("{what} was seen leaving by {interface} and nothing was seen coming back in {seconds:.1} s. {why}"),
    );
    // That nothing came is inferred from not seeing it.
    verdict.confidence = Confidence::Likely;
    verdict.path = case.path(None);
    // A capture may not know its interfaces' names.
    let named = if case.host.capture { "<interface>".to_owned() } else { shell_word(interface) };
    verdict.remedy = vec![format!("ethtool -S {named} | grep linklocal_allowance_exceeded"), case.describe_options()];
    if exceeded.is_some_and(|packets| packets > 0) {
        verdict.caution =
            "Ask less often: cache credentials and tokens (a token is good for up to six hours), and use a local DNS \
                           cache. The allowance is per network interface and cannot be raised."
                .to_owned();
    }
    Some(verdict)
}
