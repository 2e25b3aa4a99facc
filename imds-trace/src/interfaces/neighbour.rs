//! What does a kernel know of its neighbours?

use std::net::IpAddr;

use diagnosis::net::Ifindex;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A neighbour, as a namespace's kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// By this interface.
    pub interface: Ifindex,
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address, if that is known.
    pub mac: Option<Mac>,
    /// How it is known.
    pub known: Known,
}

/// How a neighbour is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Somebody entered it: it is not asked for.
    Fixed,
    /// It answered once.
    Found,
    /// It was asked for, and did not answer.
    Failed,
    /// Not, or not yet.
    Not,
}
