//! What hangs on the interfaces by traffic control, and how is it taken off? Asked and waited for, so that it works in a drop.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use diagnosis::net::{Direction, Ifindex};

/// Bytes before the payload of a message: its length, type, flags, sequence number and sender (`struct nlmsghdr`).
const HEADER: usize = 16;

/// A filter on an interface.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Its handle.
    pub handle: u32,
    /// The name given to its program; `None` if it is no BPF filter.
    pub program: Option<String>,
    /// The kernel's number for its program.
    pub id: Option<u32>,
    /// What kind of filter it is: `bpf`, `flower`, `u32`.
    pub kind: String,
    header: TcHeader,
}

/// A line to the kernel.
#[derive(Debug)]
pub struct Netlink(Socket);

impl Netlink {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The interfaces that have a clsact qdisc.
    pub fn clsact(&self) -> io::Result<Vec<Ifindex>> {
        self.with_qdisc(&["clsact"])
    }

    /// The interfaces that have a qdisc on whose sides filters hang.
    pub fn classified(&self) -> io::Result<Vec<Ifindex>> {
        self.with_qdisc(&["clsact", "ingress"])
    }

    fn with_qdisc(&self, kinds: &[&str]) -> io::Result<Vec<Ifindex>> {
        let mut found = Vec::new();
        for told in self.ask(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), NLM_F_DUMP)? {
            let Some(RouteNetlinkMessage::NewQueueDiscipline(qdisc)) = told else { continue };
            if kind(&qdisc).is_some_and(|kind| kinds.contains(&kind)) {
                found.push(Ifindex(qdisc.header.index.cast_unsigned()));
            }
        }
        Ok(found)
    }

    /// The filters on one side of an interface; none if it has no clsact qdisc, or is gone.
    pub fn filters(&self, index: Ifindex, direction: Direction) -> io::Result<Vec<Filter>> {
        let mut wanted = TcMessage::with_index(index.0.cast_signed());
        let minor = if direction == Direction::Ingress { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS };
        wanted.header.parent = TcHandle { minor, ..TcHandle::CLSACT };
        let told = self.ask(RouteNetlinkMessage::GetTrafficFilter(wanted), NLM_F_DUMP)?;
        let read = |told: Option<RouteNetlinkMessage>| match told {
            Some(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                let handle = u32::from(filter.header.handle);
                // What has no handle stands for all of a priority.
                (handle != 0).then(|| {
                    let (program, id) = program(&filter);
                    let kind = kind(&filter).unwrap_or_default().to_owned();
                    Filter { handle, program, id, kind, header: filter.header }
                })
            }
            // One that cannot be read is there all the same, and not ours.
            None => {
                Some(Filter { handle: 0, program: None, id: None, kind: String::new(), header: TcHeader::default() })
            }
            Some(_) => None,
        };
        Ok(told.into_iter().filter_map(read).collect())
    }

    /// Takes a filter off. No error if it is gone.
    pub fn remove_filter(&self, filter: &Filter) -> io::Result<()> {
        let message = TcMessage::from_parts(filter.header.clone(), Vec::new());
        gone(self.ask(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK))
    }

    /// Takes the clsact qdisc off, and whatever hangs on it. No error if it is gone.
    pub fn remove_clsact(&self, index: Ifindex) -> io::Result<()> {
        let mut qdisc = TcMessage::with_index(index.0.cast_signed());
        qdisc.header.parent = TcHandle::CLSACT;
        qdisc.header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
        gone(self.ask(RouteNetlinkMessage::DelQueueDiscipline(qdisc), NLM_F_ACK))
    }

    /// What the kernel answers; `None` stands for a message that cannot be read.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<Option<RouteNetlinkMessage>>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut told = Vec::new();
        loop {
            let (answers, _) = self.0.recv_from_full()?;
            let mut rest = answers.as_slice();
            while rest.len() >= HEADER {
                let length = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?.length() as usize;
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map(|message| message.payload) {
                    Ok(NetlinkPayload::Done(_)) => return Ok(told),
                    Ok(NetlinkPayload::Error(error)) if error.code.is_none() => return Ok(told),
                    Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                    Ok(NetlinkPayload::InnerMessage(message)) => told.push(Some(message)),
                    Ok(_) => {}
                    Err(_) => told.push(None),
                }
                // Messages begin at multiples of 4.
                rest = rest.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
            }
        }
    }
}

/// What kind of qdisc or filter it is.
fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// The name given to a filter's program, and the kernel's number for it.
fn program(filter: &TcMessage) -> (Option<String>, Option<u32>) {
    let (mut name, mut number) = (None, None);
    for attribute in &filter.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(said)) => name = Some(said.clone()),
                TcOption::Bpf(TcFilterBpfOption::ProgId(said)) => number = Some(*said),
                _ => {}
            }
        }
    }
    (name, number)
}

/// Not being there any more is as good.
fn gone(result: io::Result<Vec<Option<RouteNetlinkMessage>>>) -> io::Result<()> {
    use nix::libc::{EINVAL, ENODEV, ENOENT};
    match result {
        // Without the qdisc, the kernel says of its filters that the request is invalid.
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENODEV | EINVAL)) => Ok(()),
        result => result.map(drop),
    }
}
