//! Are heads read as they were sent, however they come?

use super::*;
use crate::net::{Endpoint, Interface, Netns};
use crate::observation::TcpFlags;

const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

/// One side of a connection at one hook.
struct Side {
    streams: Streams,
    seq: u32,
}

impl Side {
    fn new() -> Self {
        Self { streams: Streams::default(), seq: u32::MAX - 20 }
    }

    fn at(&mut self, seq: u32, len: usize, payload: &[u8]) -> Vec<Head> {
        let end = |port| Endpoint { address: std::net::Ipv4Addr::LOCALHOST.into(), port };
        let interface = Interface { netns: Netns(1), index: Ifindex(2), name: "ens5".into() };
        let hook = Hook { interface, direction: Direction::Ingress };
        let tcp = Tcp { seq, ack: 0, flags: TcpFlags(TcpFlags::ACK), len: len as u32 };
        self.streams.heads(&hook, Flow { source: end(1), destination: end(2) }, tcp, payload)
    }

    fn says(&mut self, text: &str) -> Vec<Head> {
        let seq = self.seq;
        self.seq = seq.wrapping_add(text.len() as u32);
        self.at(seq, text.len(), text.as_bytes())
    }
}

fn paths(heads: &[Head]) -> Vec<String> {
    let path = |head: &'_ Head| match head {
        Head::Request(request) => Some(request.path.clone()),
        Head::Response(_) | Head::Token(_) => None,
    };
    heads.iter().filter_map(path).collect()
}

#[test]
fn a_head_in_pieces_is_read_with_its_last_piece() {
    let mut side = Side::new();
    let text = format!("GET /latest/ HTTP/1.1\r\nX-aws-ec2-metadata-token: {TOKEN}\r\n\r\n");
    let (last, others) = text.split_at(text.len() - 1);
    for piece in last.as_bytes().chunks(7) {
        assert!(side.says(std::str::from_utf8(piece).unwrap()).is_empty());
    }
    let heads = side.says(others);
    assert_eq!(paths(&heads), ["/latest/"]);
    assert!(matches!(&heads[..], [Head::Request(head)] if head.token && head.mark.is_some()), "{heads:?}");
}

#[test]
fn several_requests_in_a_segment_are_all_read() {
    let mut side = Side::new();
    assert_eq!(paths(&side.says("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HT")), ["/a", "/b"]);
    assert_eq!(paths(&side.says("TP/1.1\r\n\r\n")), ["/c"]);
}

#[test]
fn a_token_is_marked_as_it_is_issued_and_as_it_is_used() {
    let mut side = Side::new();
    let mut heads =
        side.says("HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nContent-Length: 56\r\n\r\n");
    heads.extend(side.says(&TOKEN[..30]));
    heads.extend(side.says(&TOKEN[30..]));
    heads.extend(side.says(&format!("GET / HTTP/1.1\r\nx-aws-ec2-metadata-token: {TOKEN}\r\n\r\n")));
    let [Head::Response(_), Head::Token(issued), Head::Request(request)] = &heads[..] else { panic!("{heads:?}") };
    assert_eq!(request.mark, Some(*issued));
}

#[test]
fn a_segment_sent_again_says_the_same_again() {
    let mut side = Side::new();
    let seq = side.seq;
    let text = "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!";
    let first = side.says(text);
    assert_eq!(first.len(), 1);
    assert_eq!(side.at(seq, text.len(), text.as_bytes()), first);
    assert_eq!(side.says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").len(), 1);
}

#[test]
fn a_forged_segment_does_not_speak_for_the_real_one() {
    let mut side = Side::new();
    let seq = side.seq;
    assert_eq!(paths(&side.says("GET /forged HTTP/1.1\r\n\r\n")), ["/forged"]);
    let real = "PUT /really HTTP/1.1\r\n\r\n";
    assert_eq!(paths(&side.at(seq, real.len(), real.as_bytes())), ["/really"]);
}

#[test]
fn a_piece_sent_again_changes_nothing() {
    let mut side = Side::new();
    let seq = side.seq;
    assert!(side.says("GET /in/pi").is_empty());
    assert!(side.says("eces HTTP/1.1\r\n").is_empty());
    assert!(side.at(seq, 10, b"GET /in/pi").is_empty());
    assert_eq!(paths(&side.says("\r\n")), ["/in/pieces"]);
}

#[test]
fn ports_used_again_begin_anew() {
    let mut side = Side::new();
    assert!(side.says("GET /cut-sh").is_empty());
    assert_eq!(paths(&side.at(side.seq.wrapping_add(1 << 30), 21, b"GET /b HTTP/1.1\r\n\r\n")), ["/b"]);
    assert_eq!(paths(&side.at(side.seq.wrapping_sub(1 << 30), 21, b"GET /c HTTP/1.1\r\n\r\n")), ["/c"]);
}

#[test]
fn a_body_is_no_head_whatever_it_looks_like() {
    let mut side = Side::new();
    let heads = side.says("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nx GET /secret HTTP/1.1\r\n\r\n");
    assert_eq!(heads.len(), 1);
    assert!(side.says("and the rest").is_empty());
}

#[test]
fn after_missed_bytes_it_goes_on_with_the_next_message() {
    let mut side = Side::new();
    let seq = side.seq;
    // A segment of which the record holds a part.
    let heads = side.at(seq, 2_000, b"GET /long HTTP/1.1\r\nUser-Agent: a\r\nX-Rest: b");
    assert_eq!(paths(&heads), ["/long"]);
    assert!(side.at(seq.wrapping_add(2_000), 5, b"more ").is_empty());
    assert_eq!(paths(&side.at(seq.wrapping_add(9_000), 21, b"GET /b HTTP/1.1\r\n\r\n")), ["/b"]);
}

#[test]
fn an_answer_to_head_has_a_length_and_no_body() {
    let mut side = Side::new();
    assert_eq!(side.says("HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n").len(), 1);
    assert_eq!(side.says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").len(), 1);
}

#[test]
fn an_interim_answer_is_followed_by_the_answer_in_the_same_segment_or_a_later_one() {
    let statuses = |heads: Vec<Head>| -> Vec<(u16, bool)> {
        let status = |head: &Head| match head {
            Head::Response(head) => Some((head.status, head.is_interim())),
            Head::Request(_) | Head::Token(_) => None,
        };
        heads.iter().filter_map(status).collect()
    };
    let mut side = Side::new();
    let both = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(statuses(side.says(both)), [(100, true), (200, false)]);
    assert_eq!(statuses(side.says("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r")), []);
    assert_eq!(statuses(side.says("\nHTTP/1.1 102 Processing\r\n\r\nHT")), [(103, true), (102, true)]);
    assert_eq!(statuses(side.says("TP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")), [(404, false)]);
}

#[test]
fn a_body_in_chunks_ends_and_the_next_message_is_read() {
    let mut side = Side::new();
    let put = "PUT /latest/api/token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /a HTTP/1.1\r\n\r\n";
    assert_eq!(paths(&side.says(put)), ["/latest/api/token", "/a"]);
    let long = "POST /b HTTP/1.1\r\ntransfer-encoding: gzip, Chunked\r\n\r\n12;x=y\r\nGET /in HTTP/1.1\r\n";
    assert_eq!(paths(&side.says(long)), ["/b"]);
    assert!(side.says("\r\n0\r\nTrailer: GET /in\r\n").is_empty());
    assert_eq!(paths(&side.says("\r\nGET /c HTTP/1.1\r\n\r\n")), ["/c"]);
}

#[test]
fn a_token_in_chunks_is_the_same_token() {
    let mut side = Side::new();
    let head = "HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut heads = side.says(head);
    heads.extend(side.says(&format!("1e\r\n{}\r\n1A\r\n", &TOKEN[..30])));
    heads.extend(side.says(&format!("{}\r\n0\r\n\r\n", &TOKEN[30..])));
    heads.extend(side.says(&format!("GET / HTTP/1.1\r\nx-aws-ec2-metadata-token: {TOKEN}\r\n\r\n")));
    let [Head::Response(_), Head::Token(issued), Head::Request(request)] = &heads[..] else { panic!("{heads:?}") };
    assert_eq!(request.mark, Some(*issued));
}

#[test]
fn chunks_that_are_none_are_waited_out() {
    let mut side = Side::new();
    assert_eq!(side.says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n").len(), 1);
    assert!(side.says("and what follows").is_empty());
    assert_eq!(side.says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").len(), 1);
}

#[test]
fn what_has_gone_quiet_is_forgotten_and_half_a_message_is_not() {
    let at = |seconds: u64| Timestamp(seconds * 1_000_000_000);
    let mut side = Side::new();
    side.streams.tick(at(1_000));
    side.says("GET /a HTTP/1.1\r\n\r\nGET /b");
    side.streams.tick(at(1_100));
    assert_eq!(paths(&side.says(" HTTP/1.1\r\n\r\n")), ["/b"]);
    side.streams.tick(at(1_104));
    assert_eq!(side.streams.streams.len(), 1, "it spoke at 1100");
    side.streams.tick(at(1_105));
    assert!(side.streams.streams.is_empty() && side.streams.order.is_empty());
    assert_eq!(paths(&side.says("GET /c HTTP/1.1\r\n\r\nGET /d")), ["/c"]);
    for seconds in 1_106..=1_235 {
        side.streams.tick(at(seconds));
    }
    // It is looked at again within five seconds.
    side.streams.tick(at(1_240));
    assert!(side.streams.streams.is_empty() && side.streams.order.is_empty());
}

#[test]
fn an_old_answer_without_a_length_is_read_once() {
    let mut side = Side::new();
    assert_eq!(side.says("HTTP/1.0 200 OK\r\nServer: EC2ws\r\n\r\ni-0123").len(), 1);
    assert!(side.says("456789").is_empty());
}
