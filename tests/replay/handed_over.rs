//! Is what people hand over read as what it is? Captures merged, cut short, rotated, packed and mirrored, made by code.

use std::collections::BTreeSet;
use std::io::{Cursor, Write};

use anyhow::{Context, Result, bail};
use diagnosis::capture::{From, Reader, Source};
use diagnosis::config::{Telling, endpoints};
use diagnosis::event::Event;
use diagnosis::event::Report;
use diagnosis::finding::Severity;
use diagnosis::identity::Attribution;
use diagnosis::net::BootTime;
use diagnosis::pipeline::Pipeline;
use diagnosis::reporter::Reporter;
use imds_trace_replay_tests::wire::around::{cooked2, ethernet, in_ip, in_udp};
use imds_trace_replay_tests::wire::file::{Pcapng, Timed, pcap, pcap_of};
use imds_trace_replay_tests::wire::{BEGIN, SECOND, Sent, Story};
use imds_trace_replay_tests::{expect_equal, kept};
use libtest_mimic::Trial;

/// All of them.
pub fn trials() -> Vec<Trial> {
    type Test = fn() -> Result<()>;
    let tests: [(&str, Test); 19] = [
        ("a_packet_seen_at_two_places_is_one", seen_at_two_places),
        ("a_packet_seen_twice_at_one_place_is_one", seen_twice),
        ("clocks_that_differ_are_put_right", other_clocks),
        ("equal_times_keep_the_order_of_the_file", coarse_times),
        ("captures_appended_to_each_other_are_in_order_of_time", appended),
        ("a_capture_appended_to_itself_is_one", appended_to_itself),
        ("where_one_capture_ends_nothing_follows_from_silence", covers_a_part),
        ("a_silent_imds_is_told_where_it_was_listened_for", silence),
        ("the_same_interface_numbers_inside_and_outside_are_two", inside_and_outside),
        ("headers_are_enough", headers_only),
        ("a_rotated_set_is_one_capture", rotated),
        ("a_file_of_a_set_that_is_empty_is_told", rotated_and_empty),
        ("packed_captures_are_read", packed),
        ("a_packed_capture_that_ends_too_soon_says_so", packed_and_cut),
        ("checksums_behind_frames_do_not_matter", checksums),
        ("every_kind_of_packet_block_is_read", packet_blocks),
        ("each_section_has_its_own_order_and_each_interface_its_own_time", sections),
        ("mirrors_and_overlays_are_opened", tunnels),
        ("what_is_not_read_is_named", foreign),
    ];
    tests.into_iter().map(|(name, test)| Trial::test(format!("handed_over::{name}"), move || Ok(test()?))).collect()
}

/// Address, exchanges, those unanswered, and the hop limit observed and needed.
type Client = (String, u64, u64, Option<u8>, Option<u8>);

/// What is told of captures.
#[derive(Debug)]
pub(crate) struct Told {
    pub report: Report,
    pub notes: Vec<String>,
    pub failures: Vec<String>,
}

impl Told {
    pub fn of(captures: &[Vec<u8>]) -> Result<Self> {
        let source = |(number, bytes): (usize, &Vec<u8>)| Source {
            name: format!("file-{number}"),
            from: From::Stream(Box::new(Cursor::new(bytes.clone()))),
        };
        let mut reader = Reader::of(captures.iter().enumerate().map(source).collect(), endpoints(&[])?)?;
        let mut pipeline = Pipeline::of_capture();
        let (mut reporter, mut failures) = (Reporter::open(&Telling::default(), BootTime(0))?, Vec::new());
        let mut hear = |event: &Event| reporter.take(event).expect("there is no output that could fail");
        for input in &mut reader {
            match input {
                Ok(input) => pipeline.push(input, &mut hear),
                Err(failed) => failures.push(failed.to_string()),
            }
        }
        pipeline.finish(&mut hear);
        let (_, report) = reporter.conclude(Vec::new()).context("a report")?;
        Ok(Self { report, notes: reader.notes(), failures })
    }

    /// Rules of severity error, and whom they accuse.
    pub fn errors(&self) -> BTreeSet<(&'static str, String)> {
        let errors = self.report.findings.iter().filter(|finding| finding.severity == Severity::Error);
        errors.map(|finding| (finding.rule, address(&finding.who))).collect()
    }

    /// Who asked.
    fn clients(&self) -> Vec<Client> {
        let client = |tally: &diagnosis::event::Tally| {
            let limit = tally.hop_limit;
            let (observed, needed) = (limit.observed.map(|ttl| ttl.0), limit.needed.map(|ttl| ttl.0));
            (address(&tally.who), tally.exchanges, tally.unanswered, observed, needed)
        };
        self.report.subjects.iter().map(client).collect()
    }
}

fn address(who: &Attribution) -> String {
    who.address.map(|address| address.to_string()).unwrap_or_default()
}

/// Ethernet frames of these links, with times changed for each link.
pub(crate) fn frames(sent: &[Sent], links: &[usize], time: impl Fn(&Sent) -> u64) -> Vec<Timed> {
    let mut frames: Vec<Timed> =
        sent.iter().filter(|sent| links.contains(&sent.link)).map(|sent| (time(sent), ethernet(sent))).collect();
    frames.sort_by_key(|(at, _)| *at);
    frames
}

pub(crate) fn at(sent: &Sent) -> u64 {
    sent.at
}

pub(crate) fn all(story: &Story) -> Vec<usize> {
    (0..story.links.len()).collect()
}

/// Healthy, and lost to the hop limit, as it must be told wherever both sides of the forward are in the captures.
pub(crate) fn expect_whole(what: &str, story: &Story, captures: &[Vec<u8>]) -> Result<()> {
    let told = Told::of(captures).with_context(|| what.to_owned())?;
    let client = story.links[0].client.to_string();
    let needed = u8::try_from(story.links.len()).ok();
    let is_lost = story.hop_limit < needed;
    let lost = is_lost.then(|| ("hop-limit-too-low", client.clone()));
    expect_equal(&format!("{what}: errors"), told.errors(), lost.into_iter().collect())?;
    let expected = vec![(client, 2, u64::from(is_lost), story.hop_limit, needed)];
    expect_equal(&format!("{what}: clients"), told.clients(), expected)?;
    expect_equal(&format!("{what}: failures"), told.failures, Vec::new())
}

/// The stories in which a token comes, and in which it does not.
pub(crate) fn stories() -> Vec<(String, Story)> {
    let mut stories = Vec::new();
    for hop_limit in [1, 2, 3] {
        for (what, story) in [
            ("masqueraded", Story::masqueraded(Some(hop_limit))),
            ("routed", Story::routed(Some(hop_limit))),
            ("IPv6", Story::over_ipv6(Some(hop_limit))),
        ] {
            stories.push((format!("{what}, hop limit {hop_limit}"), story));
        }
    }
    stories.push(("nested, hop limit 2".to_owned(), Story::nested(Some(2))));
    stories.push(("nested, hop limit 3".to_owned(), Story::nested(Some(3))));
    stories
}

fn seen_at_two_places() -> Result<()> {
    for (what, story) in stories() {
        let sent = story.tell();
        let merged = frames(&sent, &all(&story), at);
        expect_whole(&format!("{what}, one pcap"), &story, &[pcap(&merged)])?;
        let apart: Vec<_> = all(&story).into_iter().map(|link| pcap(&frames(&sent, &[link], at))).collect();
        expect_whole(&format!("{what}, side by side"), &story, &apart)?;
        let mut unnamed = Pcapng::default().section(false);
        for _ in &story.links {
            unnamed = unnamed.interface(1, &[]);
        }
        for sent in &sent {
            unnamed = unnamed.enhanced(sent.link as u32, sent.at / 1_000, &ethernet(sent), &[]);
        }
        expect_whole(&format!("{what}, interfaces without names"), &story, &[unnamed.bytes])?;
        let raw: Vec<Timed> = sent.iter().map(|sent| (sent.at, sent.ip.clone())).collect();
        if story.links.len() == 2 {
            expect_whole(&format!("{what}, raw IP"), &story, &[pcap_of(101, 65_535, &raw)])?;
        }
    }
    Ok(())
}

fn seen_twice() -> Result<()> {
    for (what, story) in stories() {
        let merged = frames(&story.tell(), &all(&story), at);
        let twice: Vec<Timed> =
            merged.iter().flat_map(|frame| [frame.clone(), (frame.0 + 900, frame.1.clone())]).collect();
        expect_whole(&what, &story, &[pcap(&twice)])?;
        // Given twice: the whole, and a part of it.
        expect_whole(&what, &story, &[pcap(&merged), pcap(&merged[..merged.len() / 2])])?;
    }
    Ok(())
}

fn other_clocks() -> Result<()> {
    for (what, story) in stories() {
        let sent = story.tell();
        for ahead in
            [-3_600 * 1_000_000_000, -3_000_000_000, -700_000_000, -20_000, 3_000_000, 700_000_000, 90_000_000_000_i64]
        {
            let skewed = |sent: &Sent| if sent.link == 0 { sent.at } else { sent.at.saturating_add_signed(ahead) };
            let what = format!("{what}, {ahead} ns ahead");
            expect_whole(&what, &story, &[pcap(&frames(&sent, &all(&story), skewed))])?;
            let apart: Vec<_> = all(&story).into_iter().map(|link| pcap(&frames(&sent, &[link], skewed))).collect();
            expect_whole(&format!("{what}, side by side"), &story, &apart)?;
        }
    }
    Ok(())
}

fn coarse_times() -> Result<()> {
    let coarse = |sent: &Sent| sent.at / 1_000_000 * 1_000_000;
    for (what, story) in stories() {
        let sent = story.tell();
        expect_whole(&what, &story, &[pcap(&frames(&sent, &all(&story), coarse))])?;
        let mut apart: Vec<_> = all(&story).into_iter().map(|link| pcap(&frames(&sent, &[link], coarse))).collect();
        expect_whole(&format!("{what}, apart"), &story, &apart)?;
        apart.reverse();
        expect_whole(&format!("{what}, apart, reversed"), &story, &apart)?;
    }
    Ok(())
}

fn appended() -> Result<()> {
    for (what, story) in stories() {
        let sent = story.tell();
        let apart: Vec<Vec<Timed>> = all(&story).into_iter().map(|link| frames(&sent, &[link], at)).collect();
        expect_whole(&what, &story, &[pcap(&apart.concat())])?;
        let back: Vec<Timed> = apart.into_iter().rev().flatten().collect();
        expect_whole(&format!("{what}, the other way round"), &story, &[pcap(&back)])?;
    }
    Ok(())
}

fn appended_to_itself() -> Result<()> {
    const HEADER: usize = 24;
    for name in ["any-hop-limit-1.pcap", "any-hop-limit-1-ipv6.pcap", "ens5-hop-limit-1.pcap", "any-hop-limit-2.pcap"] {
        let once = std::fs::read(kept::tests().join("captures").join(name)).with_context(|| name.to_owned())?;
        let twice = [&once[..], &once[HEADER..]].concat();
        let (once, twice) = (Told::of(&[once])?, Told::of(&[twice])?);
        expect_equal(&format!("{name}: errors"), twice.errors(), once.errors())?;
        expect_equal(&format!("{name}: clients"), twice.clients(), once.clients())?;
    }
    Ok(())
}

fn covers_a_part() -> Result<()> {
    for (what, story) in stories().into_iter().filter(|(_, story)| story.hop_limit >= Some(2)) {
        let sent = story.tell();
        let last = story.links.len() - 1;
        if story.hop_limit < u8::try_from(story.links.len()).ok() {
            continue;
        }
        for parted in [0, last] {
            for cut in 0..=sent.len() {
                // One of the captures ends there, or begins there.
                for keeps_begin in [true, false] {
                    let part: Vec<Sent> = sent
                        .iter()
                        .enumerate()
                        .filter(|(number, sent)| sent.link != parted || (*number < cut) == keeps_begin)
                        .map(|(_, sent)| sent.clone())
                        .collect();
                    let told = Told::of(&[pcap(&frames(&part, &all(&story), at))])?;
                    let what = format!("{what}: link {parted}, {cut} ({keeps_begin})");
                    expect_equal(&what, told.errors(), BTreeSet::new())?;
                }
            }
        }
    }
    Ok(())
}

fn silence() -> Result<()> {
    let story = Story::masqueraded(None);
    let sent = story.tell();
    let told = Told::of(&[pcap(&frames(&sent, &[0, 1], at))])?;
    let accused = ("unanswered", story.links[0].client.to_string());
    expect_equal("errors", told.errors(), [accused].into())?;
    // The capture at the uplink ends behind the first packet; only the other shows that the client goes on.
    let ends = |sent: &&Sent| sent.link == 0 || sent.at < BEGIN + SECOND / 2;
    let part: Vec<Sent> = sent.iter().filter(ends).cloned().collect();
    expect_equal("errors of a part", Told::of(&[pcap(&frames(&part, &[0, 1], at))])?.errors(), BTreeSet::new())
}

fn inside_and_outside() -> Result<()> {
    for (what, story) in stories().into_iter().filter(|(_, story)| story.links.len() == 2) {
        // eth0 of the container and ens5 of the host have the same number, as Linux numbers in each namespace.
        let mut any: Vec<Timed> = Vec::new();
        for sent in story.tell() {
            let (bridge, own) = (3, 2);
            match sent.link {
                0 => {
                    any.push((sent.at, cooked2(&sent, own, sent.to_imds)));
                    any.push((sent.at + 5, cooked2(&sent, bridge, !sent.to_imds)));
                }
                _ => any.push((sent.at, cooked2(&sent, own, sent.to_imds))),
            }
        }
        any.sort_by_key(|(at, _)| *at);
        expect_whole(&what, &story, &[pcap_of(276, 262_144, &any)])?;
    }
    Ok(())
}

fn headers_only() -> Result<()> {
    for (what, story, least) in [("IPv4", Story::masqueraded(Some(1)), 48), ("IPv6", Story::over_ipv6(Some(1)), 68)] {
        let sent = story.tell();
        for kept in least..300 {
            let told = Told::of(&[pcap_of(1, kept, &frames(&sent, &[1], at))])?;
            let accused = ("hop-limit-too-low", story.links[1].client.to_string());
            expect_equal(&format!("{what}, -s {kept}"), told.errors(), [accused].into())?;
            expect_equal(&format!("{what}, -s {kept}"), told.report.lost.sum(), 0)?;
            let bare = told.notes.iter().any(|note| note.contains("without a byte of their HTTP"));
            let headers = least - 14 + 20 + 12;
            if kept <= headers - 8 && !bare {
                bail!("{what}, -s {kept}: nothing is said of what is missing: {:?}", told.notes);
            }
        }
        let told = Told::of(&[pcap_of(1, least - 1, &frames(&sent, &[1], at))])?;
        if told.report.lost.unreadable == 0 || !told.notes.iter().any(|note| note.contains("-s 0")) {
            bail!("{what}: too short, and not told: {told:?}");
        }
    }
    Ok(())
}

fn rotated() -> Result<()> {
    for (what, story) in stories() {
        let whole = frames(&story.tell(), &all(&story), at);
        for files in [2, 3, 7, 90] {
            let size = whole.len().div_ceil(files);
            let mut set: Vec<Vec<u8>> = whole.chunks(size).map(pcap).collect();
            // A file without a packet, and in no order, as a shell sorts names.
            set.push(pcap(&[]));
            set.reverse();
            expect_whole(&format!("{what}, {files} files"), &story, &set)?;
        }
    }
    Ok(())
}

fn rotated_and_empty() -> Result<()> {
    let story = Story::masqueraded(Some(2));
    let whole = frames(&story.tell(), &[0, 1], at);
    let told = Told::of(&[pcap(&whole), Vec::new()])?;
    expect_equal("failures", told.failures, vec!["file-1: it is empty".to_owned()])?;
    match Told::of(&[pcap(&whole), b"{\"recording\":3}".to_vec()]) {
        Err(error) if error.to_string() == "file-1: it is neither pcap nor pcapng" => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn packed() -> Result<()> {
    for (what, story) in stories() {
        let whole = pcap(&frames(&story.tell(), &all(&story), at));
        expect_whole(&format!("{what}, gzip"), &story, &[gzip(&whole)?])?;
        expect_whole(&format!("{what}, zstd"), &story, &[zstd::encode_all(&whole[..], 3)?])?;
    }
    Ok(())
}

fn packed_and_cut() -> Result<()> {
    let whole = pcap(&frames(&Story::masqueraded(Some(2)).tell(), &[0, 1], at));
    for packed in [gzip(&whole)?, zstd::encode_all(&whole[..], 3)?] {
        for end in 0..packed.len() {
            if let Ok(told) = Told::of(&[packed[..end].to_vec()])
                && told.failures.is_empty()
            {
                bail!("cut at {end}, and told as if it were whole");
            }
            // Four bytes tell that it is compressed: then others of its set are told.
            if end >= 4 {
                let told = Told::of(&[whole.clone(), packed[..end].to_vec()])?;
                expect_equal(&format!("cut at {end}"), told.failures.len(), 1)?;
            }
        }
    }
    Ok(())
}

fn checksums() -> Result<()> {
    // Bits 28 to 31 are the length in units of 16 bits, bit 26 says that they count.
    let behind = |length: u32| 1 | 1 << 26 | length << 28;
    for (what, story) in stories() {
        for words in [0, 2, 4] {
            let mut whole = frames(&story.tell(), &all(&story), at);
            whole.iter_mut().for_each(|(_, frame)| frame.extend(vec![0xee; words as usize * 2]));
            expect_whole(&format!("{what}, {words} words"), &story, &[pcap_of(behind(words), 65_535, &whole)])?;
        }
    }
    Ok(())
}

fn packet_blocks() -> Result<()> {
    for (what, story) in stories() {
        for big in [false, true] {
            let mut old = Pcapng::default().section(big).interface(1, &[]);
            let mut simple = Pcapng::default().section(big).interface(1, &[]);
            for (time, frame) in frames(&story.tell(), &all(&story), at) {
                old = old.packet(0, time / 1_000, &frame);
                simple = simple.simple(&frame);
            }
            expect_whole(&format!("{what}, packet blocks ({big})"), &story, &[old.bytes])?;
            let told = Told::of(&[simple.bytes])?;
            if !told.notes.iter().any(|note| note.contains("no time")) {
                bail!("{what}: it is not told that there are no times: {:?}", told.notes);
            }
            if told.report.lost.unreadable == 0 || told.errors().iter().any(|(rule, _)| *rule == "unanswered") {
                bail!("{what}: {told:?}");
            }
        }
    }
    Ok(())
}

fn sections() -> Result<()> {
    const RESOLUTION: u16 = 9;
    const OFFSET: u16 = 14;
    for (what, story) in stories() {
        let mut file = Pcapng::default();
        for (number, (time, frame)) in frames(&story.tell(), &all(&story), at).into_iter().enumerate() {
            file = file.section(number % 2 == 1);
            let offset = file.i64(1_000_000_000);
            let since = time - 1_000_000_000 * SECOND;
            // Nanoseconds, 2^-30 s, and microseconds since a moment.
            file = match number % 3 {
                0 => file.interface(1, &[(RESOLUTION, vec![9])]).enhanced(0, time, &frame, &[]),
                1 => {
                    let units = u64::try_from(u128::from(time) * (1 << 30) / u128::from(SECOND))?;
                    file.interface(1, &[(RESOLUTION, vec![0x80 | 30])]).enhanced(0, units + 1, &frame, &[])
                }
                _ => file.interface(1, &[(OFFSET, offset)]).enhanced(0, since / 1_000, &frame, &[]),
            };
        }
        expect_whole(&what, &story, &[file.bytes])?;
    }
    Ok(())
}

fn tunnels() -> Result<()> {
    let vxlan = |sent: &Sent| in_udp(&ethernet(sent), 4789, &[8, 0, 0, 0, 0, 0, 17, 0]);
    let geneve = |sent: &Sent| in_udp(&ethernet(sent), 6081, &[1, 0, 0x65, 0x58, 0, 0, 17, 0, 1, 1, 0, 0]);
    let gre = |sent: &Sent| in_ip(&ethernet(sent), 47, &[0x20, 0, 0x65, 0x58, 0, 0, 0, 9]);
    let erspan =
        |sent: &Sent| in_ip(&ethernet(sent), 47, &[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 7, 0, 1, 0, 0, 0, 0]);
    let erspan_3 = |sent: &Sent| {
        in_ip(
            &ethernet(sent),
            47,
            &[0x10, 0, 0x22, 0xeb, 0, 0, 0, 1, 0x20, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9],
        )
    };
    type Wrap<'a> = &'a dyn Fn(&Sent) -> Vec<u8>;
    let wraps: [(&str, Wrap<'_>); 5] =
        [("VXLAN", &vxlan), ("Geneve", &geneve), ("GRE", &gre), ("ERSPAN II", &erspan), ("ERSPAN III", &erspan_3)];
    for (what, story) in stories() {
        for (name, wrap) in &wraps {
            let mirrored: Vec<Timed> = story.tell().iter().map(|sent| (sent.at, wrap(sent))).collect();
            expect_whole(&format!("{what} in {name}"), &story, &[pcap(&mirrored)])?;
        }
    }
    Ok(())
}

fn foreign() -> Result<()> {
    let some = [(BEGIN, vec![0; 60])];
    for (link, name) in
        [(0, "NULL"), (9, "PPP"), (108, "LOOP"), (239, "NFLOG"), (147, "USER"), (4_000, "link type 4000")]
    {
        match Told::of(&[pcap_of(link, 65_535, &some)]) {
            Err(error) if error.to_string().contains(name) && error.to_string().contains("tcpdump -i any -w") => {}
            other => bail!("{name}: {other:?}"),
        }
    }
    for magic in [&[0x34, 0xcd, 0xb2, 0xa1][..], &[0xa1, 0xb2, 0xcd, 0x34], b"snoop\0\0\0", b"\xfd7zXZ\0", b"BZh9"] {
        let file = [magic, &[0; 600]].concat();
        match Told::of(&[file]) {
            Err(error) if error.to_string().contains("which is not read; type  ") => {}
            other => bail!("{magic:x?}: {other:?}"),
        }
    }
    // Beside one that is read: told, and it counts as lost.
    let story = Story::masqueraded(Some(2));
    let mut mixed = Pcapng::default().section(false).interface(1, &[]).interface(239, &[]);
    for (time, frame) in frames(&story.tell(), &[0, 1], at) {
        mixed = mixed.enhanced(0, time / 1_000, &frame, &[]).enhanced(1, time / 1_000, &frame, &[]);
    }
    let told = Told::of(&[mixed.bytes])?;
    if told.report.lost.unreadable == 0 || !told.notes.iter().any(|note| note.contains("NFLOG")) {
        bail!("{told:?}");
    }
    Ok(())
}
