//! Was a token request refused for how it was made?
//!
//! Told apart from `imds-disabled`, where everything is refused.

use super::{Case, Rule, Severity, Verdict, capitalised};
use crate::exchange::imds::TOKEN_PATH;
use crate::exchange::{Exchange, Imds};

/// The rule.
pub const RULE: Rule = Rule {
    id: "token-request-refused",
    severity: Severity::Error,
    explain: "400, 403, 404 or 405 to a token request: its lifetime header is missing or wrong, it came through a proxy, or it asks \
              in the wrong place or way.",
    examine,
};

/// The only path on which tokens are issued.
const ISSUES: &str = "/latest/api/token";
/// Lifetimes that IMDS grants, seconds.
const LIFETIMES: std::ops::RangeInclusive<u32> = 1..=21_600;

/// What EC2's IMDS calls itself.
const EC2: &str = "EC2ws";

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed()?;
    let request = exchange.request.as_ref()?;
    let status = exchange.status()?;
    let asks = exchange.imds() == Some(Imds::Token);
    let right = match status {
        400 | 403 | 404 => asks,
        405 => asks || request.path.ends_with(TOKEN_PATH),
        _ => false,
    };
    if !right || super::imds_disabled::is_disabled(case) {
        return None;
    }
    let (cause, why) = if request.method != "PUT" {
        ("method", format!("a token is asked for with PUT, not with {}", request.method))
    } else if request.forwarded_for {
        ("forwarded", "it carried X-Forwarded-For: IMDS issues no token through a proxy".to_owned())
    } else if request.path != ISSUES {
        ("path", format!("tokens are issued at {ISSUES} only"))
    } else {
        match request.requested_ttl {
            None if request.cut => {
                ("unknown", format!("what was seen of the request does not show why{}", whose(exchange)))
            }
            None => (
                "lifetime",
                "it had no X-aws-ec2-metadata-token-ttl-seconds header, or one that is not a number".to_owned(),
            ),
            Some(seconds) if !LIFETIMES.contains(&seconds) => {
                ("lifetime", format!("it asked for {seconds} s, and IMDS grants 1 to 21600"))
            }
            Some(_) => ("unknown", format!("nothing in the request shows why{}", whose(exchange))),
        }
    };
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        format!("{status} {cause}"),
        capitalised(format!("{subject}{} asked {} and got {status}: {why}.", case.hint(), case.request_line())),
    );
    if cause == "forwarded" {
        verdict.remedy =
            vec!["export NO_PROXY=169.254.169.254,fd00:ec2::254 no_proxy=169.254.169.254,fd00:ec2::254".to_owned()];
        verdict.caution = "Set them where the client runs; most HTTP libraries honour one of the two.".to_owned();
    } else {
        verdict.remedy = vec![
            "curl -sS -o /dev/null -w '%{http_code}\\n' -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600' \
             http://169.254.169.254/latest/api/token"
                .to_owned(),
        ];
        verdict.caution =
            "This is a right one, which shows the status and throws the token away. SDKs treat 400 as final and the \
                           others as a reason to ask without a token."
                .to_owned();
    }
    Some(verdict)
}

/// What the answering server calls itself, if that is not what EC2's does: other clouds' answer the same address.
fn whose(exchange: &Exchange) -> String {
    let server = exchange.response.as_ref().and_then(|response| response.server.as_deref());
    match server {
        Some(server) if server != EC2 => format!(", and the server calls itself {server}: this may be no EC2 instance"),
        _ => String::new(),
    }
}
