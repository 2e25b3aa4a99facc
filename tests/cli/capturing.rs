//! Does `replay` read captures as people have them, and say what is wrong with those that cannot be read?

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result};
use imds_trace_replay_tests::kept;

use crate::Outcome;
use crate::program::{Folder, Ran, command, recorded, replay};

crate::tests![
    a_capture_is_known_by_its_first_bytes_not_by_its_name,
    a_capture_comes_from_stdin_too,
    a_capture_says_that_it_is_one,
    a_capture_cut_short_is_told_up_to_there,
    a_capture_without_what_was_asked_holds_nothing,
    a_capture_of_which_nothing_can_be_read_is_named,
    a_capture_that_is_not_read_is_named_with_what_to_type,
    a_packed_capture_is_read_as_it_is,
    a_capture_of_something_else_says_so,
    a_recording_knows_its_endpoints,
    what_is_told_to_wireshark_can_be_read_again,
    a_request_cut_short_is_not_taken_for_one_without_a_token,
    packets_go_to_a_file_only,
];

pub fn capture(name: &str) -> Result<Vec<u8>> {
    std::fs::read(kept::captures_folder().join(name)).with_context(|| name.to_owned())
}

pub const ANY: &str = "any-hop-limit-1.pcap";

fn a_capture_is_known_by_its_first_bytes_not_by_its_name() -> Outcome {
    let folder = Folder::new()?;
    for name in [ANY, "two-interfaces-hop-limit-1.pcapng"] {
        let file = folder.file("recording.jsonl", capture(name)?)?;
        let ran = replay(&file, &[])?;
        ran.expect_quiet()?;
        if !ran.stdout.contains("hop-limit-too-low") || !ran.stdout.contains("(likely: inferred)") {
            return Err(format!("{name}: {ran:?}").into());
        }
    }
    let file = folder.file("capture.pcap", recorded("hop-limit-too-low")?)?;
    replay(&file, &[])?.expect_quiet()?;
    Ok(())
}

fn a_capture_comes_from_stdin_too() -> Outcome {
    let whole = capture(ANY)?;
    let mut child = command(["replay", "-", "--output", "json"])?.stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("piped")?;
    // In pieces, as from a pipe.
    for piece in whole.chunks(3) {
        stdin.write_all(piece)?;
    }
    drop(stdin);
    let ran = Ran::from(child.wait_with_output()?);
    ran.expect_quiet()?;
    let folder = Folder::new()?;
    let same = replay(&folder.file("it.pcap", &whole)?, &["--output", "json"])?;
    if same.stdout != ran.stdout || ran.stdout.is_empty() {
        return Err(format!("{ran:?} is not {same:?}").into());
    }
    Ok(())
}

fn a_capture_says_that_it_is_one() -> Outcome {
    let folder = Folder::new()?;
    for (name, interface, link, directions) in [
        (ANY, None, "linux_sll2", "recorded"),
        ("any-hop-limit-1-cooked-v1.pcap", None, "linux_sll", "recorded"),
        ("ens5-hop-limit-1.pcap", None, "ethernet", "inferred"),
        ("two-interfaces-hop-limit-1.pcapng", Some("docker0"), "ethernet", "inferred"),
    ] {
        let events = replay(&folder.file(name, capture(name)?)?, &["--output", "json"])?.json()?;
        let ready = &events[0];
        let hook = &ready["hooks"][0];
        let said = (hook["interface"].as_str(), hook["link"].as_str(), hook["directions"].as_str());
        if said != (interface, Some(link), Some(directions)) || hook["kind"] != "capture" {
            return Err(format!("{name}: {ready}").into());
        }
        if !ready["version"].is_null()
            || !ready["kernel"].is_null()
            || ready["missing"].as_array().is_none_or(Vec::is_empty)
        {
            return Err(format!("{name}: {ready}").into());
        }
    }
    Ok(())
}

fn a_capture_cut_short_is_told_up_to_there() -> Outcome {
    let folder = Folder::new()?;
    let whole = capture(ANY)?;
    let file = folder.file("cut.pcap", &whole[..whole.len() - 3])?;
    let ran = replay(&file, &[])?;
    ran.expect_code(0)?;
    if ran.stderr.lines().count() != 1 || !ran.stderr.contains("cut short") || !ran.stderr.contains("packet ") {
        return Err(format!("no warning: {ran:?}").into());
    }
    if !ran.stdout.contains("hop-limit-too-low") || !ran.stdout.contains("Incomplete") {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

fn a_capture_without_what_was_asked_holds_nothing() -> Outcome {
    let folder = Folder::new()?;
    let whole = capture("any-hop-limit-2.pcap")?;
    let mut packets = Vec::new();
    let mut rest = &whole[24..];
    while let Some((head, behind)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes(head[8..12].try_into()?) as usize;
        packets.push((length, &rest[..16 + length]));
        rest = &behind[length..];
    }
    // HTTP makes a packet longer than this: a token and a read are gone, and the numbers of TCP show that there was something.
    let bare: Vec<&[u8]> = packets.iter().filter(|(length, _)| *length < 100).map(|(_, packet)| *packet).collect();
    let file = folder.file("bare.pcap", [&whole[..24], &bare.concat()].concat())?;
    let ran = replay(&file, &["--expect", "blocked", "--expect", "v2-only"])?;
    ran.expect_code(1)?;
    if bare.len() == packets.len() || ran.stdout.matches("sent bytes to IMDS that were seen nowhere").count() != 2 {
        return Err(format!("{ran:?}").into());
    }
    // Nor of its three handshake packets alone, each seen three times: nothing shows that the connection ended with them.
    let file = folder.file("handshake.pcap", [&whole[..24], &bare[..9].concat()].concat())?;
    for asserted in ["blocked", "v2-only"] {
        replay(&file, &["--expect", asserted])?.expect_code(1)?;
    }
    Ok(())
}

fn a_capture_of_which_nothing_can_be_read_is_named() -> Outcome {
    let folder = Folder::new()?;
    let pcap = capture(ANY)?;
    let pcapng = capture("two-interfaces-hop-limit-1.pcapng")?;
    let bluetooth = [&pcap[..20], &201u32.to_le_bytes(), &pcap[24..]].concat();
    for (name, content, part) in [
        ("a-magic", &pcap[..4], "header"),
        ("half-a-header", &pcap[..20], "header"),
        ("half-a-section", &pcapng[..11], "header"),
        ("half-a-packet", &pcap[..50], "packet 1"),
        ("bluetooth", &bluetooth, "link type 201"),
        ("gzip", &[0x1f, 0x8b, 8, 0, 0][..], "cut short before its first packet"),
    ] {
        replay(&folder.file(name, content)?, &[])?.expect_sentence(&[name, part]).with_context(|| name.to_owned())?;
    }
    // No packets are no damage.
    let ran = replay(&folder.file("empty.pcap", &pcap[..24])?, &[])?;
    ran.expect_code(0)?;
    if !ran.stdout.contains("No packet to or from IMDS was seen") {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

fn a_capture_that_is_not_read_is_named_with_what_to_type() -> Outcome {
    let folder = Folder::new()?;
    let pcap = capture(ANY)?;
    let linked = |link: u32| [&pcap[..20], &link.to_le_bytes(), &pcap[24..]].concat();
    let modified = [&[0x34, 0xcd, 0xb2, 0xa1], &pcap[4..]].concat();
    for (name, content, parts) in [
        ("ppp.pcap", linked(9), ["PPP", "tcpdump -i any -w"]),
        ("null.pcap", linked(0), ["NULL", "tcpdump -i any -w"]),
        ("nflog.pcap", linked(239), ["NFLOG", "tcpdump -i any -w"]),
        ("modified.pcap", modified, ["\"modified\" pcap", "tcpdump -r"]),
        ("it.pcap.xz", b"\xfd7zXZ\0\0\x04".to_vec(), ["xz", "| imds-trace replay -"]),
    ] {
        replay(&folder.file(name, content)?, &[])?.expect_sentence(&[name, parts[0], parts[1]])?;
    }
    Ok(())
}

fn a_packed_capture_is_read_as_it_is() -> Outcome {
    let folder = Folder::new()?;
    let pcap = capture(ANY)?;
    let plain = replay(&folder.file("it.pcap", &pcap)?, &[])?;
    let packed = replay(&folder.file("it.pcap.zst", zstd::encode_all(&pcap[..], 3)?)?, &[])?;
    packed.expect_quiet()?;
    if plain.stdout != packed.stdout || plain.stdout.is_empty() {
        return Err(format!("{packed:?} is not {plain:?}").into());
    }
    Ok(())
}

fn a_capture_of_something_else_says_so() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.pcap", capture(ANY)?)?;
    let ran = replay(&file, &["--endpoint", "192.0.2.1"])?;
    ran.expect_code(0)?;
    if ran.stderr.lines().count() != 1 || !ran.stderr.contains("192.0.2.1") || !ran.stderr.contains("--endpoint") {
        return Err(format!("{ran:?}").into());
    }
    replay(&file, &["--endpoint", "169.254.169.254"])?.expect_quiet()?;
    replay(&file, &["--endpoint", "imds"])?.expect_sentence(&["--endpoint imds"])?;
    Ok(())
}

fn a_recording_knows_its_endpoints() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    replay(&file, &["--endpoint", "192.0.2.1"])?.expect_sentence(&["--endpoint", "recording"])?;
    Ok(())
}

fn what_is_told_to_wireshark_can_be_read_again() -> Outcome {
    let folder = Folder::new()?;
    let files = [kept::recordings()?, kept::captures()?].concat();
    for (name, path) in files {
        let file = folder.path().join("it.pcapng");
        replay(&path, &["--output", &format!("pcapng={}", file.display())])?.expect_code(0)?;
        let bytes = std::fs::read(&file)?;
        if !bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
            return Err(format!("{name}: no pcapng").into());
        }
        let ran = replay(&file, &["--output", "json"])?;
        ran.expect_code(0).with_context(|| name.clone())?;
        // One has no packet at all.
        if ran.stderr.contains("damaged") || ran.stderr.contains("cut short") {
            return Err(format!("{name}: {ran:?}").into());
        }
        let rules = |text: &str, rule: &str| text.contains(&format!("\"rule\":\"{rule}\""));
        let before = replay(&path, &["--output", "json"])?.stdout;
        for rule in ["hop-limit-too-low", "imds-disabled", "throttled"] {
            if rules(&before, rule) && !name.starts_with("nested") && !rules(&ran.stdout, rule) {
                return Err(format!("{name}: {rule} is lost: {}", ran.stdout).into());
            }
        }
        for rule in ["imdsv1-used", "imdsv1-refused", "unanswered", "hop-limit-too-low"] {
            let excused = rule == "unanswered" && name == "not-masqueraded";
            if rules(&ran.stdout, rule) && !rules(&before, rule) && !excused {
                return Err(format!("{name}: {rule} is new: {}", ran.stdout).into());
            }
        }
    }
    Ok(())
}

fn a_request_cut_short_is_not_taken_for_one_without_a_token() -> Outcome {
    let folder = Folder::new()?;
    let name = "snapped-hop-limit-2.pcap";
    let ran = replay(&folder.file(name, capture(name)?)?, &["--output", "json"])?;
    ran.expect_code(0)?;
    if !ran.stderr.contains("not kept to their end") || !ran.stderr.contains("-s 0") {
        return Err(format!("nothing is said of what is missing: {ran:?}").into());
    }
    if ran.stdout.contains("imdsv1") || !ran.stdout.contains("/latest/meta-data/instance-id") {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

fn packets_go_to_a_file_only() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.pcap", capture(ANY)?)?;
    for output in ["pcapng", "pcapng=-"] {
        replay(&file, &["--output", output])?.expect_sentence(&["pcapng=PATH"])?;
    }
    Ok(())
}
