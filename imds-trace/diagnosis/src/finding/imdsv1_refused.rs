//! Was a client refused because it never asked for a token?
//!
//! Told apart from a fallback, where it did ask and got none, and from detection: a client that asks for a token after it is refused.
//! Where it may have asked unseen, nothing is said.

use super::history::Had;
use super::{Case, Confidence, Rule, Severity, Verdict, capitalised};
use crate::exchange::{Exchange, Imds};
use crate::identity::Subject;

/// The rule.
pub const RULE: Rule = Rule {
    id: "imdsv1-refused",
    severity: Severity::Error,
    explain: "401 to a request without a token from a client that did not ask for one: the instance requires IMDSv2.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.afterwards().filter(|exchange| exchange.imds() == Some(Imds::V1))?;
    if exchange.status() != Some(401) || case.history.asks_for_token_later(exchange, case.who) {
        return None;
    }
    // It was a fallback when it was over, and has been told as one.
    if case.history.is_charged(exchange, case.who) {
        return None;
    }
    let voice = case.speaks_for_instance()?;
    let (cause, habit, confidence) = match case.history.had(exchange, case.who) {
        Had::Nothing(_) => return None,
        Had::NotAsked if may_have_asked(case, exchange) => return None,
        // A part of what happened, in which it fell back.
        Had::Unclear if case.rests_on_capture() => return None,
        Had::NotAsked => ("never asked", "No token request of this client was seen.", Confidence::Certain),
        Had::NotSure => (
            "not sure",
            "No token request of this process was seen; another process of the same place made one, and may belong to it.",
            Confidence::Likely,
        ),
        Had::Token => (
            "had a token",
            "It had been given a token, and did not send it: its header is missing, or has another name than \
             X-aws-ec2-metadata-token.",
            Confidence::Certain,
        ),
        Had::Unclear => (
            "asked before",
            "A token was asked for before, perhaps by this client; what came of that for it was not seen.",
            Confidence::Likely,
        ),
    };
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        cause,
        capitalised(format!(
            "{subject} asked IMDS without a token (IMDSv1) and got 401: this instance requires tokens. {habit}"
        )),
    );
    verdict.confidence = confidence;
    let instance = case.instance();
    verdict.remedy = vec![case.describe_options()];
    verdict.caution = Some(format!(
        "The cure is a client that speaks IMDSv2: every current AWS SDK does. As a stopgap, aws ec2 \
         modify-instance-metadata-options --instance-id {instance} --http-tokens optional lets it in, and with it every process \
         and container of the instance: the hop limit does not protect IMDSv1."
    ));
    Some(voice.temper(case.unless_it_went_on(verdict)).resting_on(case.absent_before()))
}

/// May its client have asked for a token before, though that was not seen? Or under another address, where its packets were seen with
/// several, and those of that request were not.
fn may_have_asked(case: &Case<'_>, exchange: &Exchange) -> bool {
    let Case { history, who, .. } = case;
    let hops = exchange.outward.iter().flat_map(|travel| &travel.hops);
    let mut others = hops.map(|hop| hop.client.address).filter(|address| Some(*address) != who.address);
    let is_capture = case.rests_on_capture();
    history.unheard.is_possible(exchange, who, is_capture)
        || (who.process.is_none() && history.somebody_asked(exchange, who.subject(), false))
        || (is_capture && others.any(|other| history.somebody_asked(exchange, Subject::Address(other), true)))
}
