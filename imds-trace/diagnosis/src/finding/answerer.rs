//! Was it the instance that answered, or somebody in its place? What a proxy, a stand-in or a sidecar says is nothing of the instance.
//!
//! The way is the proof: an answer of the instance comes in by an interface towards IMDS. What the server calls itself is a hint.

use super::{Case, Confidence, Verdict};
use crate::exchange::{Exchange, Travel};
use crate::net::Direction;

/// What EC2's IMDS calls itself.
pub(super) const EC2: &str = "EC2ws";

/// Who answered, by the way of the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answerer {
    /// The answer came in by an interface towards IMDS.
    Instance,
    /// Neither request nor answer passed such an interface, though all of them are watched; or its SYN was sent elsewhere.
    StandIn,
    /// It cannot be told: some of the way was not seen, or it is not known which interfaces those are.
    Unknown,
}

impl Case<'_> {
    /// Who answered.
    pub(super) fn answerer(&self) -> Answerer {
        let passed = |travel: &Option<Travel>, direction| {
            travel.iter().flat_map(|travel| &travel.hops).any(|hop| self.host.is_uplink(hop, direction))
        };
        let Exchange { outward, inward, .. } = self.exchange;
        if self.exchange.redirected.is_some() {
            return Answerer::StandIn;
        }
        let seen = inward.as_ref().is_some_and(|travel| !travel.hops.is_empty());
        if passed(inward, Direction::Ingress) {
            Answerer::Instance
        } else if seen && self.absent_everywhere().is_ok() && !passed(outward, Direction::Egress) {
            Answerer::StandIn
        } else {
            Answerer::Unknown
        }
    }

    /// Did somebody else answer in the instance's place?
    pub fn is_answered_in_place(&self) -> bool {
        self.exchange.answered.is_some() && self.answerer() == Answerer::StandIn
    }

    /// Is it known by which interfaces this host reaches IMDS, and did the request not leave by one?
    fn may_be_answered_in_place(&self) -> bool {
        let left = self.exchange.outward.iter().flat_map(|travel| &travel.hops);
        !self.host.uplinks.is_empty() && !left.into_iter().any(|hop| self.host.is_uplink(hop, Direction::Egress))
    }

    /// May something be concluded from the answer about the instance? If so, with what certainty, and why no more.
    pub(super) fn speaks_for_instance(&self) -> Option<Voice> {
        let server = self.exchange.response.as_ref().and_then(|response| response.server.as_deref());
        match (self.answerer(), server) {
            (Answerer::StandIn, _) => None,
            (Answerer::Unknown, Some(EC2)) if self.may_be_answered_in_place() => Some(Voice {
                but: Some(
                    "Neither was seen on its way to or from IMDS: something on this host may have answered.".to_owned(),
                ),
            }),
            (Answerer::Instance | Answerer::Unknown, Some(EC2)) => Some(Voice { but: None }),
            (Answerer::Instance, Some(other)) => {
                Some(Voice { but: Some(format!("The server calls itself {other}: this may be no EC2 instance.")) })
            }
            (Answerer::Unknown, Some(_)) => None,
            (Answerer::Instance | Answerer::Unknown, None) => {
                Some(Voice { but: Some("The server does not say that it is EC2's.".to_owned()) })
            }
        }
    }
}

/// An answer that counts as the instance's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Voice {
    but: Option<String>,
}

impl Voice {
    /// What is concluded from the answer is no surer than that it is the instance's.
    pub(super) fn temper(&self, mut verdict: Verdict) -> Verdict {
        if let Some(but) = &self.but {
            verdict.confidence = Confidence::Likely;
            verdict.summary.push_str(&format!(" ({but})"));
        }
        verdict
    }
}
