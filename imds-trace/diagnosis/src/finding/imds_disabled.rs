//! Is the metadata endpoint switched off?

use super::{Case, Confidence, Rule, Severity, Verdict, capitalised};
use crate::exchange::{Exchange, Imds};

/// The rule.
pub const RULE: Rule = Rule {
    id: "imds-disabled",
    severity: Severity::Error,
    explain: "403 to everything: the instance's metadata endpoint is disabled.",
    examine,
};

/// There is one.
pub(super) const CAUSE: &str = "403";

/// Does an answer with this status show that the endpoint is not switched off? One that asks to come back later does not.
pub(super) fn shows_open(status: u16) -> bool {
    !matches!(status, 403 | 429 | 500..)
}

/// Does this exchange's request explain a 403 to it?
pub(super) fn has_reason(exchange: &Exchange) -> bool {
    let Some(request) = &exchange.request else { return true };
    // What proxies add.
    let is_odd = request.via || request.absolute || request.foreign_host;
    match exchange.imds() {
        _ if is_odd => true,
        Some(Imds::Token) => request.forwarded_for || request.path != "/latest/api/token",
        Some(Imds::V1 | Imds::V2) => false,
        Some(Imds::Other) | None => true,
    }
}

/// A refusal with no reason of its own, where nothing else was answered shortly before or after.
pub(super) fn is_disabled(case: &Case<'_>) -> bool {
    let exchange = case.exchange;
    exchange.status() == Some(403) && !has_reason(exchange) && !case.history.is_open(exchange)
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.afterwards().filter(|_| is_disabled(case))?;
    let voice = case.speaks_for_instance()?;
    let subject = case.subject();
    let instance = case.instance();
    let mut verdict = Verdict::certain(
        CAUSE,
        capitalised(format!(
            "{subject}{} asked {} and got 403, and nothing else was let in: this instance's metadata endpoint is disabled \
             (HttpEndpoint=disabled).",
            case.hint(),
            case.request_line()
        )),
    );
    if exchange.imds() != Some(Imds::Token) {
        // Somebody may refuse this read alone.
        verdict.confidence = Confidence::Likely;
    }
    if exchange.request.as_ref().is_some_and(|request| request.cut) {
        // What proxies add may be behind the cut.
        verdict.confidence = Confidence::Likely;
    }
    if exchange.answers_another {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (An answer came in, too, that lets in whoever had its port before.)");
    }
    if case.history.is_unread(exchange) {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (Not all that was asked before, or answered, could be read.)");
    }
    if case.history.was_open(exchange) {
        verdict.confidence = Confidence::Likely;
        verdict
            .summary
            .push_str(" (It was not when it answered others before: it was switched off since, or refuses this one.)");
    }
    verdict.remedy = vec![
        case.describe_options(),
        format!("aws ec2 modify-instance-metadata-options --instance-id {instance} --http-endpoint enabled"),
    ];
    verdict.lasting = Some(
        "Terraform: http_endpoint = \"enabled\" in metadata_options; a launch template's MetadataOptions changes new instances only."
            .to_owned(),
    );
    verdict.caution = Some("It may be off on purpose. With it on, every process of the instance that reaches IMDS can take the instance's \
                       role, without a token too unless tokens are required (the first command shows it); a job with a role of its own (OIDC, ECS task role, EKS Pod Identity) needs no IMDS."
        .to_owned());
    Some(voice.temper(verdict).resting_on(case.absent_before()))
}
