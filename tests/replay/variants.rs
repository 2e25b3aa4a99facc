//! Do captures fare alike, whatever was put around their packets, whoever wrote them, and whichever part of the way they show?

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use imds_trace_replay_tests::expect_equal;
use imds_trace_replay_tests::wire::around::{cooked2, ether_type, ethernet, in_ip, in_udp, tagged};
use imds_trace_replay_tests::wire::file::{Pcapng, Timed, pcap, pcap_in, pcap_of};
use imds_trace_replay_tests::wire::{BEGIN, Sent, Story};
use libtest_mimic::Trial;

use crate::handed_over::{Told, all, at, expect_whole, frames, stories};

/// All of them.
pub fn trials() -> Vec<Trial> {
    type Test = fn() -> Result<()>;
    let tests: [(&str, Test); 12] = [
        ("what_programs_print_of_packets_is_named", printed),
        ("a_pcap_with_longer_packet_headers_is_named", longer_headers),
        ("tags_labels_and_sessions_are_taken_off", tags),
        ("a_tunnel_at_any_port_is_opened", ports),
        ("ip_in_ip_is_opened", without_frames),
        ("what_is_not_looked_into_is_named_with_its_first_packet", unopened),
        ("either_byte_order_and_resolution_is_read", magics),
        ("odd_units_of_time_are_read", units),
        ("each_of_three_clocks_may_be_wrong", three_clocks),
        ("one_direction_alone_accuses_nobody", one_direction),
        ("a_capture_that_ends_anywhere_accuses_nobody", cut_anywhere),
        ("a_capture_without_a_packet_says_so", nothing_in_it),
    ];
    tests.into_iter().map(|(name, test)| Trial::test(format!("variants::{name}"), move || Ok(test()?))).collect()
}

type Wrap<'a> = &'a dyn Fn(&Sent) -> Vec<u8>;

/// Every story, each packet wrapped so.
fn expect_wrapped(wraps: &[(&str, Wrap<'_>)], link: u32, stories: &[(String, Story)]) -> Result<()> {
    for (what, story) in stories {
        for (name, wrap) in wraps {
            let wrapped: Vec<Timed> = story.tell().iter().map(|sent| (sent.at, wrap(sent))).collect();
            expect_whole(&format!("{what} in {name}"), story, &[pcap_of(link, 262_144, &wrapped)])?;
        }
    }
    Ok(())
}

fn tags() -> Result<()> {
    let tags = |sent: &Sent, tags: &[u8]| tagged(sent, &[tags, &ether_type(sent)].concat());
    let one = |sent: &Sent| tags(sent, &[0x81, 0, 0, 7]);
    let two = |sent: &Sent| tags(sent, &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8]);
    let three = |sent: &Sent| tags(sent, &[0x91, 0, 0, 7, 0x81, 0, 0, 8, 0x81, 0, 0, 9]);
    let label = |sent: &Sent| tagged(sent, &[0x88, 0x47, 0, 1, 1, 64]);
    let labels = |sent: &Sent| tagged(sent, &[0x88, 0x47, 0, 1, 0, 64, 0, 2, 1, 64]);
    let tag_and_label = |sent: &Sent| tagged(sent, &[0x81, 0, 0, 7, 0x88, 0x47, 0, 1, 1, 64]);
    let session = |sent: &Sent| {
        let kind = if sent.ip[0] >> 4 == 6 { 0x57 } else { 0x21 };
        tagged(sent, &[0x88, 0x64, 0x11, 0, 0, 7, 0, 0, 0, kind])
    };
    let wraps: [(&str, Wrap<'_>); 7] = [
        ("802.1Q", &one),
        ("802.1ad", &two),
        ("three tags", &three),
        ("a label", &label),
        ("two labels", &labels),
        ("a tag and a label", &tag_and_label),
        ("PPPoE", &session),
    ];
    expect_wrapped(&wraps, 1, &stories())
}

fn ports() -> Result<()> {
    let vxlan = |sent: &Sent| in_udp(&ethernet(sent), 7_789, &[8, 0, 0, 0, 0, 0, 17, 0]);
    let tag = |sent: &Sent| tagged(sent, &[&[0x81, 0, 0, 7], &ether_type(sent)[..]].concat());
    let tagged = |sent: &Sent| in_udp(&tag(sent), 4_790, &[8, 0, 0, 0, 0, 0, 17, 0]);
    let geneve = |sent: &Sent| in_udp(&ethernet(sent), 16_081, &[1, 0, 0x65, 0x58, 0, 0, 17, 0, 1, 1, 0, 0]);
    let twice = |sent: &Sent| in_udp(&vxlan(sent), 4_789, &[8, 0, 0, 0, 0, 0, 18, 0]);
    let wraps: [(&str, Wrap<'_>); 4] =
        [("VXLAN", &vxlan), ("a tag in VXLAN", &tagged), ("Geneve", &geneve), ("VXLAN in VXLAN", &twice)];
    expect_wrapped(&wraps, 1, &stories())
}

fn without_frames() -> Result<()> {
    let ip = |sent: &Sent| in_ip(&sent.ip, if sent.ip[0] >> 4 == 6 { 41 } else { 4 }, &[]);
    let gre = |sent: &Sent| in_ip(&sent.ip, 47, &[&[0, 0], &ether_type(sent)[..]].concat());
    let erspan = |sent: &Sent| in_ip(&ethernet(sent), 47, &[0, 0, 0x88, 0xbe]);
    let wraps: [(&str, Wrap<'_>); 3] = [("IP", &ip), ("GRE", &gre), ("ERSPAN I", &erspan)];
    let two: Vec<_> = stories().into_iter().filter(|(_, story)| story.links.len() == 2).collect();
    expect_wrapped(&wraps, 1, &two)
}

fn unopened() -> Result<()> {
    let story = Story::masqueraded(Some(2));
    let esp = |sent: &Sent| in_ip(&sent.ip, 50, &[0, 0, 0, 1, 0, 0, 0, 1]);
    let pptp = |sent: &Sent| in_ip(&sent.ip, 47, &[0x30, 1, 0x88, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0]);
    let macsec = |sent: &Sent| tagged(sent, &[0x88, 0xe5, 0x2c, 0, 0, 0, 0, 1]);
    let wire = |sent: &Sent| tagged(sent, &[0x88, 0x47, 0, 1, 1, 64, 0, 0, 0, 0]);
    let wraps: [(&str, Wrap<'_>); 4] =
        [("IPsec", &esp), ("PPTP", &pptp), ("MACsec", &macsec), ("MPLS that carries no IP", &wire)];
    for (name, wrap) in wraps {
        let mut wrapped: Vec<Timed> = vec![(BEGIN, vec![0; 60])];
        wrapped.extend(story.tell().iter().map(|sent| (sent.at, wrap(sent))));
        let told = Told::of(&[pcap(&wrapped)])?;
        let says = |note: &String| {
            note.contains(name) && note.contains("packet 2 of file-0") && note.contains("tcpdump -i any -w")
        };
        if !told.notes.iter().any(says) {
            bail!("{name}: {:?}", told.notes);
        }
        expect_equal(name, told.errors(), BTreeSet::new())?;
    }
    Ok(())
}

fn magics() -> Result<()> {
    for (what, story) in stories() {
        let whole = frames(&story.tell(), &all(&story), at);
        for (big, nanoseconds) in [(false, false), (false, true), (true, false), (true, true)] {
            let what = format!("{what}, big {big}, nanoseconds {nanoseconds}");
            expect_whole(&what, &story, &[pcap_in(big, nanoseconds, &whole)])?;
        }
    }
    Ok(())
}

fn units() -> Result<()> {
    const RESOLUTION: u16 = 9;
    for (what, story) in stories() {
        for (unit, per_second) in [(5, 100_000), (0x80 | 20, 1 << 20), (0x80 | 32, 1 << 32)] {
            let mut file = Pcapng::default().section(false).interface(1, &[(RESOLUTION, vec![unit])]);
            for (time, frame) in frames(&story.tell(), &all(&story), at) {
                let units = u64::try_from(u128::from(time) * per_second / 1_000_000_000)?;
                file = file.enhanced(0, units, &frame, &[]);
            }
            expect_whole(&format!("{what}, unit {unit:#x}"), &story, &[file.bytes])?;
        }
    }
    Ok(())
}

fn three_clocks() -> Result<()> {
    for (what, story) in stories().into_iter().filter(|(_, story)| story.links.len() == 3) {
        let sent = story.tell();
        for ahead in
            [[0, 90_000_000_i64, -3_000_000_000], [7_000_000, -2_000_000, 9_000_000], [-1_000_000, 0, 1_500_000]]
        {
            let skewed = |sent: &Sent| sent.at.saturating_add_signed(ahead[sent.link]);
            let what = format!("{what}, {ahead:?} ns ahead");
            expect_whole(&what, &story, &[pcap(&frames(&sent, &all(&story), skewed))])?;
            let mut apart: Vec<_> = all(&story).into_iter().map(|link| pcap(&frames(&sent, &[link], skewed))).collect();
            expect_whole(&format!("{what}, side by side"), &story, &apart)?;
            apart.reverse();
            expect_whole(&format!("{what}, the other way round"), &story, &apart)?;
        }
    }
    Ok(())
}

/// `tcpdump dst host 169.254.169.254`, or `src host`.
fn one_direction() -> Result<()> {
    for (what, story) in stories() {
        for to_imds in [true, false] {
            let sent: Vec<Sent> = story.tell().into_iter().filter(|sent| sent.to_imds == to_imds).collect();
            let mut sets = vec![all(&story)];
            sets.extend(all(&story).into_iter().map(|link| vec![link]));
            for links in sets {
                let told = Told::of(&[pcap(&frames(&sent, &links, at))])?;
                let what = format!("{what}, to IMDS: {to_imds}, links {links:?}");
                expect_equal(&what, told.errors(), BTreeSet::new())?;
            }
        }
    }
    Ok(())
}

fn cut_anywhere() -> Result<()> {
    let story = Story::masqueraded(Some(2));
    let mut file = Pcapng::default().section(false).interface(276, &[]);
    for sent in story.tell() {
        file = file.enhanced(
            0,
            sent.at / 1_000,
            &cooked2(&sent, sent.link as u32 + 2, sent.to_imds == (sent.link == 1)),
            &[],
        );
    }
    let whole = [file.bytes, pcap(&frames(&story.tell(), &[0, 1], at))];
    for whole in whole {
        expect_whole("whole", &story, std::slice::from_ref(&whole))?;
        for end in (0..whole.len()).filter(|end| end % 7 == 0 || whole.len() - end < 40) {
            let Ok(told) = Told::of(&[whole[..end].to_vec()]) else { continue };
            expect_equal(&format!("cut at {end}"), told.errors(), BTreeSet::new())?;
            let is_told = told.failures.iter().any(|failure| failure.contains("packet "));
            // Between two packets nobody can tell.
            if !is_told && Told::of(&[[&whole[..end], &[0][..]].concat()]).is_ok_and(|told| told.failures.is_empty()) {
                bail!("cut at {end}, and told as if it were whole");
            }
        }
    }
    Ok(())
}

fn nothing_in_it() -> Result<()> {
    match Told::of(&[Vec::new()]) {
        Err(error) if error.to_string() == "file-0: it is empty" => {}
        other => bail!("{other:?}"),
    }
    let empty =
        [pcap(&[]), Pcapng::default().section(true).bytes, Pcapng::default().section(false).interface(1, &[]).bytes];
    for (number, bytes) in empty.into_iter().enumerate() {
        let told = Told::of(&[bytes]).with_context(|| format!("{number}"))?;
        expect_equal("notes", told.notes.len(), 1)?;
        if !told.notes[0].starts_with("none of 0 packets is to or from 169.254.169.254") {
            bail!("{:?}", told.notes);
        }
        expect_equal("errors", told.errors(), BTreeSet::new())?;
    }
    Ok(())
}

/// Nokia's and Red Hat 6.1's: the magic of others, and bytes between each packet's header and the packet.
fn longer_headers() -> Result<()> {
    for longer in [4, 8] {
        let mut file = pcap(&[]);
        for (at, frame) in frames(&Story::masqueraded(Some(2)).tell(), &[0, 1], at) {
            for word in [at / 1_000_000_000, at % 1_000_000_000, frame.len() as u64, frame.len() as u64] {
                file.extend((word as u32).to_le_bytes());
            }
            file.extend(vec![0; longer]);
            file.extend(frame);
        }
        match Told::of(&[file]) {
            Err(error) if error.to_string().contains("type  editcap -F pcapng") => {}
            other => bail!("{longer}: {other:?}"),
        }
    }
    Ok(())
}

fn printed() -> Result<()> {
    for line in [
        "09:43:43.159123 IP 172.17.0.2.40000 > 169.254.169.254.80: Flags [S], seq 1, win 64240, length 0",
        "2026-11-20 09:43:43.159123 IP 172.17.0.2.40000 > 169.254.169.254.80: Flags [S], seq 1",
        "1795340632.065266 IP 172.17.0.2.40000 > 169.254.169.254.80: Flags [S], seq 1, win 64240, length 0",
        "09:43:43.159123 docker0 In  IP 172.17.0.2.40000 > 169.254.169.254.80: Flags [S], seq 1",
        "    1   0.000000   172.17.0.2 \u{2192} 169.254.169.254 TCP 74 40000 \u{2192} 80 [SYN] Seq=0",
        "[\n  {\n    \"_index\": \"packets-2026-11-20\",\n    \"_type\": \"doc\",",
        "<?xml version=\"1.0\"?>\n<?xml-stylesheet type=\"text/xsl\" href=\"pdml2html.xsl\"?>\n<pdml version=\"0\">",
    ] {
        match Told::of(&[format!("{line}\n").into_bytes()]) {
            Err(error) if error.to_string().contains("not the packets") => {}
            other => bail!("{line}: {other:?}"),
        }
    }
    Ok(())
}
