//! What does the pipeline say to the outside?

mod report;
mod what_if;

use std::rc::Rc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::coverage::Span;
use crate::exchange::{Exchange, ExchangeId};
use crate::finding::{Finding, HopLimit, Path, TokenUse};
use crate::identity::Attribution;
use crate::journey::{Journey, OtherPackets};
use crate::net::{Endpoint, Timestamp, Ttl};
pub use report::{
    Asserted, Covered, Credentials, Group, Groups, HostSum, Listened, Reconciled, Report, Tally, Unwatched,
};
pub use what_if::{Basis, ClientOutlook, Needed, Outlook, Reason, WhatIf};

/// One thing that is said.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everything is attached; what and what not.
    Ready(Timestamp, Ready),
    /// A packet's journey is over. Told only if somebody wants packets.
    Packet(Box<PacketEvent>),
    /// An exchange is over. Shared: who remembers the last word on it needs no copy.
    Exchange(Rc<ExchangeEvent>),
    /// Nothing new comes of these exchanges: what was said of each last is the last word on it. For who counts them; no output tells it.
    Settled(Vec<ExchangeId>),
    /// A finding holds, or its count has changed since it was told.
    Finding(Timestamp, Box<Finding>),
    /// A connection to a watched endpoint is over, or the run is, and no hook has seen a packet of it.
    Unseen(Timestamp, Box<UnseenConnection>),
    /// Something could not be kept.
    Loss(Timestamp, Lost),
    /// What came of a probe, before everything else about it.
    Probed(Timestamp, Box<Probed>),
    /// The run is over: nothing more comes of it.
    End(Timestamp, End),
}

/// What is known of a run only when it is over.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// What could not be kept.
    pub lost: Lost,
    /// The kernel's own count beside ours.
    pub spent: Reconciled,
    /// Packets to IMDS that are no TCP.
    pub other: Vec<OtherPackets>,
    /// When there were hooks on every interface towards IMDS.
    pub watched: Vec<Span>,
    /// When there were not last, though somebody told of all of them.
    pub unwatched: Option<Span>,
    /// When records were lost.
    pub losses: Vec<Span>,
}

/// A connection that its socket told of, and no hook.
#[derive(Clone, Debug)]
pub struct UnseenConnection {
    /// Whose.
    pub who: Attribution,
    /// Where to.
    pub endpoint: Endpoint,
    /// When it was established.
    pub established: Timestamp,
    /// Payload bytes that its TCP had received and that were acknowledged to it; `None` if it did not say.
    pub counted: Option<(u64, u64)>,
}

/// What is watched, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Version of the imds-trace that watched; `None` for a capture.
    pub version: Option<String>,
    /// The kernel's release; `None` for a capture.
    pub kernel: Option<String>,
    /// Where programs are attached.
    pub hooks: Vec<Attached>,
    /// What could not be attached or is not there, and why.
    pub missing: Vec<Missing>,
    /// What the kernel was asked for; empty for a capture, and for what an imds-trace recorded that did not ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<KernelFeature>,
}

/// Something that tracing needs of the kernel, or could use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelFeature {
    /// Its name, e.g. `tcx`.
    pub name: String,
    /// Is it there?
    #[serde(flatten)]
    pub has: Has,
}

/// An answer of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "has", rename_all = "snake_case")]
pub enum Has {
    /// It has it.
    Yes,
    /// It does not.
    No {
        /// What that would need, e.g. `Linux 6.6`.
        needs: String,
    },
    /// It cannot be known.
    Unknown {
        /// Why, or what would be needed to know.
        why: String,
    },
}

/// A program in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Attached {
    /// On an interface.
    Tc {
        /// Its name.
        interface: String,
        /// `ingress` or `egress`.
        direction: crate::net::Direction,
        /// `tcx` or `clsact`.
        via: Via,
    },
    /// On a tracepoint.
    Tracepoint {
        /// e.g. `skb:kfree_skb`.
        name: String,
    },
    /// Nothing of ours: somebody captured packets there.
    Capture {
        /// Its name; `None` if the file names none.
        interface: Option<String>,
        /// What its frames begin with: `ethernet`, `linux_sll`, `linux_sll2`, `raw`, `ipv4`, `ipv6` or `other`.
        link: String,
        /// Does the capture say which way packets passed?
        directions: Directions,
    },
    /// On the root cgroup.
    Cgroup {
        /// `connect4` or `connect6`.
        name: String,
    },
}

/// How a program hangs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// A link, Linux 6.6 and later.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
}

/// How it is known which way a captured packet passed an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Directions {
    /// The capture says so.
    Recorded,
    /// From where the packet heads.
    Inferred,
}

/// A hook that is missing, or something else of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// Which.
    pub hook: String,
    /// Why.
    pub why: String,
}

/// A packet followed to its end, and to whom it belongs.
#[derive(Clone, Debug)]
pub struct PacketEvent {
    /// Numbers packets within one run, in the order in which their journeys ended.
    pub number: u64,
    /// Its journey.
    pub journey: Journey,
    /// The latest exchange of its connection; `None` if there is none any more.
    pub exchange: Option<ExchangeId>,
    /// To whom it belongs, as far as was known then.
    pub who: Attribution,
}

/// An exchange, and to whom it belongs.
#[derive(Clone, Debug)]
pub struct ExchangeEvent {
    /// The exchange.
    pub exchange: Exchange,
    /// To whom it belongs.
    pub who: Attribution,
    /// Hop limit observed and needed.
    pub hop_limit: HopLimit,
    /// The token it used, if that was issued while tracing.
    pub token: Option<TokenUse>,
    /// Did its client ask for a token before, which came to nothing, and then ask without one?
    pub fell_back: bool,
    /// May its client have asked more on its connection, unseen? It was open while not every interface towards IMDS was watched.
    pub unwatched: bool,
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Whose network it asked from, as was typed.
    pub target: String,
    /// Did it get a token, and an answer to a read with it?
    pub reached: bool,
    /// Status of the answer to the token request; `None` if none came.
    pub token: Option<u16>,
    /// Status of the answer to the read; `None` if none came, or without a token.
    pub read: Option<u16>,
    /// Hop limit observed and needed.
    pub hop_limit: HopLimit,
    /// One sentence.
    pub summary: String,
    /// The way of the request that decides; `None` if it was not seen.
    pub path: Option<Path>,
    /// The TTL its packets started with, from its socket.
    pub initial_ttl: Option<Ttl>,
    /// Copies of it that were lost.
    pub copies: u64,
}

/// What could not be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Lost {
    /// Kernel records that found no room in the ring buffer.
    pub ring_buffer: u64,
    /// Kernel records that could not be read.
    pub unreadable: u64,
    /// Connections, exchanges, containers and the like that had to go to stay within bounds.
    pub state_evicted: u64,
}

impl Lost {
    /// Everything together.
    pub fn sum(&self) -> u64 {
        self.ring_buffer + self.unreadable + self.state_evicted
    }

    /// Adds `more`.
    pub fn add(&mut self, more: Self) {
        self.ring_buffer += more.ring_buffer;
        self.unreadable += more.unreadable;
        self.state_evicted += more.state_evicted;
    }
}
