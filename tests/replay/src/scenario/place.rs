//! How is a place written in a few words?
//!
//! `docker0 ingress 64`: interface, direction, TTL there. `drop ip_forward IP_INHDR ens5 1`: function, reason (`-` if the kernel
//! gives none), interface (`-` if there is none), TTL there. Behind either may stand `as 10.0.0.10:1024`, the client's address and
//! port there, and `to 10.0.0.10:8181`, where something sent it instead of to IMDS; behind a drop `in 20`, the namespace if it is not the host's, and `by ip_forward`, the function that led there.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use diagnosis::net::{Direction, Endpoint, Ifindex, Interface, Netns, Ttl};
use diagnosis::observation::{self, Drop, Hook};
use serde::Deserialize;

/// The namespace that the hooks are in.
pub const HOST_NETNS: Netns = Netns(1);

/// Where a packet was seen, with what TTL, and as whose.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Place {
    /// Where.
    pub place: observation::Place,
    /// TTL there.
    pub ttl: Ttl,
    /// The client's address and port there, where they do not follow.
    pub client: Option<Endpoint>,
    /// Where something sent it by then, instead of to IMDS.
    pub redirected: Option<Endpoint>,
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Place::parse(&text).map_err(|error| format!("{text:?}: {error:#}"))
    }
}

impl Place {
    /// Reads the words.
    pub fn parse(text: &str) -> Result<Place> {
        let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        let (place, rest) = match words.as_slice() {
            ["drop", rest @ ..] => return Place::parse_drop(rest),
            [name, direction @ ("ingress" | "egress"), ttl, rest @ ..] => {
                let direction = if *direction == "ingress" { Direction::Ingress } else { Direction::Egress };
                let hook = Hook { interface: interface(name, HOST_NETNS), direction };
                ((observation::Place::Hook(hook), number(ttl)?), rest)
            }
            _ => bail!("a place is `INTERFACE ingress|egress TTL` or `drop FUNCTION REASON INTERFACE TTL`"),
        };
        let (mut client, mut redirected) = (None, None);
        for pair in rest.chunks(2) {
            match pair {
                ["as", address] => client = Some(endpoint(address)?),
                ["to", address] => redirected = Some(endpoint(address)?),
                _ => bail!("behind a hook may stand `as ADDRESS:PORT` and `to ADDRESS:PORT`"),
            }
        }
        Ok(Place { place: place.0, ttl: Ttl(place.1), client, redirected })
    }

    /// Reads the words of a drop behind `drop`.
    pub fn parse_drop(words: &[&str]) -> Result<Place> {
        let [location, reason, name, ttl, rest @ ..] = words else {
            bail!("a drop is `FUNCTION REASON INTERFACE TTL`");
        };
        let (mut client, mut redirected, mut netns, mut callers) = (None, None, HOST_NETNS, Vec::new());
        for pair in rest.chunks(2) {
            match pair {
                ["as", address] => client = Some(endpoint(address)?),
                ["to", address] => redirected = Some(endpoint(address)?),
                ["in", inum] => netns = Netns(inum.parse().context("a namespace's number")?),
                ["by", caller] => callers.push((*caller).to_owned()),
                _ => bail!(
                    "behind a drop may stand `as ADDRESS:PORT`, `to ADDRESS:PORT`, `in NAMESPACE` and `by FUNCTION`"
                ),
            }
        }
        let drop = Drop {
            location: (*location != "unnamed").then(|| (*location).to_owned()),
            reason: (*reason != "-").then(|| (*reason).to_owned()),
            interface: (*name != "-").then(|| interface(name, netns)),
            netns,
            callers,
        };
        Ok(Place { place: observation::Place::Drop(drop), ttl: Ttl(number(ttl)?), client, redirected })
    }

    /// Is it the end of the way?
    pub fn is_drop(&self) -> bool {
        matches!(self.place, observation::Place::Drop(_))
    }

    /// Is it where a translated address is seen?
    pub(super) fn is_outside(&self) -> bool {
        matches!(&self.place, observation::Place::Hook(hook) if *hook.interface.name == *"ens5")
    }
}

pub(super) fn interface(name: &str, netns: Netns) -> Interface {
    // An index of its own for each name that is in use here.
    let index = name.bytes().fold(7u32, |index, byte| index.wrapping_mul(31).wrapping_add(u32::from(byte)));
    Interface { netns, index: Ifindex(index), name: name.into() }
}

fn number(text: &str) -> Result<u8> {
    text.parse().with_context(|| format!("{text} is not a TTL"))
}

/// `ADDRESS:PORT`, IPv6 in brackets.
pub(super) fn endpoint(text: &str) -> Result<Endpoint> {
    let socket = socket(text)?;
    Ok(Endpoint { address: socket.ip(), port: socket.port() })
}

pub(super) fn socket(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("{text:?} is not ADDRESS:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_hook_or_a_drop() {
        let hook = Place::parse("docker0 ingress 64 as 10.0.0.10:1024").unwrap();
        assert_eq!((hook.ttl, hook.client.map(|client| client.port), hook.is_drop()), (Ttl(64), Some(1024), false));
        let place = Place::parse("drop nf_hook_slow - - 63 in 20").unwrap();
        let observation::Place::Drop(drop) = place.place else { panic!() };
        assert_eq!((drop.reason, drop.interface, drop.netns), (None, None, Netns(20)));
    }

    #[test]
    fn what_is_not_a_place_is_an_error() {
        for text in
            ["", "docker0", "docker0 in 64", "docker0 ingress x", "drop a b", "drop a b c 1 of 2", "a ingress 1 b"]
        {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
