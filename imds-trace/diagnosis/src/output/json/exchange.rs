//! What is said of an exchange: what was asked and answered, and which way both went?

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::process::{self, ProcessLine};
use super::when::{When, milliseconds};
use crate::event::ExchangeEvent;
use crate::exchange::{Delivery, Imds, Proof, Refusal, Refused, Software, Travel};
use crate::finding::{HopLimit, TokenUse};
use crate::identity::{Container, Key};
use crate::journey::{Dropped, Fate, Hop, Join};
use crate::net::{BootTime, Endpoint, Netns, Ttl};

/// A request and what came of it. Written again with the same `id` when its outcome changes: the last one stands.
#[derive(Serialize, JsonSchema)]
pub struct ExchangeLine<'a> {
    /// When it began.
    at: When,
    /// Its number in this run.
    id: u64,
    /// What was asked: for a token, with one (v2), without one (v1), something else; `null` if no request was seen.
    imds: Option<Imds>,
    /// Method of the request.
    method: Option<&'a str>,
    /// Path of the request, secrets masked.
    path: Option<&'a str>,
    /// Status of the answer that the client got; `null` if none.
    status: Option<u16>,
    /// Did an answer reach the client, in time or late?
    answered: bool,
    /// Did only a part of the response reach it, its head and not all that came behind?
    incomplete: bool,
    /// From the first packet to the answer.
    duration_ms: Option<f64>,
    /// User-Agent of the request, secrets masked.
    user_agent: Option<&'a str>,
    /// What the User-Agent hints at; never an identity.
    software: Option<Software>,
    /// Did the answer come after the client had given up?
    late: bool,
    /// The token that the request carried; `null` unless it was issued while tracing.
    token: Option<TokenLine>,
    /// What refused it; `null` if nothing did.
    refused: Option<RefusalLine>,
    /// Who asked, as seen nearest to it; `null` for a connect that failed before its SYN.
    client: Option<&'a Endpoint>,
    /// Who was asked.
    endpoint: &'a Endpoint,
    /// Whose; `null` for the host's own processes only.
    container: Option<&'a Container>,
    /// Whose; `null` if its connect was not seen.
    process: Option<ProcessLine<'a>>,
    /// What the naming of the container rests on.
    attributed_by: Key,
    /// The request's way; `null` if no packet of it was seen.
    request: Option<TravelLine<'a>>,
    /// The answer's way; `null` if no packet of it was seen.
    response: Option<TravelLine<'a>>,
    /// Hop limit observed and needed.
    hop_limit: HopLimit,
}

/// The token that a request carried, if it was issued while tracing.
#[derive(Serialize, JsonSchema)]
struct TokenLine {
    /// Since it was issued.
    age_ms: f64,
    /// As was asked for.
    lifetime_ms: Option<f64>,
    /// Is it older than that?
    expired: Option<bool>,
}

/// A reset or an ICMP error instead of an answer.
#[derive(Serialize, JsonSchema)]
struct RefusalLine {
    /// Which of them.
    by: RefusedBy,
    /// Who sent the ICMP error.
    sender: Option<IpAddr>,
    /// Its type.
    icmp_type: Option<u8>,
    /// Its code.
    icmp_code: Option<u8>,
    /// Where it came from.
    from: RefusedFrom,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum RefusedBy {
    Icmp,
    Reset,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum RefusedFrom {
    Beyond,
    ThisHost,
}

/// The way of the packet that decides, and how it ended.
#[derive(Serialize, JsonSchema)]
struct TravelLine<'a> {
    /// How the packet's journey ended, as far as this host was watched.
    fate: FateWord,
    /// Did the bytes reach the other end?
    delivery: DeliveryWord,
    /// What that rests on.
    proof: Option<ProofWord>,
    /// Where it was seen, in this order.
    hops: Vec<HopLine>,
    /// Where it was dropped; `null` if it was not.
    drop: Option<DropLine<'a>>,
    /// How many copies fared so.
    copies: u64,
    /// How sure it is that all sightings are of one packet.
    join: Join,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum FateWord {
    /// It left this host, or reached its client's side.
    Delivered,
    /// The kernel dropped it.
    Dropped,
    /// It was not seen to do either.
    Unresolved,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum DeliveryWord {
    /// The receiving socket counted or acknowledged the bytes.
    Delivered,
    /// They left the last place that is watched.
    Forwarded,
    /// The kernel dropped them.
    Dropped,
    /// It cannot be told.
    Unknown,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ProofWord {
    Socket,
    Ack,
    Drop,
    Sighting,
}

#[derive(Serialize, JsonSchema)]
struct HopLine {
    /// Interface and direction.
    hook: String,
    /// The packet's TTL there.
    ttl: Ttl,
    /// The client's address there.
    client: Endpoint,
}

/// A drop by the kernel.
#[derive(Serialize, JsonSchema)]
pub struct DropLine<'a> {
    /// The function of the kernel; `null` if it has no name.
    location: Option<&'a str>,
    /// Why, as the kernel spells it; `null` if it does not say.
    reason: Option<&'a str>,
    /// The packet's TTL.
    ttl: Ttl,
    /// The interface that the packet belonged to.
    interface: Option<&'a str>,
    /// Inode number of the network namespace.
    netns: Option<Netns>,
    /// Functions that led there, nearest first.
    callers: &'a [String],
}

pub fn line(event: &ExchangeEvent, boot_time: BootTime) -> ExchangeLine<'_> {
    let exchange = &event.exchange;
    let request = exchange.request.as_ref();
    ExchangeLine {
        at: When::of(exchange.opened, boot_time),
        id: exchange.id.0,
        imds: exchange.imds(),
        method: request.map(|request| request.method.as_str()),
        path: request.map(|request| request.path.as_str()),
        status: exchange.status(),
        answered: exchange.is_answered(),
        incomplete: exchange.incomplete,
        duration_ms: exchange.duration().map(milliseconds),
        user_agent: request.and_then(|request| request.user_agent.as_deref()),
        software: exchange.software(),
        late: exchange.is_late(),
        token: event.token.map(token),
        refused: exchange.refusal.map(refusal),
        // Of a connect that failed before its SYN no address is known.
        client: exchange.connection().map(|connection| &connection.client),
        endpoint: &exchange.endpoint,
        container: event.who.told(),
        process: process::line(event.who.process.as_deref(), boot_time),
        attributed_by: event.who.by,
        request: exchange.outward.as_ref().map(|way| travel(way, exchange.request_delivery())),
        response: exchange.response_travel().map(|way| travel(way, exchange.response_delivery())),
        hop_limit: event.hop_limit,
    }
}

fn token(token: TokenUse) -> TokenLine {
    TokenLine {
        age_ms: milliseconds(token.age),
        lifetime_ms: token.lifetime.map(milliseconds),
        expired: token.lifetime.map(|lifetime| token.age >= lifetime),
    }
}

fn refusal(refusal: Refusal) -> RefusalLine {
    let icmp = match refusal.how {
        Refused::Reset => None,
        Refused::Icmp(icmp) => Some(icmp),
    };
    RefusalLine {
        by: if icmp.is_some() { RefusedBy::Icmp } else { RefusedBy::Reset },
        sender: icmp.map(|icmp| icmp.sender),
        icmp_type: icmp.map(|icmp| icmp.kind),
        icmp_code: icmp.map(|icmp| icmp.code),
        from: match refusal.from_outside || refusal.was_forwarded {
            true => RefusedFrom::Beyond,
            false => RefusedFrom::ThisHost,
        },
    }
}

fn travel(travel: &Travel, delivery: Delivery) -> TravelLine<'_> {
    let (fate, drop) = match &travel.fate {
        Fate::Delivered => (FateWord::Delivered, None),
        Fate::Dropped(dropped) => (FateWord::Dropped, Some(drop_line(dropped))),
        Fate::Unresolved => (FateWord::Unresolved, None),
    };
    let (delivery, proof) = match delivery {
        Delivery::Received(Proof::Socket) => (DeliveryWord::Delivered, Some(ProofWord::Socket)),
        Delivery::Received(Proof::Ack) => (DeliveryWord::Delivered, Some(ProofWord::Ack)),
        Delivery::Dropped => (DeliveryWord::Dropped, Some(ProofWord::Drop)),
        Delivery::Forwarded => (DeliveryWord::Forwarded, Some(ProofWord::Sighting)),
        Delivery::Unknown => (DeliveryWord::Unknown, None),
    };
    TravelLine {
        fate,
        delivery,
        proof,
        hops: travel.hops.iter().map(hop).collect(),
        drop,
        copies: travel.copies,
        join: travel.join,
    }
}

fn hop(hop: &Hop) -> HopLine {
    HopLine { hook: format!("{} {}", hop.hook.interface.name, hop.hook.direction), ttl: hop.ttl, client: hop.client }
}

/// A drop.
pub fn drop_line(dropped: &Dropped) -> DropLine<'_> {
    let drop = &dropped.drop;
    DropLine {
        location: drop.location.as_deref(),
        reason: drop.reason.as_deref(),
        ttl: dropped.ttl,
        interface: drop.interface.as_ref().map(|interface| &*interface.name),
        netns: (drop.netns != Netns::default()).then_some(drop.netns),
        callers: &drop.callers,
    }
}
