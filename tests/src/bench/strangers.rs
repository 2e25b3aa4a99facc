//! What do those pay who have nothing to do with IMDS?
//!
//! In turns: alone, beside the tracer, alone again (what chance makes of nothing), beside tcpdump.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::Result;

use super::process::Watch;
use super::{Lab, Sheet, load, microseconds, milliseconds, nanoseconds, peers};

/// How many connects, packets and drops.
const CONNECTS: u32 = 20_000;
const PACKETS: u32 = 50_000;
const DROPS: u32 = 100_000;
/// How long one connection sends.
const SENDS: Duration = Duration::from_secs(2);
/// Where the server's namespace listens besides.
const SINK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Connects on a loopback, packets through bridge and NAT, packets that are dropped.
pub fn strangers(lab: &Lab, sheet: &mut Sheet) -> Result<()> {
    let sink = lab.host.imds_ns().run_inside(|| UdpSocket::bind((SINK, 9)))??;
    let connects = || load::connects(&lab.client, CONNECTS);
    let packets = || load::packets(&lab.client, &sink, PACKETS);
    let drops = || load::drops(&lab.client, DROPS);
    let (connect, packet, dropped) = (connects()?, packets()?, drops()?);
    let watch = Watch::start(&lab.host, false)?;
    let before = watch.cpu()?;
    let (connect_beside, packet_beside, dropped_beside) = (connects()?, packets()?, drops()?);
    let spent = watch.cpu()? - before;
    watch.stop()?;
    let (connect_again, packet_again, dropped_again) = (connects()?, packets()?, drops()?);
    sheet.note("a stranger's connect and close", "us", microseconds(connect));
    sheet.note("... added by the tracer", "us", microseconds(connect_beside) - microseconds(connect));
    sheet.note("... added by chance", "us", microseconds(connect_again) - microseconds(connect));
    sheet.note("a stranger's UDP packet", "ns", nanoseconds(packet));
    sheet.note("... added to it by the tracer", "ns", nanoseconds(packet_beside) - nanoseconds(packet));
    sheet.note("... added to it by chance", "ns", nanoseconds(packet_again) - nanoseconds(packet));
    sheet.note("a stranger's packet that is dropped", "ns", nanoseconds(dropped));
    sheet.note("... added to the drop by the tracer", "ns", nanoseconds(dropped_beside) - nanoseconds(dropped));
    sheet.note("... added to the drop by chance", "ns", nanoseconds(dropped_again) - nanoseconds(dropped));
    sheet.note("processor time of the tracer for all of these", "ms", milliseconds(spent));
    if let Some(_peer) = peers::Tcpdump::start(&lab.host)? {
        sheet.note("... added to it by tcpdump -w", "ns", nanoseconds(packets()?) - nanoseconds(packet));
    }
    Ok(())
}

/// One TCP connection through bridge and NAT.
pub fn throughput(lab: &Lab, sheet: &mut Sheet) -> Result<()> {
    let send = || load::throughput(&lab.client, lab.host.imds_ns(), SINK, SENDS);
    let alone = send()?;
    let watch = Watch::start(&lab.host, false)?;
    let beside = send()?;
    watch.stop()?;
    let again = send()?;
    sheet.note("a stranger's TCP throughput", "Gbit/s", alone * 8e-9);
    sheet.note("... kept beside the tracer", "", beside / alone);
    sheet.note("... kept by chance", "", again / alone);
    if let Some(_peer) = peers::Tcpdump::start(&lab.host)? {
        sheet.note("... kept beside tcpdump -w", "", send()? / alone);
    }
    Ok(())
}
