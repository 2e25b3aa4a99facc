//! What follows from what was seen? Everything of imds-trace that needs no kernel: a pure function from inputs to events.
//!
//! ```text
//!   Input = Observation | Fact | Tick | Lost       <====> recording (a file; replay reads it); capture reads pcap
//!       |
//!   pipeline:   Observation --> Journey --> Exchange --> Finding    time is in the data
//!                                               ^            ^
//!                               Fact --> Directory (who was this, then?)
//!                                                                   |
//!                                                                 Event
//!                                                                   |
//!   reporter:   filter, tallies, groups, expectations, report
//!                                                                   |
//!   output:     text | json | junit | pcapng | markdown | html | metrics | allow
//! ```
//!
//! No clock, no lock, no channel, no lookup, and no crate that needs Linux: this crate builds on stable Rust, without the BPF
//! toolchain, and its tests need no root. The seam is a file format, so a recording is at once the replay feature, the test suite
//! and the bug report. Secrets stop at the seam: see [`observation::redact`].

pub mod allow;
pub mod capture;
pub mod config;
pub mod coverage;
pub mod event;
pub mod exchange;
pub mod expect;
pub mod finding;
pub mod identity;
pub mod input;
pub mod journey;
pub mod net;
pub mod observation;
pub mod output;
pub mod pipeline;
pub mod printable;
pub mod probe;
pub mod progress;
pub mod recording;
pub mod replay;
pub mod report;
pub mod reporter;
mod room;
pub mod secret;
pub mod stderr;
pub mod unpack;
pub mod way;
pub mod what_if;
pub mod words;
