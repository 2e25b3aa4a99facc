//! What does the pipeline take in, when this is what a person wrote?

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use diagnosis::event::Ready;
use diagnosis::identity::fact::{
    self, Ancestor, Connected, Connecting, ContainerDetail, Fact, Network, Outcome, ProcessDetail, Said, Socket,
};
use diagnosis::input::Input;
use diagnosis::net::{BootTime, Endpoint, Flow, Heading, Netns, Timestamp, Ttl};
use diagnosis::observation::Observation;
use diagnosis::recording::{Chain, Header, VERSION};

use super::place::{HOST_NETNS, endpoint, interface};
use super::tcp::Conversation;
use super::{Attempt, Connect, Container, Counted, Exceeded, Packet, Process, Scenario, Uplinks};

/// The instance's id.
pub const INSTANCE: &str = "i-0123456789abcdef0";
/// Where 0 ms is: a thousand seconds after boot.
const ZERO: i64 = 1_000_000;
/// Later than anything in a scenario.
pub const END: Timestamp = Timestamp(2_000_000_000_000_000);
/// Between two places of a packet, ns.
const STEP: u64 = 20_000;
const IPPROTO_TCP: u8 = 6;

/// The first line of the recording that a scenario would be.
pub fn header() -> Header {
    Header {
        recording: VERSION,
        boot_time: BootTime(1_767_225_600_000_000_000),
        at: at(-2_000),
        netns: HOST_NETNS,
        pid_namespace: None,
        endpoints: vec![[169, 254, 169, 254].into(), [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254].into()],
        instance: Some(INSTANCE.to_owned()),
        ready: Ready {
            version: Some("0.1.0".into()),
            kernel: Some("6.12.0".into()),
            hooks: Vec::new(),
            missing: Vec::new(),
            features: Vec::new(),
        },
        chain: Chain::default(),
    }
}

/// The id of the container called `name`: 64 hexadecimal digits.
pub fn id_of(name: &str) -> String {
    // FNV-1a, so that names that differ in one letter differ in all digits.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}").repeat(4)
}

fn at(ms: i64) -> Timestamp {
    Timestamp(u64::try_from(ZERO + ms).unwrap_or(0) * 1_000_000)
}

fn told(ms: i64, said: Said) -> Input {
    Input::Fact(Fact { at: at(ms), said })
}

impl Scenario {
    /// Everything the pipeline takes in, in the order in which it comes: by time, and at the same time the engine's word before
    /// the kernel's.
    pub fn inputs(&self) -> Result<Vec<Input>> {
        let mut conversations: Vec<Conversation> =
            self.clients.iter().enumerate().map(|(number, client)| Conversation::new(number, client.isn)).collect();
        let mut inputs: Vec<(Timestamp, Input)> = Vec::new();
        let mut add = |input: Input| inputs.push((input.at(), input));
        self.counters.iter().for_each(|counter| {
            let said = Said::InHdrErrors { netns: HOST_NETNS, v4: counter.in_hdr_errors, v6: 0 };
            add(told(counter.ms, said));
        });
        if let Some(uplinks) = &self.uplinks {
            add(surroundings(uplinks)?);
        }
        if let Some(forwarding) = &self.forwarding {
            add(told(-1_500, Said::Forwarding(forwarding.clone())));
        }
        self.exceeded.iter().for_each(|reading| {
            let Exceeded { ms, interface, packets } = reading.clone();
            add(told(ms, Said::LinkLocalExceeded { interface, packets }));
        });
        for container in &self.containers {
            add(introduce(container)?);
        }
        for gone in &self.gone {
            add(told(gone.ms, Said::ContainerGone { id: id_of(&gone.name), user: None }));
        }
        for (number, connect) in self.connects.iter().enumerate() {
            let (index, _) = self.client(connect.client.as_deref())?;
            let [connecting, _] = self.connect(number as u64, connect, conversations[index].isn())?;
            if let (Some(ms), Input::Fact(Fact { said: Said::Connecting(task), .. })) =
                (connect.attempt_ms, &connecting)
            {
                add(told(ms, Said::Attempting(Connecting { socket: 0, ttl: None, ..task.clone() })));
            }
            add(connecting);
            let [_, connected] = self.connect(number as u64, connect, conversations[index].isn())?;
            if let (Some(ms), Input::Fact(Fact { said: Said::Connected(connected), .. })) =
                (connect.sending_ms, connected)
            {
                add(told(ms, Said::Sending(connected.socket)));
            }
        }
        for attempt in &self.attempts {
            add(told(attempt.ms, Said::Attempting(attempted(attempt)?)));
        }
        for process in &self.processes {
            add(describe(process)?);
        }
        for (number, connect) in self.connects.iter().enumerate() {
            let (index, _) = self.client(connect.client.as_deref())?;
            let [_, connected] = self.connect(number as u64, connect, conversations[index].isn())?;
            add(connected);
        }
        for counted in &self.counted {
            add(self.count(counted, &conversations)?);
        }
        for packet in &self.packets {
            let (index, _) = self.client(packet.client.as_deref())?;
            self.observe(packet, &mut conversations[index])?.into_iter().for_each(&mut add);
        }
        self.lost.iter().for_each(|lost| {
            add(Input::Lost { at: at(lost.ms), ring_buffer: lost.ring_buffer, unreadable: 0 });
        });
        inputs.sort_by_key(|(at, _)| *at);
        Ok(inputs.into_iter().map(|(_, input)| input).collect())
    }

    fn connect(&self, number: u64, connect: &Connect, isn: u32) -> Result<[Input; 2]> {
        let (_, client) = self.client(connect.client.as_deref())?;
        let source = endpoint(&client.inside)?;
        let destination = imds(client.imds.as_deref(), source)?;
        let netns = connect.netns.map_or(HOST_NETNS, Netns);
        let socket = 0xffff_8880_0000_0000 + number * 0x1000;
        let connecting = Said::Connecting(Connecting {
            socket,
            destination,
            netns,
            pid: connect.pid,
            tid: connect.pid,
            uid: 0,
            gid: 0,
            comm: connect.comm.clone(),
            cgroup: connect.cgroup.unwrap_or(1),
            ttl: Some(Ttl(connect.ttl.unwrap_or(64))),
            started: connect.started_ms.map(at),
            pid_namespace: None,
            inner_pid: None,
            told: Arc::default(),
        });
        let outcome = match connect.error {
            None if !connect.no_port => {
                Outcome::Established { counts: self.counted.iter().any(|counted| counted.client == connect.client) }
            }
            error => Outcome::Failed(error.filter(|error| *error != 0)),
        };
        let socket = Socket { socket, source, destination, isn, netns };
        let connected = Said::Connected(Connected { socket, outcome });
        let known = connect.known_ms.unwrap_or(connect.ms + 1);
        Ok([told(connect.ms, connecting), told(known, connected)])
    }

    /// What a client's socket counted; its connect says which socket that is.
    fn count(&self, counted: &Counted, conversations: &[Conversation]) -> Result<Input> {
        let Counted { ms, client, state, received, acked, error } = counted.clone();
        let (index, _) = self.client(client.as_deref())?;
        let its = self.connects.iter().enumerate().find(|(_, connect)| connect.client == client);
        let (number, connect) = its.context("who counts has connected")?;
        let [_, connected] = self.connect(number as u64, connect, conversations[index].isn())?;
        let Input::Fact(Fact { said: Said::Connected(connected), .. }) = connected else {
            bail!("a connect tells how it ended");
        };
        let Socket { socket, source, destination, isn, netns } = connected.socket;
        let established = matches!(connected.outcome, Outcome::Established { .. });
        let counted =
            fact::Counted { socket, source, destination, isn, netns, established, received, acked, error, state };
        Ok(told(ms, Said::Counted(counted)))
    }

    fn observe(&self, packet: &Packet, conversation: &mut Conversation) -> Result<Vec<Input>> {
        let (_, client) = self.client(packet.client.as_deref())?;
        let inside = endpoint(&client.inside)?;
        let outside = client.outside.as_deref().map_or(Ok(inside), endpoint)?;
        let imds = imds(client.imds.as_deref(), inside)?;
        let filled = conversation.fill(packet)?;
        let places = packet.at.iter().zip(0..);
        Ok(places
            .map(|(place, number)| {
                let client = place.client.unwrap_or(if place.is_outside() { outside } else { inside });
                let flow = match filled.heading {
                    Heading::ToImds => Flow { source: client, destination: place.redirected.unwrap_or(imds) },
                    Heading::FromImds => Flow { source: imds, destination: client },
                };
                Input::Observation(Observation {
                    at: Timestamp(at(packet.ms).0 + number * STEP),
                    place: place.place.clone(),
                    heading: filled.heading,
                    flow,
                    ttl: place.ttl,
                    ip_id: if imds.address.is_ipv4() { filled.ip_id } else { 0 },
                    protocol: IPPROTO_TCP,
                    tcp: Some(filled.tcp),
                    // The kernel half reads payload where packets pass, not where they are dropped.
                    heads: if place.is_drop() { Vec::new() } else { filled.heads.clone() },
                    icmp: filled.icmp,
                    redirected: place.redirected.is_some(),
                })
            })
            .collect())
    }
}

fn imds(given: Option<&str>, client: Endpoint) -> Result<Endpoint> {
    endpoint(given.unwrap_or(if client.address.is_ipv4() { "169.254.169.254:80" } else { "[fd00:ec2::254]:80" }))
}

fn introduce(container: &Container) -> Result<Input> {
    let addresses = container.addresses.iter().map(|address| address.parse().context("a container's address"));
    Ok(told(
        container.ms.unwrap_or(-1_000),
        Said::Container(ContainerDetail {
            id: id_of(&container.name),
            name: Some(container.name.clone()),
            image: Some("runner:1".to_owned()),
            netns: container.netns.map(Netns),
            user: container.user,
            addresses: addresses.collect::<Result<_>>()?,
            ..ContainerDetail::default()
        }),
    ))
}

/// A cgroup path in which `{NAME}` stands for that container's id.
fn with_ids(path: &str) -> String {
    let named = path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    named.map_or(path.to_owned(), |(before, (name, behind))| format!("{before}{}{behind}", id_of(name)))
}

/// Before everything else.
fn surroundings(uplinks: &Uplinks) -> Result<Input> {
    let addresses = uplinks.addresses.iter().map(|address| address.parse().context("an address of the host"));
    Ok(told(
        -1_500,
        Said::Uplinks {
            interfaces: uplinks.interfaces.iter().map(|name| interface(name, HOST_NETNS).index).collect(),
            inward: uplinks.inward.iter().map(|name| interface(name, HOST_NETNS).index).collect(),
            addresses: addresses.collect::<Result<_>>()?,
            networks: uplinks.networks.iter().map(|words| network(words)).collect::<Result<_>>()?,
            watched: uplinks.watched.unwrap_or(true),
        },
    ))
}

fn network(words: &str) -> Result<Network> {
    let parts = words.split_once(' ').and_then(|(name, rest)| Some((name, rest.split_once('/')?)));
    let (name, (address, bits)) = parts.with_context(|| format!("{words:?} is not INTERFACE ADDRESS/BITS"))?;
    Ok(Network {
        interface: interface(name, HOST_NETNS).index,
        address: address.parse().context("a network's address")?,
        bits: bits.parse().context("a network's bits")?,
    })
}

fn attempted(attempt: &Attempt) -> Result<Connecting> {
    Ok(Connecting {
        socket: 0,
        destination: endpoint(attempt.to.as_deref().unwrap_or("169.254.169.254:80"))?,
        netns: attempt.netns.map_or(HOST_NETNS, Netns),
        pid: attempt.pid,
        tid: attempt.pid,
        uid: 0,
        gid: 0,
        comm: attempt.comm.clone(),
        cgroup: 1,
        ttl: None,
        started: None,
        pid_namespace: None,
        inner_pid: None,
        told: Arc::default(),
    })
}

fn describe(process: &Process) -> Result<Input> {
    let ancestors = process.ancestors.iter().map(|words| {
        let (pid, comm) = words.split_once(' ').with_context(|| format!("{words:?} is not PID NAME"))?;
        Ok(Ancestor { pid: pid.parse().context("an ancestor's pid")?, comm: comm.to_owned() })
    });
    let detail = ProcessDetail {
        pid: process.pid,
        found: !process.gone,
        started: None,
        exe: process.exe.clone(),
        argv: process.argv.clone(),
        cgroup: process.cgroup.as_deref().map(with_ids),
        container: process.container.as_deref().map(id_of),
        ancestors: ancestors.collect::<Result<_>>()?,
    };
    Ok(told(process.ms, Said::Process(detail)))
}
