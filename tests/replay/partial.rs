//! Is a part of what happened told as a part? Captures that begin late, miss packets, have them in pieces, cut short or without times:
//! they may say less, and accuse nobody of what he did not do.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use imds_trace_replay_tests::wire::around::{ether_type, ethernet, in_udp, tagged};
use imds_trace_replay_tests::wire::file::{Pcapng, Timed, pcap, pcap_of};
use imds_trace_replay_tests::wire::{Sent, Story};
use libtest_mimic::Trial;

use crate::handed_over::{Told, all, at, frames, stories};

/// All of them.
pub fn trials() -> Vec<Trial> {
    type Test = fn() -> Result<()>;
    let tests: [(&str, Test); 11] = [
        ("begun_late_it_accuses_nobody_of_not_asking", begun_late),
        ("any_packet_may_be_missing", one_missing),
        ("a_command_names_no_interface_that_only_a_capture_calls_so", without_request),
        ("what_stays_on_inner_bridges_was_not_seen_leaving_the_host", on_inner_bridges),
        ("zeros_at_the_end_are_damage", zeros_behind),
        ("a_first_packet_without_a_time_has_no_longer_header", timeless_first),
        ("pieces_of_packets_are_counted", in_pieces),
        ("without_times_it_says_so", no_times),
        ("cut_in_the_link_layer_it_says_so", cut_early),
        ("requests_cut_in_their_head_are_told_as_not_read", cut_in_heads),
        ("tunnels_over_udp_are_named", tunnels),
    ];
    tests.into_iter().map(|(name, test)| Trial::test(format!("partial::{name}"), move || Ok(test()?))).collect()
}

/// Those in which the token is lost, and its client goes on without it.
fn lost() -> Vec<(String, Story)> {
    let is_lost = |story: &Story| story.hop_limit < u8::try_from(story.links.len()).ok();
    stories().into_iter().filter(|(_, story)| is_lost(story)).collect()
}

/// No other rule than that of the hop limit accuses anybody.
fn expect_no_other(what: &str, told: &Told) -> Result<()> {
    let others: BTreeSet<_> = told.errors().into_iter().filter(|(rule, _)| *rule != "hop-limit-too-low").collect();
    if others.is_empty() { Ok(()) } else { bail!("{what}: {others:?}") }
}

/// All links together, and each alone.
fn places(story: &Story) -> Vec<Vec<usize>> {
    let alone = all(story).into_iter().map(|link| vec![link]);
    std::iter::once(all(story)).chain(alone).collect()
}

/// Is it of the connection over which the token was asked for?
fn asks_for_token(sent: &Sent, story: &Story) -> bool {
    let header = if sent.ip[0] >> 4 == 6 { 40 } else { 20 };
    let port = header + if sent.to_imds { 0 } else { 2 };
    sent.ip[port..port + 2] == (story.port + 1).to_be_bytes()
}

fn begun_late() -> Result<()> {
    for (what, story) in lost() {
        let sent = story.tell();
        for links in places(&story) {
            for from in 0..sent.len() {
                let rest = &sent[from..];
                // Where nothing of that connection is left, nobody can know that there was one.
                if !rest.iter().any(|sent| links.contains(&sent.link) && asks_for_token(sent, &story)) {
                    break;
                }
                let told = Told::of(&[pcap(&frames(rest, &links, at))])?;
                expect_no_other(&format!("{what}, links {links:?}, from {from}"), &told)?;
            }
        }
    }
    Ok(())
}

fn one_missing() -> Result<()> {
    for (what, story) in lost() {
        let sent = story.tell();
        for links in places(&story) {
            for missing in 0..sent.len() {
                let rest: Vec<Sent> = sent
                    .iter()
                    .enumerate()
                    .filter(|(number, _)| *number != missing)
                    .map(|(_, sent)| sent.clone())
                    .collect();
                let told = Told::of(&[pcap(&frames(&rest, &links, at))])?;
                expect_no_other(&format!("{what}, links {links:?}, without {missing}"), &told)?;
            }
        }
    }
    Ok(())
}

/// An IPv4 packet in pieces of 64 bytes.
fn pieces(sent: &Sent) -> Vec<Sent> {
    const HEADER: usize = 20;
    const PIECE: usize = 64;
    let (header, payload) = sent.ip.split_at(HEADER);
    let count = payload.len().div_ceil(PIECE);
    let piece = |(number, bytes): (usize, &[u8])| {
        let mut ip = [header, bytes].concat();
        ip[2..4].copy_from_slice(&((HEADER + bytes.len()) as u16).to_be_bytes());
        let more = if number + 1 < count { 0x2000 } else { 0 };
        ip[6..8].copy_from_slice(&(more | (number * PIECE / 8) as u16).to_be_bytes());
        Sent { ip, ..sent.clone() }
    };
    payload.chunks(PIECE).enumerate().map(piece).collect()
}

fn without_request() -> Result<()> {
    for (what, story) in lost() {
        let sent = story.tell();
        let rest: Vec<Sent> =
            sent.into_iter().filter(|sent| !sent.ip.windows(4).any(|bytes| bytes == b"PUT ")).collect();
        let told = Told::of(&[pcap(&frames(&rest, &all(&story), at))])?;
        let commands = told.report.findings.iter().flat_map(|finding| &finding.says.remedy);
        let commands: Vec<&String> = commands.filter(|command| command.contains("tcpdump")).collect();
        if commands.is_empty() || !commands.iter().all(|command| command.contains("-nvi any ")) {
            bail!("{what}: {commands:?}");
        }
    }
    Ok(())
}

fn on_inner_bridges() -> Result<()> {
    /// The option that names an interface.
    const IF_NAME: u16 = 2;
    for hop_limit in [None, Some(1)] {
        let named = |name: &str| [(IF_NAME, name.as_bytes().to_vec())];
        let mut file = Pcapng::default().section(false).interface(1, &named("br-1")).interface(1, &named("docker0"));
        for sent in Story::nested(hop_limit).tell().iter().filter(|sent| sent.link < 2) {
            file = file.enhanced(sent.link as u32, sent.at / 1_000, &ethernet(sent), &[]);
        }
        let told = Told::of(&[file.bytes])?;
        let says = told.report.findings.iter().map(|finding| &finding.says.summary);
        let leaving: Vec<&String> = says.filter(|summary| summary.contains("leaving by docker0")).collect();
        if !leaving.is_empty() {
            bail!("{hop_limit:?}: {leaving:?}");
        }
    }
    Ok(())
}

fn zeros_behind() -> Result<()> {
    for (what, story) in lost() {
        let whole = pcap(&frames(&story.tell(), &all(&story), at));
        for zeros in [16, 100, 4_096] {
            let told = Told::of(&[[whole.clone(), vec![0; zeros]].concat()])?;
            let accused = told.errors().into_iter().map(|(rule, _)| rule).collect::<Vec<_>>();
            if accused != ["hop-limit-too-low"] || !told.failures.iter().any(|failure| failure.contains("zeros stand"))
            {
                bail!("{what}, {zeros} zeros: {told:?}");
            }
        }
    }
    Ok(())
}

fn timeless_first() -> Result<()> {
    for (what, story) in stories() {
        let mut whole = pcap(&frames(&story.tell(), &all(&story), at));
        whole[24..32].fill(0);
        let told = Told::of(&[whole]).with_context(|| what.clone())?;
        expect_no_other(&what, &told)?;
    }
    Ok(())
}

fn in_pieces() -> Result<()> {
    for (what, story) in stories().into_iter().filter(|(_, story)| story.links[0].client.is_ipv4()) {
        let whole = |sent: &Sent| sent.to_imds || sent.ip.len() <= 84;
        let sent: Vec<Sent> =
            story.tell().iter().flat_map(|sent| if whole(sent) { vec![sent.clone()] } else { pieces(sent) }).collect();
        let told = Told::of(&[pcap(&frames(&sent, &all(&story), at))])?;
        expect_no_other(&what, &told)?;
        if told.report.lost.unreadable == 0 || !told.notes.iter().any(|note| note.contains("IP fragments")) {
            bail!("{what}: not told: {told:?}");
        }
    }
    Ok(())
}

fn no_times() -> Result<()> {
    for (what, story) in stories() {
        let timeless: Vec<Timed> =
            frames(&story.tell(), &all(&story), at).into_iter().map(|(_, frame)| (0, frame)).collect();
        let mut other = Pcapng::default().section(true).interface(1, &[]);
        for (_, frame) in &timeless {
            other = other.enhanced(0, 0, frame, &[]);
        }
        for file in [pcap(&timeless), other.bytes] {
            let told = Told::of(&[file])?;
            expect_no_other(&what, &told)?;
            if told.report.lost.unreadable == 0 || !told.notes.iter().any(|note| note.contains("have no time")) {
                bail!("{what}: not told: {told:?}");
            }
        }
    }
    Ok(())
}

fn cut_early() -> Result<()> {
    for (what, story) in stories() {
        let sent = story.tell();
        let tag = |sent: &Sent| tagged(sent, &[&[0x81, 0, 0, 7], &ether_type(sent)[..]].concat());
        let tags: Vec<Timed> = sent.iter().map(|sent| (sent.at, tag(sent))).collect();
        for kept in 1..34 {
            for frames in [frames(&sent, &all(&story), at), tags.clone()] {
                let told = Told::of(&[pcap_of(1, kept, &frames)])?;
                expect_no_other(&what, &told)?;
                if told.report.lost.unreadable == 0 || !told.notes.iter().any(|note| note.contains("-s 0")) {
                    bail!("{what}, -s {kept}: not told: {told:?}");
                }
            }
        }
    }
    Ok(())
}

fn cut_in_heads() -> Result<()> {
    // Ethernet, IPv4 and TCP with times; and where in the longer request its token ends.
    const HEADERS: usize = 14 + 20 + 32;
    const WITH_TOKEN: usize = HEADERS + 128;
    let sent = Story::masqueraded(Some(2)).tell();
    for kept in HEADERS + 1..300 {
        let told = Told::of(&[pcap_of(1, kept, &frames(&sent, &[1], at))])?;
        expect_no_other("healthy", &told)?;
        let unread: u64 = told.report.subjects.iter().map(|tally| tally.unread).sum();
        let is_noted = told.notes.iter().any(|note| note.contains("not kept to their end") && note.contains("-s 0"));
        if (unread > 0, is_noted) != (kept < WITH_TOKEN, kept < WITH_TOKEN + 2) {
            bail!("-s {kept}: {unread} not read, {:?}", told.notes);
        }
    }
    Ok(())
}

fn tunnels() -> Result<()> {
    let sent = Story::masqueraded(Some(2)).tell();
    for (port, name) in [(1_701, "L2TP"), (2_152, "GTP"), (4_500, "IPsec"), (51_820, "WireGuard")] {
        let wrapped: Vec<Timed> =
            sent.iter().map(|sent| (sent.at, in_udp(&ethernet(sent), port, &[4, 0, 0, 0]))).collect();
        let told = Told::of(&[pcap(&wrapped)])?;
        if !told.notes.iter().any(|note| note.contains(name) && note.contains("tcpdump -i any -w")) {
            bail!("{name}: {:?}", told.notes);
        }
    }
    Ok(())
}
