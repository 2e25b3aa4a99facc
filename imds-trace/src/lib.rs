//! What is imds-trace, and how do its rooms hang together?
//!
//! ```text
//!   tc ingress/egress ----.
//!   skb:kfree_skb ---------+-- ring buffer --> kernel::ring -- Record --> kernel::decode --.
//!   sockets, connect() ---'                                                                |
//!                                                                                          v
//!   docker socket --> sources::docker  --.                                               Input
//!   /proc ----------> sources::procfs  --+-- Fact ---------------------------------------> |
//!   - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -  |  the seam: the crate `diagnosis`
//!                                                                                          v
//!                                                                      diagnosis::pipeline, report, output
//! ```
//!
//! This crate is the half that needs a machine: the kernel, the sources of facts, the shells that own the clock. All conclusions are
//! drawn in the crate [`diagnosis`], which has a picture of its own. Without the feature `live` there is `replay` alone.

pub mod cli;
#[cfg(feature = "live")]
pub mod config;
#[cfg(feature = "live")]
pub mod doctor;
#[cfg(feature = "live")]
pub mod ethtool;
#[cfg(feature = "live")]
pub mod interfaces;
#[cfg(feature = "live")]
pub mod kernel;
#[cfg(feature = "live")]
#[expect(clippy::disallowed_methods, reason = "the shell that owns the clock and the runtime")]
pub mod live;
#[cfg(feature = "live")]
mod memory;
#[cfg(feature = "live")]
pub mod privileges;
pub mod progress;
#[cfg(feature = "live")]
pub mod sources;
