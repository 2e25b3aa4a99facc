//! Was a response dropped where it was forwarded, its TTL used up?
//!
//! Told apart from a firewall (another function drops) and from a slow IMDS (nothing came in).

use super::drops::{is_lowered, spent_at_program};
use super::programs::Program;
use super::{Case, Confidence, Finding, Rule, Severity, Spent, Verdict, spent};
use crate::coverage::Absent;
use crate::exchange::imds::is_success;
use crate::exchange::{Imds, Moment};
use crate::journey::{Dropped, Fate, Hop, Journey};
use crate::net::{Direction, Heading, Netns, Timestamp, Ttl};
use crate::printable::shell_word;

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

/// Was a packet of the response lost before?
fn lost_before(case: &Case<'_>) -> bool {
    case.exchange.inward.as_ref().is_some_and(|travel| travel.fate != Fate::Delivered)
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let Moment::Lost(journey) = case.moment else { return None };
    // Its client had those bytes.
    if journey.needless {
        return None;
    }
    // Nothing but an acknowledgement or an end, and no part of the response was lost before.
    if !journey.carries() && !lost_before(case) {
        return None;
    }
    let needed = case.hop_limit.needed.filter(|needed| needed.0 <= MAX_HOP_LIMIT);
    // Numbers by which it would have arrived: they are not those of this way.
    let is_enough = matches!((case.hop_limit.observed, needed), (Some(observed), Some(needed)) if observed >= needed);
    // What left by an interface towards IMDS was sent elsewhere, with the TTL that it had.
    let left = |last: &Hop| !case.rests_on_capture() && case.host.is_uplink(last, Direction::Egress);
    let lost = match spent(journey) {
        Some(Spent::Dropped(dropped) | Spent::Unnamed(dropped)) if is_lowered(&journey.hops, dropped, needed) => {
            return None;
        }
        Some(Spent::Dropped(dropped)) => Lost::Kernel(dropped),
        Some(Spent::Unnamed(dropped)) => Lost::Unnamed(dropped),
        Some(Spent::Vanished) if is_enough || journey.hops.last().is_some_and(left) => return None,
        Some(Spent::Vanished) => Lost::Vanished(case.absent().ok()?),
        None => by_program(case, journey)?,
    };
    // A capture may itself have missed a packet; it does not miss all copies of one.
    let copies = case.exchange.inward.as_ref().map_or(0, |travel| travel.copies);
    let weight = match copies {
        _ if !case.rests_on_capture() => 1,
        0 | 1 => return None,
        2 => 2,
        _ => 1,
    };
    // EC2 sets the hop limit of responses to token requests that it grants, and of nothing else.
    let is_granted = case.exchange.came_status().is_none_or(is_success);
    let is_token = case.exchange.imds() == Some(Imds::Token) && case.exchange.responded && is_granted;
    let is_other = !is_token;
    let (observed, needed) = (case.hop_limit.observed, needed.filter(|_| !is_other));
    let limits = match (observed.filter(|_| !is_enough && !is_other), needed.filter(|_| !is_enough)) {
        (Some(Ttl(observed)), Some(Ttl(needed))) => {
            format!(": the instance's hop limit is {observed}, this client needs {needed}")
        }
        (Some(Ttl(observed)), None) => format!(": the instance's hop limit is {observed}"),
        (None, Some(Ttl(needed))) => format!(": this client needs a hop limit of {needed}"),
        (None, None) => String::new(),
    };
    // By the numbers it would have arrived; or the limit is not on what it answers; or with what TTL it came to this host was not seen.
    let came_in = journey.hops.first().is_some_and(|hop| hop.hook.direction == Direction::Ingress);
    let is_doubtful = is_enough || is_other || !came_in;
    let absent = if let Lost::Vanished(absent) = &lost { Some(*absent) } else { None };
    let Told { how, confidence, drop, cause } = lost.told(case, journey, is_doubtful)?;
    let what = if is_token { "The token response" } else { "A response" };
    let did = if is_token { case.what_the_client_did() } else { String::new() };
    let last = journey.hops.last().map(|hop| &hop.hook.interface);
    let (remedy, lasting) = match needed.filter(|_| !is_enough) {
        Some(Ttl(needed)) => {
            let (now, lasting) = raise_to(needed, case.instance());
            (Some(now), Some(lasting))
        }
        None if is_other => {
            // A capture may not name its interfaces, and it may be of another machine: what is called if2 in it is not called so there.
            let interface = if case.rests_on_capture() { "any".to_owned() } else { shell_word(&last?.name) };
            let from = case.exchange.endpoint.address;
            (Some(format!("tcpdump -nvi {interface} src host {from} and tcp")), None)
        }
        None => (None, None),
    };
    let caution = match case.exchange.imds() {
        _ if is_token => CAUTION,
        None => CAUTION_OF_UNSEEN,
        Some(_) => CAUTION_OF_OTHERS,
    };
    Some(Verdict {
        // Copies whose drop was seen and copies that vanished in the same namespace are one finding.
        cause: cause.0.to_string(),
        confidence,
        absent,
        weight,
        last: None,
        drop,
        waited: None,
        path: case.path(Some(journey)),
        summary: format!("{what} to {} {how}{limits}.{did}", case.subject()),
        remedy: remedy.into_iter().collect(),
        lasting,
        caution: Some(caution.to_owned()),
    })
}

const CAUTION: &str = "A higher hop limit lets every container that is as many forwards away reach the instance's role: use the smallest that works and \
     keep tokens required. If several findings name a limit, set the largest; never lower the one that is set. Without raising it: run this one container with host networking, or give the job a role of its own (OIDC, \
     ECS task role, EKS Pod Identity).";
const CAUTION_OF_UNSEEN: &str = "What it answers was not seen. If that asked for a token, its TTL is the hop limit of the instance; of other \
     responses something between IMDS and this host sets it.";
const CAUTION_OF_OTHERS: &str = "The hop limit of the instance is set for responses to token requests alone: with what TTL others come in the command shows, and \
     something between IMDS and this host sets it.";

/// What raises the hop limit: at once, and for instances to come.
fn raise_to(needed: u8, instance: &str) -> (String, String) {
    let now = format!(
        "aws ec2 modify-instance-metadata-options --instance-id {instance} --http-put-response-hop-limit {needed} \
         --http-endpoint enabled"
    );
    let lasting = format!(
        "Terraform (aws_instance, aws_launch_template): metadata_options {{ http_endpoint = \"enabled\", http_tokens = \
         \"required\", http_put_response_hop_limit = {needed} }}. Launch template: \
         {{\"MetadataOptions\":{{\"HttpEndpoint\":\"enabled\",\"HttpTokens\":\"required\",\"HttpPutResponseHopLimit\":{needed}}}}}; \
         it changes new instances only. Both require tokens: leave \"optional\" where clients that ask without one are to go on."
    );
    (now, lasting)
}

/// What a loss says.
struct Told {
    /// Behind the subject: "was dropped in ip_forward with TTL 1 on ens5".
    how: String,
    confidence: Confidence,
    drop: Option<Dropped>,
    /// Where.
    cause: Netns,
}

impl Lost<'_> {
    /// Is not certain where it `is_doubtful` that the TTL was the instance's.
    fn told(self, case: &Case<'_>, journey: &Journey, is_doubtful: bool) -> Option<Told> {
        let last = journey.hops.last();
        let interface = |dropped: &Dropped| {
            let known = dropped.drop.interface.as_ref().or(last.map(|hop| &hop.hook.interface));
            known.map(|interface| interface.name.clone())
        };
        let on = |dropped: &Dropped| interface(dropped).map(|name| format!(" on {name}")).unwrap_or_default();
        let of = |dropped: &Dropped, how, is_sure| Told {
            how,
            confidence: if is_sure { Confidence::Certain } else { Confidence::Likely },
            drop: Some(dropped.clone()),
            cause: dropped.drop.netns,
        };
        Some(match self {
            Lost::Kernel(dropped) => {
                let how =
                    format!("was dropped in {} with TTL {}{}", dropped.drop.function(), dropped.ttl.0, on(dropped));
                of(dropped, how, !is_doubtful && !case.exchange.is_aside(dropped, case.who.netns))
            }
            Lost::Unnamed(dropped) => {
                let how = format!(
                    "was dropped with TTL {}{} for the reason {} (inferred: the kernel names the function only with CAP_SYSLOG, and a \
                     spent TTL is the one known cause of that reason at that TTL)",
                    dropped.ttl.0,
                    on(dropped),
                    dropped.drop.reason.as_deref().unwrap_or_default(),
                );
                of(dropped, how, false)
            }
            Lost::Program(program, dropped) => {
                let how = format!(
                    "was dropped in {} with TTL {} by {}, which left it none for the way ahead",
                    dropped.drop.function(),
                    dropped.ttl.0,
                    program.gate.told(&interface(dropped).unwrap_or_default()),
                );
                // Others of this connection passed there: those that had a TTL left.
                let passed = case.exchange.handshake && case.exchange.asked.is_some() && program.named;
                of(dropped, how, passed && !is_doubtful)
            }
            Lost::Vanished(_) => {
                let Hop { hook, ttl, .. } = last?;
                let passed = match hook.direction {
                    Direction::Ingress => "came in on",
                    Direction::Egress => "went out on",
                };
                let how = format!(
                    "{passed} {} with TTL {} and was not seen again{} (inferred: the drop itself was not seen)",
                    hook.interface.name,
                    ttl.0,
                    if case.rests_on_capture() { ", nor acknowledged" } else { "" }
                );
                Told { how, confidence: Confidence::Likely, drop: None, cause: hook.interface.netns }
            }
        })
    }
}

/// The run ends: what was said of a hop limit that has been raised since needs no command, which might lower it again. Gives whether it was.
pub(super) fn settle(finding: &mut Finding, latest: Option<(Timestamp, Ttl)>) -> bool {
    let Some((_, limit)) = latest.filter(|(at, _)| finding.rule == RULE.id && finding.last < *at) else { return false };
    let is_enough = finding.hop_limit.needed.is_some_and(|needed| needed <= limit);
    if !is_enough || finding.says.remedy.is_empty() {
        return false;
    }
    finding.says.remedy.clear();
    finding.says.lasting = None;
    let more = format!(
        " (Later a token response came with TTL {}: the hop limit has been raised, and is enough for it now.)",
        limit.0
    );
    finding.says.summary.push_str(&more);
    true
}
