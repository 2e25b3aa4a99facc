//! What is imds-trace, and how do its rooms hang together?
//!
//! ```text
//!   tc ingress/egress ----.
//!   skb:kfree_skb ---------+-- ring buffer --> kernel::ring -- Record --.
//!   inet_sock_set_state --'                                             |
//!                                                                       v
//!   docker socket --> identity::docker  --.                           Input = Observation | Fact | Tick | Lost
//!   /proc ----------> identity::procfs  --+-- Fact ------------------>  |  <====> recording (a file; replay reads it)
//!   - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - | - - - - - the seam: below it, no kernel
//!                                                                       v
//!       pipeline:   Observation --> Journey --> Exchange --> Finding    pure; time is in the data
//!                                                   ^            ^
//!                                   Fact --> Directory (who was this, then?)
//!                                                                       |
//!                                                                     Event --> Report
//!                                                                       v
//!       output:     text | json | junit | pcapng   expect: does what was asserted hold?
//! ```
//!
//! Everything above `Input` needs a machine. Everything below is a pure function from a list of inputs to a list of events: no
//! clock, no lock, no channel, no lookup. The seam is a file format, so a recording is at once the replay feature, the test suite
//! and the bug report. Secrets stop at the seam: see [`observation::redact`].
//!
//! Who may import whom is written down as data in `xtask/src/lint`, and in words in CONTRIBUTING.md.

pub mod capture;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod ethtool;
pub mod event;
pub mod exchange;
pub mod expect;
pub mod finding;
pub mod identity;
pub mod input;
pub mod interfaces;
pub mod journey;
pub mod kernel;
pub mod live;
pub mod net;
pub mod observation;
pub mod output;
pub mod pipeline;
pub mod printable;
pub mod privileges;
pub mod probe;
pub mod recording;
pub mod replay;
pub mod report;
pub mod secret;
