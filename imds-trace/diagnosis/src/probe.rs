//! What do the requests that we sent ourselves show? Picks them and the findings about them from everything that was seen.
//!
//! Pure: who asks, and how, is the live shell's.

use std::rc::Rc;
use std::time::Duration;

use crate::event::{End, Event, ExchangeEvent, Lost, Probed};
use crate::exchange::{ExchangeId, Imds, Travel};
use crate::finding::{Finding, HopLimit, Path, Severity, Way};
use crate::identity::Attribution;
use crate::identity::fact::{ContainerDetail, Said};
use crate::journey::Fate;
use crate::net::Timestamp;

/// What became of one of our requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was answered with this status.
    Status(u16),
    /// It was not; what happened instead, e.g. `no answer within 2 s`.
    None(String),
}

/// What we were answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// To the request for a token.
    pub token: Answer,
    /// To the read with it; `None` without a token.
    pub read: Option<Answer>,
}

/// Everything about our own requests.
#[derive(Clone, Debug)]
pub struct Own {
    pid: u32,
    target: String,
    container: Option<ContainerDetail>,
    exchanges: Vec<ExchangeEvent>,
    findings: Vec<(Timestamp, Finding)>,
    losses: Vec<Event>,
    packets: Vec<Event>,
    end: Timestamp,
    lost: Lost,
}

impl Own {
    /// Requests of this process, which we are, from the network of `target` as it was typed; of a container, as it
    /// is known.
    pub fn new(pid: u32, target: String, container: Option<ContainerDetail>) -> Self {
        Self {
            pid,
            target,
            container,
            exchanges: Vec::new(),
            findings: Vec::new(),
            losses: Vec::new(),
            packets: Vec::new(),
            end: Timestamp(0),
            lost: Lost::default(),
        }
    }

    /// Is this our process?
    pub fn is_ours(&self, pid: u32) -> bool {
        self.pid == pid
    }

    fn is_our_own(&self, who: &Attribution) -> bool {
        who.process.as_ref().is_some_and(|process| process.pid == self.pid)
    }

    /// The container that we ask for.
    pub fn container(&self) -> Option<&str> {
        self.container.as_ref().map(|container| container.id.as_str())
    }

    /// That what this process asks is to be counted for the container. Its namespace would not say so where several containers share
    /// it, or where it is the host's.
    pub fn introduction(&self) -> Option<Said> {
        let container = self.container.clone()?;
        Some(Said::Container(ContainerDetail { pid: Some(self.pid), ..container }))
    }

    /// Hears of an event; remembers it if it may be about our requests.
    pub fn hear(&mut self, event: &Event) {
        match event {
            Event::Exchange(event) => {
                if self.is_our_own(&event.who) {
                    self.exchanges.push((**event).clone());
                }
            }
            Event::Finding(at, finding) => {
                let known = self.findings.iter_mut().find(|(_, known)| known.id == finding.id);
                match known {
                    Some(known) => *known = (*at, (**finding).clone()),
                    None => self.findings.push((*at, (**finding).clone())),
                }
            }
            Event::Packet(packet) => {
                if self.is_our_own(&packet.who) {
                    self.packets.push(event.clone());
                }
            }
            Event::Loss(..) => self.losses.push(event.clone()),
            Event::Unseen(_, unseen) => {
                if self.is_our_own(&unseen.who) {
                    self.losses.push(event.clone());
                }
            }
            Event::End(at, end) => (self.end, self.lost) = (*at, end.lost),
            Event::Settled(_) | Event::Ready(..) | Event::Probed(..) => {}
        }
    }

    /// Tells what came of it, and what it was.
    pub fn tell(mut self, answers: Option<&Answers>, tell: &mut dyn FnMut(&Event)) {
        let ours: Vec<ExchangeId> = self.exchanges.iter().map(|event| event.exchange.id).collect();
        // A finding is one for many exchanges: it is ours if it rests on one of ours.
        self.findings.retain(|(_, finding)| finding.evidence.iter().any(|id| ours.contains(id)));
        self.losses.iter().chain(&self.packets).for_each(&mut *tell);
        if let Some(answers) = answers {
            tell(&Event::Probed(self.end, Box::new(self.probed(answers))));
        }
        let exchanges = self.exchanges.into_iter().map(|event| Event::Exchange(Rc::new(event)));
        let findings = self.findings.into_iter().map(|(at, finding)| Event::Finding(at, Box::new(finding)));
        exchanges.chain(findings).for_each(|event| tell(&event));
        // What the kernel counted was not for our requests alone.
        tell(&Event::End(self.end, End { lost: self.lost, ..End::default() }));
    }

    fn probed(&self, answers: &Answers) -> Probed {
        let hop_limit = self.exchanges.iter().fold(HopLimit::default(), |known, event| known.and(event.hop_limit));
        let status = |answer: &Answer| match answer {
            Answer::Status(status) => Some(*status),
            Answer::None(_) => None,
        };
        let (token, read) = (status(&answers.token), answers.read.as_ref().and_then(status));
        // That there is no such thing is an answer too.
        let (granted, reached) = (token == Some(200), matches!(read, Some(200 | 404)));
        let error =
            self.findings.iter().map(|(_, finding)| finding).find(|finding| finding.severity == Severity::Error);
        let why = |answer: &Answer| match (error, answer) {
            (Some(finding), _) => in_a_sentence(&finding.says.summary),
            (None, Answer::Status(status)) => format!("it was answered with {status}"),
            (None, Answer::None(what)) => what.clone(),
        };
        let target = &self.target;
        let mut summary = match &answers.read {
            Some(Answer::Status(200)) if granted => format!("{target} reaches IMDS: token and read answered 200"),
            Some(Answer::Status(status)) if granted && reached => {
                format!("{target} reaches IMDS: token answered 200, read {status}")
            }
            Some(read) if granted => format!("{target} gets a token, but cannot read with it: {}", why(read)),
            _ => format!("{target} cannot get a token: {}", why(&answers.token)),
        };
        if reached {
            summary += &limit(hop_limit);
        }
        if self.exchanges.is_empty() {
            summary += "; none of its packets was seen at an interface that is watched";
        }
        let kind = if granted && !reached { Imds::V2 } else { Imds::Token };
        let decides = self.exchanges.iter().find(|event| event.exchange.imds() == Some(kind));
        let decides = decides.or(self.exchanges.first());
        let initial_ttl = decides.and_then(|event| event.who.initial_ttl);
        let decides = decides.map(|event| &event.exchange);
        let path = decides
            .map(|exchange| Path { outward: way(exchange.outward.as_ref()), inward: way(exchange.response_travel()) });
        let copies = |travel: Option<&Travel>| travel.map_or(0, |travel| travel.copies);
        Probed {
            target: target.clone(),
            reached: granted && reached,
            token,
            read,
            hop_limit,
            summary,
            path: path.filter(|path| !path.outward.hops.is_empty() || !path.inward.hops.is_empty()),
            initial_ttl,
            // Of copies that came after the exchange was told, only the finding knows.
            copies: decides
                .map_or(0, |exchange| copies(exchange.response_travel()).max(copies(exchange.outward.as_ref())))
                .max(error.filter(|finding| finding.says.drop.is_some()).map_or(0, |finding| finding.count)),
        }
    }
}

fn way(travel: Option<&Travel>) -> Way {
    match travel {
        Some(travel) => Way { hops: travel.hops.clone(), fate: travel.fate.clone() },
        None => Way { hops: Vec::new(), fate: Fate::Unresolved },
    }
}

fn limit(limit: HopLimit) -> String {
    match (limit.observed, limit.needed) {
        (Some(observed), Some(needed)) => format!("; hop limit observed {}, needed {}", observed.0, needed.0),
        (Some(observed), None) => format!("; hop limit observed {}", observed.0),
        (None, Some(needed)) => format!("; hop limit needed {}", needed.0),
        (None, None) => String::new(),
    }
}

/// A sentence as the second part of another.
fn in_a_sentence(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    for word in ["The ", "A ", "Container "] {
        if let Some(rest) = sentence.strip_prefix(word) {
            return format!("{}{rest}", word.to_ascii_lowercase());
        }
    }
    sentence.to_owned()
}

/// So long was waited in vain, e.g. `no answer within 2 s`.
pub fn waited(what: &str, timeout: Duration) -> Answer {
    Answer::None(format!("{what} within {} s", timeout.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::event::UnseenConnection;
    use crate::identity::{Key, Process};
    use crate::net::{Endpoint, Netns};

    const SILENCE: Duration = Duration::from_millis(1500);

    /// The sentence about a probe of `web` none of whose packets was seen.
    fn summary(token: Answer, read: Option<Answer>) -> String {
        let mut told = Vec::new();
        Own::new(7, "web".into(), None).tell(Some(&Answers { token, read }), &mut |event| told.push(event.clone()));
        match &told[..] {
            [Event::Probed(_, probed), Event::End(..)] => {
                probed.summary.replace("; none of its packets was seen at an interface that is watched", " (unseen)")
            }
            _ => format!("{told:?}"),
        }
    }

    #[test]
    fn a_sentence_says_how_far_it_got() {
        let status = Answer::Status;
        assert_eq!(summary(status(200), Some(status(200))), "web reaches IMDS: token and read answered 200 (unseen)");
        assert_eq!(summary(status(200), Some(status(404))), "web reaches IMDS: token answered 200, read 404 (unseen)");
        assert_eq!(
            summary(status(200), Some(status(401))),
            "web gets a token, but cannot read with it: it was answered with 401 (unseen)"
        );
        assert_eq!(
            summary(status(200), Some(waited("no answer", SILENCE))),
            "web gets a token, but cannot read with it: no answer within 1.5 s (unseen)"
        );
        assert_eq!(summary(status(403), None), "web cannot get a token: it was answered with 403 (unseen)");
        assert_eq!(
            summary(waited("no connection", SILENCE), None),
            "web cannot get a token: no connection within 1.5 s (unseen)"
        );
    }

    #[test]
    fn only_for_a_container_something_is_said_of_us() {
        assert_eq!(Own::new(7, "pid:9".into(), None).introduction(), None);
        let said = Own::new(7, "web".into(), Some(ContainerDetail { id: "ab".into(), ..ContainerDetail::default() }))
            .introduction();
        assert!(matches!(said, Some(Said::Container(ContainerDetail { pid: Some(7), .. }))), "{said:?}");
    }

    #[test]
    fn what_others_did_unseen_is_not_ours_to_tell() {
        let by = |pid: u32| {
            let who = Attribution {
                process: Some(std::rc::Rc::new(Process {
                    pid,
                    tid: pid,
                    uid: 0,
                    gid: 0,
                    comm: "curl".into(),
                    exe: None,
                    argv: None,
                    started: None,
                    pid_in_container: None,
                    pid_namespace: None,
                    netns: Netns(20),
                    cgroup_id: 1,
                    cgroup: None,
                    ancestors: Vec::new(),
                })),
                by: Key::Cgroup,
                ..Attribution::of_nobody(Some(Ipv4Addr::LOCALHOST.into()))
            };
            let endpoint = Endpoint { address: Ipv4Addr::new(169, 254, 169, 254).into(), port: 80 };
            let unseen = UnseenConnection { who, endpoint, established: Timestamp(1), counted: None };
            Event::Unseen(Timestamp(2), Box::new(unseen))
        };
        let mut own = Own::new(7, "web".into(), None);
        [by(8), by(7), by(9)].iter().for_each(|event| own.hear(event));
        let mut told = 0;
        own.tell(None, &mut |event| told += usize::from(matches!(event, Event::Unseen(..))));
        assert_eq!(told, 1);
    }

    #[test]
    fn a_summary_becomes_the_second_part_of_a_sentence() {
        assert_eq!(in_a_sentence("The response was dropped."), "the response was dropped");
        assert_eq!(in_a_sentence("python3 (pid 7) asked."), "python3 (pid 7) asked");
    }
}
