//! What does a client's socket say of itself?

use serde::{Deserialize, Serialize};

use crate::net::{Endpoint, Netns};

/// A connecting socket with its port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Line", into = "Line")]
pub struct Socket {
    /// As in [`super::Connecting::socket`].
    pub socket: u64,
    /// Its own address and port.
    pub source: Endpoint,
    /// Where to.
    pub destination: Endpoint,
    /// Initial sequence number.
    pub isn: u32,
    /// Namespace of the socket.
    pub netns: Netns,
}

/// A socket whose connect() was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Line", into = "Line")]
pub struct Connected {
    /// Which.
    pub socket: Socket,
    /// How.
    pub outcome: Outcome,
}

/// "Cannot assign requested address" (`errno.h`).
const EADDRNOTAVAIL: u16 = 99;

impl Connected {
    /// Did it give up before it had a local port? The kernel chooses one before it makes the SYN, and returns the error without leaving it
    /// in the socket.
    pub fn has_no_port(&self) -> bool {
        match self.outcome {
            Outcome::Established { .. } => false,
            Outcome::Failed(error) => self.socket.source.port == 0 || error == Some(EADDRNOTAVAIL),
        }
    }
}

/// What became of a connect().
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection was established.
    Established {
        /// Will its TCP say what it counted ([`Counted`]) when it changes its state?
        counts: bool,
    },
    /// It was given up, with the error that the socket was told, a number of `errno.h`, if any.
    Failed(Option<u16>),
}

impl Outcome {
    /// The error that the socket was told.
    pub fn error(self) -> Option<u16> {
        match self {
            Self::Established { .. } => None,
            Self::Failed(error) => error,
        }
    }
}

/// Both as they stand in recordings.
#[derive(Serialize, Deserialize)]
struct Line {
    socket: u64,
    source: Endpoint,
    destination: Endpoint,
    isn: u32,
    netns: Netns,
    established: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<u16>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    counts: bool,
}

impl From<Line> for Socket {
    fn from(Line { socket, source, destination, isn, netns, .. }: Line) -> Self {
        Self { socket, source, destination, isn, netns }
    }
}

impl From<Socket> for Line {
    fn from(Socket { socket, source, destination, isn, netns }: Socket) -> Self {
        Self { socket, source, destination, isn, netns, established: false, error: None, counts: false }
    }
}

impl From<Line> for Connected {
    fn from(line: Line) -> Self {
        let outcome = match line.established {
            true => Outcome::Established { counts: line.counts },
            false => Outcome::Failed(line.error),
        };
        Self { socket: line.into(), outcome }
    }
}

impl From<Connected> for Line {
    fn from(Connected { socket, outcome }: Connected) -> Self {
        let line = Self::from(socket);
        match outcome {
            Outcome::Established { counts } => Self { established: true, counts, ..line },
            Outcome::Failed(error) => Self { error, ..line },
        }
    }
}

/// What the TCP of a connecting socket had counted when its state changed: the client's own word on what reached it, in whatever
/// namespace it is and whatever way the packets took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// As in [`super::Connecting::socket`].
    pub socket: u64,
    /// Its own address and port.
    pub source: Endpoint,
    /// Where to.
    pub destination: Endpoint,
    /// Initial sequence number.
    pub isn: u32,
    /// Namespace of the socket.
    pub netns: Netns,
    /// Had the connection been established?
    pub established: bool,
    /// Payload bytes that it received in order; neither SYN nor FIN counts.
    pub received: u64,
    /// Payload bytes that the other side acknowledged; neither SYN nor FIN counts.
    pub acked: u64,
    /// The error that the socket was told, a number of `errno.h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<u16>,
    /// The state that it entered.
    pub state: TcpState,
}

/// States of a TCP socket of which the kernel half tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpState {
    /// The other side will send no more.
    CloseWait,
    /// Its own side will send no more.
    FinWait,
    /// Both sides ended it, and the last acknowledgement is awaited.
    LastAck,
    /// It is over.
    Closed,
}
