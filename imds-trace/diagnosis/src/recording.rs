//! How are inputs kept in a file as evidence, and read again?
//!
//! JSON Lines; `host.jsonl.zst` is the same, compressed with Zstandard. `docs/recording.md` is the description for others; this is
//! what this program does.
//!
//! * The first line is the header: `{"recording":3,…}`, where 3 is the version of the format. `chain` in it ties files together:
//!   the boot and the run it is of, its number, and name and SHA-256 of the file before it.
//! * Every further line is one input, `{"observation":…}`, `{"fact":…}`, `{"tick":…}` or `{"lost":…}`, in the order in which the
//!   pipeline took them. Times are nanoseconds since boot; the header's `boot_time` (nanoseconds from the Unix epoch to boot) makes
//!   wall-clock time of them.
//! * `{"again":{"fact":…}}` repeats what an earlier file of the same run says, so that a file can be read on its own. Whoever has
//!   read the file before it passes over these.
//! * `{"seal":{"inputs":N},"digest":"…"}` seals what stands between it and the seal before: after the header, then each second or
//!   every 64 lines. N is the number of inputs so far in this file. See [`seal`].
//! * `{"end":{"at":…,"inputs":N,"lost":N,"rotated":…},"digest":"…"}` is a seal too, and the last line of a file that was closed in
//!   order.
//!
//! Version 3 has the pod that a container is in as an object; version 1 has neither seals nor an end: it is read, and cannot be
//! verified. Fields may be added within a version; a reader ignores those it does not know.
//!
//! Secrets never reach this file: what can be an input is an allow-list (`observation::redact`).

mod carry;
mod files;
mod place;
mod read;
mod seal;
mod sink;
mod write;

use std::io;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::event::Ready;
use crate::net::{BootTime, Netns, Timestamp};
pub use files::{Closed, Files, Limits, Notice, check, digest_of, open, spare};
pub use read::Reader;
pub use write::Writer;

/// Version of the format that this program writes, and the highest it reads.
pub const VERSION: u32 = 3;
/// The first version whose files are sealed.
const SEALED_SINCE: u32 = 2;
/// A line longer than this is no recording; the longest input, a container with many labels, has some kilobytes.
const MAX_LINE: u64 = 1 << 20;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`] of the writer.
    pub recording: u32,
    /// Makes wall-clock time of timestamps.
    pub boot_time: BootTime,
    /// When tracing began, or this file where it goes on from another.
    pub at: Timestamp,
    /// The namespace that the hooks were in.
    pub netns: Netns,
    /// The pid namespace of the host's processes; `None` if not known, and in older recordings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<u32>,
    /// Watched addresses.
    pub endpoints: Vec<IpAddr>,
    /// The EC2 instance's id, if known.
    pub instance: Option<String>,
    /// What was attached when tracing began.
    pub ready: Ready,
    /// How it hangs together with other files.
    #[serde(default)]
    pub chain: Chain,
}

/// How files hang together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The kernel's random name for the time since boot; `None` if not known.
    pub boot: Option<String>,
    /// When tracing began: together with the boot it names the run. `None` for a file that is of no chain.
    pub run: Option<Timestamp>,
    /// Its place in the chain, from 1; 0 if it is of none.
    pub number: u64,
    /// The file before it; `None` for the first.
    pub previous: Option<Previous>,
}

/// A file, by name and content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its name, without folder, as it was put away.
    pub file: String,
    /// SHA-256 of all its bytes on disk: what `sha256sum` prints.
    pub digest: String,
}

/// Why a recording cannot be read, or not to its end.
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read.
    #[error("line {line}: {error}")]
    Io {
        /// Line number, from 1.
        line: u64,
        /// What the system said.
        error: io::Error,
    },
    /// The first line is not a header.
    #[error(
        "line 1: not an imds-trace recording (its first line must be {{\"recording\":{VERSION},…}}), nor a pcap or pcapng file (editcap makes one of other captures): {0}"
    )]
    NotARecording(String),
    /// The file was written by a newer program.
    #[error(
        "line 1: the recording has format version {0}, this imds-trace reads up to {VERSION}: use a newer imds-trace"
    )]
    TooNew(u32),
    /// A line is damaged.
    #[error("line {line}: not an input of a recording: {why}")]
    Unreadable {
        /// Line number, from 1.
        line: u64,
        /// What the parser said.
        why: String,
    },
    /// The last line has no end: the writer was stopped in the middle of it.
    #[error("line {line}: cut short: the writer was stopped in the middle of this line; what came after it is missing")]
    CutShort {
        /// Line number, from 1.
        line: u64,
    },
    /// There is no closing line.
    #[error(
        "line {line}: the recording was not closed (its writer was killed, or still writes): what came after this line is missing"
    )]
    NotClosed {
        /// The last line's number, from 1.
        line: u64,
    },
    /// Lines are not as they were written.
    #[error("lines {first} to {last}: {why}; they are left out")]
    Broken {
        /// Number of the first one, from 1.
        first: u64,
        /// Number of the last one.
        last: u64,
        /// How one can tell.
        why: String,
    },
}

impl Error {
    /// Is what can be read beside it still of use?
    pub fn leaves_a_rest(&self) -> bool {
        matches!(self, Self::CutShort { .. } | Self::NotClosed { .. } | Self::Broken { .. })
    }
}
