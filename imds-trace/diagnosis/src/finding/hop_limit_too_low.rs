//! Was a response dropped where it was forwarded, its TTL used up?
//!
//! Told apart from a firewall (another function drops) and from a slow IMDS (nothing came in).

use super::drops::spent_at_program;
use super::programs::Program;
use super::{Case, Confidence, Rule, Severity, Spent, Verdict, spent};
use crate::coverage::Absent;
use crate::exchange::{Imds, Moment};
use crate::journey::{Dropped, Fate, Hop, Journey};
use crate::net::{Direction, Heading, Ttl};

/// The rule.
pub const RULE: Rule = Rule {
    id: "hop-limit-too-low",
    severity: Severity::Error,
    explain: "A token response was dropped where a network namespace forwards it, because its TTL, which is the instance's \
              HttpPutResponseHopLimit, was used up.",
    examine,
};

/// HttpPutResponseHopLimit can be set to 1 up to 64.
const MAX_HOP_LIMIT: u8 = 64;

/// How a response was lost to its TTL.
enum Lost<'a> {
    /// The kernel's own forwarding dropped it.
    Kernel(&'a Dropped),
    /// The same, in a function without a name: by its reason.
    Unnamed(&'a Dropped),
    /// A program that forwards did.
    Program(Program, &'a Dropped),
    /// It came in and was not seen again, where it would have been.
    Vanished(Absent),
}

fn by_program<'a>(case: &Case<'_>, journey: &'a Journey) -> Option<Lost<'a>> {
    let Fate::Dropped(dropped) = &journey.fate else { return None };
    let is_answer = journey.heading == Heading::FromImds && journey.carries();
    spent_at_program(case, &journey.hops, dropped).filter(|_| is_answer).map(|program| Lost::Program(program, dropped))
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let Moment::Lost(journey) = case.moment else { return None };
    let needed = case.hop_limit.needed.filter(|needed| needed.0 <= MAX_HOP_LIMIT);
    // Numbers by which it would have arrived: they are not those of this way.
    let is_enough = matches!((case.hop_limit.observed, needed), (Some(observed), Some(needed)) if observed >= needed);
    // What left by an interface towards IMDS was sent elsewhere, with the TTL that it had.
    let left = |last: &Hop| !case.rests_on_capture() && case.host.is_uplink(last, Direction::Egress);
    let lost = match spent(journey) {
        Some(Spent::Dropped(dropped)) => Lost::Kernel(dropped),
        Some(Spent::Unnamed(dropped)) => Lost::Unnamed(dropped),
        Some(Spent::Vanished) if is_enough || journey.hops.last().is_some_and(left) => return None,
        Some(Spent::Vanished) => Lost::Vanished(case.absent().ok()?),
        None => by_program(case, journey)?,
    };
    let needed = needed.filter(|_| !is_enough);
    // A capture may itself have missed a packet; it does not miss all copies of one.
    let copies = case.exchange.inward.as_ref().map_or(0, |travel| travel.copies);
    let weight = match copies {
        _ if !case.rests_on_capture() => 1,
        0 | 1 => return None,
        2 => 2,
        _ => 1,
    };
    let subject = case.subject();
    let limits = match (case.hop_limit.observed, needed) {
        (Some(Ttl(observed)), Some(Ttl(needed))) => {
            format!(": the instance's hop limit is {observed}, this client needs {needed}")
        }
        (Some(Ttl(observed)), None) => format!(": the instance's hop limit is {observed}"),
        (None, Some(Ttl(needed))) => format!(": this client needs a hop limit of {needed}"),
        (None, None) => String::new(),
    };
    let is_token = case.exchange.imds() == Some(Imds::Token);
    let what = if is_token { "The token response" } else { "A response" };
    let last = journey.hops.last().map(|hop| &hop.hook.interface);
    let on = |dropped: &Dropped| {
        let interface = dropped.drop.interface.as_ref().or(last);
        interface.map(|interface| format!(" on {}", interface.name)).unwrap_or_default()
    };
    let (confidence, drop, cause, how) = match lost {
        Lost::Kernel(dropped) => {
            let how = format!("was dropped in {} with TTL {}{}", dropped.drop.function(), dropped.ttl.0, on(dropped));
            (Confidence::Certain, Some(dropped.clone()), dropped.drop.netns, how)
        }
        Lost::Unnamed(dropped) => {
            let how = format!(
                "was dropped with TTL {}{} for the reason {} (inferred: the kernel names the function \
                 only with CAP_SYSLOG, and a spent TTL is the one known cause of that reason at that TTL)",
                dropped.ttl.0,
                on(dropped),
                dropped.drop.reason.as_deref().unwrap_or_default(),
            );
            (Confidence::Likely, Some(dropped.clone()), dropped.drop.netns, how)
        }
        Lost::Program(program, dropped) => {
            let interface = dropped.drop.interface.as_ref().or(last).map(|interface| &*interface.name);
            let how = format!(
                "was dropped in {} with TTL {} by {}, which left it none for the way ahead",
                dropped.drop.function(),
                dropped.ttl.0,
                program.gate.told(interface.unwrap_or_default()),
            );
            // Others of this connection passed there: those that had a TTL left.
            let passed = case.exchange.handshake && case.exchange.asked.is_some() && program.named;
            let confidence = if passed { Confidence::Certain } else { Confidence::Likely };
            (confidence, Some(dropped.clone()), dropped.drop.netns, how)
        }
        Lost::Vanished(_) => {
            let last = last?;
            let passed = match journey.hops.last()?.hook.direction {
                Direction::Ingress => "came in on",
                Direction::Egress => "went out on",
            };
            let how = format!(
                "{passed} {} with TTL {} and was not seen again{} (inferred: the drop itself was not seen)",
                last.name,
                journey.hops.last()?.ttl.0,
                if case.rests_on_capture() { ", nor acknowledged" } else { "" }
            );
            (Confidence::Likely, None, last.netns, how)
        }
    };
    let instance = case.instance();
    let did = if is_token { case.what_the_client_did() } else { String::new() };
    let lasting = needed.map(|Ttl(needed)| {
        format!(
            "Terraform (aws_instance, aws_launch_template): metadata_options {{ http_endpoint = \"enabled\", http_tokens = \
             \"required\", http_put_response_hop_limit = {needed} }}. Launch template: \
             {{\"MetadataOptions\":{{\"HttpEndpoint\":\"enabled\",\"HttpTokens\":\"required\",\"HttpPutResponseHopLimit\":{needed}}}}}; \
             it changes new instances only."
        )
    });
    let remedy = needed.map(|Ttl(needed)| {
        format!(
            "aws ec2 modify-instance-metadata-options --instance-id {instance} --http-put-response-hop-limit {needed} \
             --http-endpoint enabled"
        )
    });
    Some(Verdict {
        // Copies whose drop was seen and copies that vanished in the same namespace are one finding.
        cause: cause.0.to_string(),
        confidence,
        weight,
        last: None,
        drop,
        waited: None,
        path: case.path(Some(journey)),
        summary: format!("{what} to {subject} {how}{limits}.{did}"),
        remedy: remedy.into_iter().collect(),
        lasting,
        caution: Some(
            "A higher hop limit lets every container that is as many forwards away reach the instance's role: use the \
                  smallest that works and keep tokens required. Without raising it: run this one container with host \
                  networking, or give the job a role of its own (OIDC, ECS task role, EKS Pod Identity)."
                .to_owned(),
        ),
    })
}
