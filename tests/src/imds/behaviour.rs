//! What can be asked of the fake IMDS: how should it behave from now on?

use std::time::Duration;

/// Whether a GET without a token is answered (`HttpTokens`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// A GET without a token is answered: IMDSv1 works.
    Optional,
    /// A GET without a token gets 401.
    Required,
}

/// Which packets leave with the hop limit as their TTL; all others leave with [`ORDINARY_TTL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitScope {
    /// The answer to a token request with its retransmissions, and what follows it on that connection: bare ACKs, and the
    /// FIN unless `fin_ttl_restored`. Not the RST that ends a lost one.
    TokenResponse,
    /// Each packet after the handshake's SYN-ACK and the ACK of the request, on every connection: answers to GET, FIN
    /// and RST too.
    AllLater,
}

/// Which requests [`Behaviour::forced_status`] holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForcedOn {
    /// Every request.
    All,
    /// Token requests only.
    Token,
    /// Everything but token requests.
    Reads,
}

/// The TTL of everything that is not limited.
pub const ORDINARY_TTL: u8 = 64;

/// How the fake IMDS behaves. The default is a Nitro instance with hop limit 1 and tokens required.
///
/// A connection takes the behaviour that holds when its request has been read.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// `HttpPutResponseHopLimit`, 1..=64: the TTL (hop limit in IPv6) of the answer to a token request.
    pub hop_limit: u8,
    /// Which packets `hop_limit` holds for.
    pub limit_scope: LimitScope,
    /// Whether the TTL is back to [`ORDINARY_TTL`] before the FIN that follows a token response. To that end the FIN waits
    /// until the response is acknowledged: retransmissions would leave with the new TTL too.
    pub fin_ttl_restored: bool,
    /// `HttpTokens`.
    pub tokens: Tokens,
    /// `HttpEndpoint`: when false, everything gets 403, token requests included.
    pub endpoint_enabled: bool,
    /// How long a token request waits for its answer.
    pub delay_token: Duration,
    /// How long any other request waits for its answer.
    pub delay_get: Duration,
    /// Accept and read, but never answer.
    pub silent: bool,
    /// The instance profile's role; without one `iam/` is 404.
    pub role: Option<String>,
    /// The user data; without it 404.
    pub user_data: Option<String>,
    /// Answer with this status and an empty body what `forced_on` says.
    pub forced_status: Option<u16>,
    /// Which requests `forced_status` holds for.
    pub forced_on: ForcedOn,
    /// Write each answer in pieces of at most so many bytes, each in a TCP segment of its own.
    pub split: Option<usize>,
    /// Answer as `HTTP/1.0`, as was recorded of the real one in 2020 and 2023 (with `Accept-Ranges: bytes`). Always closes.
    pub http10: bool,
    /// Answer a request with a RST, of ordinary TTL, and nothing else.
    pub reset_after_request: bool,
    /// Serve several requests on a connection. The real one has always been seen to close.
    pub keep_alive: bool,
    /// How long a hop-limited answer may stay unacknowledged before the connection is reset. The RST has the ordinary TTL
    /// under `LimitScope::TokenResponse`: the client of a real instance has been seen to receive it. To a client that has
    /// closed by then nothing is sent any more. The real one goes on for longer; a test waits so long for each lost answer.
    pub give_up: Duration,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            hop_limit: 1,
            limit_scope: LimitScope::TokenResponse,
            fin_ttl_restored: false,
            tokens: Tokens::Required,
            endpoint_enabled: true,
            delay_token: Duration::ZERO,
            delay_get: Duration::ZERO,
            silent: false,
            role: Some("lab-runner-role".into()),
            user_data: None,
            forced_status: None,
            forced_on: ForcedOn::All,
            split: None,
            http10: false,
            reset_after_request: false,
            keep_alive: false,
            give_up: Duration::from_millis(1500),
        }
    }
}
