//! By which interfaces does a client's packet go, out and back, and which rules does it meet?
//!
//! Pure: links, addresses, routes, policy rules and firewall rules in; interfaces, hops and the rules on them out. Where the kernel
//! decides, as between routes, its answer is data here ([`route::Route`]); who asked it is not known here.

pub mod back;
pub mod hops;
pub mod listen;
pub mod network;
