//! Does a request look as if somebody outside had made its client send it?
//!
//! A server that fetches what it is told to (server-side request forgery) or a proxy that forwards to anywhere hands its role to whoever
//! asks it. The request then bears marks that no client of IMDS makes: each is a sign, none is a proof.

use super::{Case, Confidence, Rule, Severity, Verdict, capitalised};
use crate::exchange::imds::is_foreign;
use crate::exchange::software::is_browser;
use crate::observation::RequestHead;

/// The rule.
pub const RULE: Rule = Rule {
    id: "forged-request",
    severity: Severity::Warning,
    explain: "A request bears signs of a proxy or of server-side request forgery: X-Forwarded-For, Via, a foreign Host, an absolute URL, or \
              a browser's User-Agent.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed()?;
    let request = exchange.request.as_ref()?;
    if request.other_cloud || is_foreign(&request.path) {
        return None;
    }
    let signs = signs(request);
    let (cause, _) = signs.first()?;
    let said: Vec<&str> = signs.iter().map(|(_, sign)| *sign).collect();
    let came = match exchange.status() {
        Some(status) if exchange.brought() => format!("and was answered with {status}"),
        Some(status) => format!("and was refused with {status}"),
        None => "and is not known to have been answered".to_owned(),
    };
    let subject = case.subject();
    let line = case.request_line();
    let mut verdict = Verdict::certain(
        *cause,
        capitalised(format!(
            "{subject} asked {line} in a way that no client of IMDS does ({}), {came}: it may have been made to by somebody outside.",
            said.join("; ")
        )),
    );
    // Whoever writes a client may write what he likes.
    verdict.confidence = Confidence::Likely;
    verdict.path = case.path(None);
    verdict.caution = Some(
        "Look at what this process fetches, and for whom. Requiring tokens (IMDSv2) stops most forged requests: a forger must \
                       send a PUT with a header of its own, and IMDS issues no token to a request with X-Forwarded-For."
        .to_owned(),
    );
    Some(verdict)
}

/// The signs that a request bears, each with what it is called.
fn signs(request: &RequestHead) -> Vec<(&'static str, &'static str)> {
    let browser = request.user_agent.as_deref().is_some_and(is_browser);
    [
        (request.forwarded_for, ("forwarded", "it has an X-Forwarded-For header")),
        (request.via, ("via", "it has a Via header")),
        (request.foreign_host, ("host", "its Host header names something else")),
        (request.absolute, ("absolute", "it asks for an absolute URL, as a proxy is asked")),
        (browser, ("browser", "its User-Agent is a browser's")),
    ]
    .into_iter()
    .filter_map(|(is, sign)| is.then_some(sign))
    .collect()
}
