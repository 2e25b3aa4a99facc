//! Was a token request refused for how it was made?
//!
//! Told apart from `imds-disabled`, where everything is refused.

use super::{Case, Rule, Severity, Verdict, capitalised};
use crate::exchange::Imds;
use crate::exchange::imds::asks_for_token;

/// The rule.
pub const RULE: Rule = Rule {
    id: "token-request-refused",
    severity: Severity::Error,
    explain: "A token request was refused for how it was made (400, 403, 404, 405, 417): its lifetime header is missing or wrong, it came \
              through a proxy, it waits for 100 Continue, or it asks in the wrong place or way.",
    examine,
};

/// The only path on which tokens are issued.
const ISSUES: &str = "/latest/api/token";
/// Lifetimes that IMDS grants, seconds.
const LIFETIMES: std::ops::RangeInclusive<u32> = 1..=21_600;
/// The status that says that an `Expect` cannot be met (RFC 9110 section 15.5.18).
const EXPECTATION_FAILED: u16 = 417;
/// Where no proxy is to be asked.
const ENDPOINTS: &str = "169.254.169.254,fd00:ec2::254";

fn examine(case: &Case<'_>) -> Option<Verdict> {
    // A 403 may be one to everything, which shows a little later.
    let is_final = case.exchange.status() != Some(403) || super::imds_disabled::has_reason(case.exchange);
    let exchange = if is_final { case.closed()? } else { case.afterwards()? };
    let request = exchange.request.as_ref()?;
    let status = exchange.status()?;
    let right = match status {
        429 => false,
        405 => asks_for_token(&request.path),
        400..500 => exchange.imds() == Some(Imds::Token),
        _ => false,
    };
    if !right || super::imds_disabled::is_disabled(case) {
        return None;
    }
    let voice = case.speaks_for_instance()?;
    let (cause, why) = if request.method != "PUT" {
        ("method", format!("a token is asked for with PUT, not with {}", request.method))
    } else if request.forwarded_for {
        ("forwarded", "it carried X-Forwarded-For: IMDS issues no token through a proxy".to_owned())
    } else if status == EXPECTATION_FAILED {
        // The status says it, also of a request that was not seen whole.
        ("expect", "it carried Expect: 100-continue, which IMDS does not accept".to_owned())
    } else if request.path != ISSUES {
        ("path", format!("tokens are issued at {ISSUES} only"))
    } else {
        match request.requested_ttl {
            None if request.cut => ("unknown", "what was seen of the request does not show why".to_owned()),
            None => (
                "lifetime",
                "it had no X-aws-ec2-metadata-token-ttl-seconds header, or one that IMDS does not take: it grants 1 to 21600".to_owned(),
            ),
            Some(seconds) if !LIFETIMES.contains(&seconds) => {
                ("lifetime", format!("it asked for {seconds} s, and IMDS grants 1 to 21600"))
            }
            Some(_) => ("unknown", "nothing in the request shows why".to_owned()),
        }
    };
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        format!("{status} {cause}"),
        capitalised(format!("{subject}{} asked {} and got {status}: {why}.", case.hint(), case.request_line())),
    );
    if cause == "forwarded" {
        verdict.remedy =
            ["NO_PROXY", "no_proxy"].map(|name| format!("export {name}=\"${{{name}:+${name},}}{ENDPOINTS}\"")).to_vec();
        verdict.caution = Some("Set them where the client runs; most HTTP libraries honour one of the two.".to_owned());
    } else if cause == "expect" {
        verdict.remedy = vec![
            "curl -sS -o /dev/null -w '%{http_code}\\n' -X PUT -H 'Expect:' -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600' \
             http://169.254.169.254/latest/api/token"
                .to_owned(),
        ];
        verdict.caution = Some("This is a right one, which shows the status and throws the token away. libcurl adds the header to a PUT that \
                           sends data from a stream (curl -T); an empty Expect header leaves it out (CURLOPT_HTTPHEADER in code)."
            .to_owned());
    } else {
        verdict.remedy = vec![
            "curl -sS -o /dev/null -w '%{http_code}\\n' -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600' \
             http://169.254.169.254/latest/api/token"
                .to_owned(),
        ];
        verdict.caution = Some(
            "This is a right one, which shows the status and throws the token away. SDKs treat 400 as final and the \
                           others as a reason to ask without a token."
                .to_owned(),
        );
    }
    Some(voice.temper(verdict))
}
