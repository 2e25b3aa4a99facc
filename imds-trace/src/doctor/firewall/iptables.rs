//! What do `iptables-save` and `ip6tables-save` say? Their text to [`Chain`]s. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::mark::Marking;
use super::rules::{Chain, Changed, Condition, End, Hook, MUCH, Rule, Verdict, What, range};
use super::walk::{NAT_DST, NAT_SRC};

/// Matches that ask nothing but what their options say.
const SAID_BY_OPTIONS: &[&str] =
    &["addrtype", "comment", "connmark", "conntrack", "iprange", "mark", "multiport", "set", "state", "tcp", "udp"];

/// Targets that change or note something and let the packet go on, or that decide nothing for us.
const GOES_ON: &[&str] = &[
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "LED",
    "LOG",
    "NFLOG",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "ULOG",
];

/// The chains of a save file. `tool` is `iptables`, `ip6tables` or either with `-legacy`.
pub fn read(text: &str, tool: &'static str) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    // Of the table that is being read, by name.
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim().to_owned();
            places.clear();
        } else if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or("-"));
            let hook = (policy != "-").then(|| hook(name)).flatten();
            places.insert(name.to_owned(), chains.len());
            chains.push(Chain {
                tool,
                family: if tool.starts_with("ip6") { "ip6" } else { "ip" }.to_owned(),
                table: table.clone(),
                name: name.to_owned(),
                hook,
                priority: priority(&table, hook),
                nat: table == "nat",
                drops_the_rest: policy == "DROP",
                devices: Vec::new(),
                rules: Vec::new(),
            });
        } else if let Some(begin) = line.find("-A ").filter(|_| line.starts_with(['-', '['])) {
            // Counters may stand before, with -c.
            let text = &line[begin..];
            let words = words(text);
            let Some(name) = words.get(1) else { continue };
            let mut rule = rule(&words[2..], text);
            if let (Verdict::Redirect(to), "POSTROUTING") = (&rule.verdict, name.as_str()) {
                // NETMAP gives a source there.
                rule.verdict = Verdict::Masquerade(range(to));
            }
            if let Some(chain) = places.get(name).and_then(|place| chains.get_mut(*place)) {
                chain.rules.push(rule);
            }
        }
    }
    chains
}

/// Tables of which `iptables-nft-save` says that only `nft` can show them in full.
pub fn incompatible(said: &str) -> BTreeSet<String> {
    said.lines()
        .filter(|line| line.contains("incompatible"))
        .filter_map(|line| Some(line.split_once('`')?.1.split_once('\'')?.0.to_owned()))
        .collect()
}

/// When a table is asked at a hook (`enum nf_ip_hook_priorities`). `nat` translates destinations early, and sources late.
fn priority(table: &str, hook: Option<Hook>) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Some(Hook::Input | Hook::Postrouting)) => NAT_SRC,
        ("nat", _) => NAT_DST,
        ("security", _) => 50,
        _ => 0,
    }
}

fn hook(chain: &str) -> Option<Hook> {
    match chain {
        "PREROUTING" => Some(Hook::Prerouting),
        "INPUT" => Some(Hook::Input),
        "FORWARD" => Some(Hook::Forward),
        "OUTPUT" => Some(Hook::Output),
        "POSTROUTING" => Some(Hook::Postrouting),
        _ => None,
    }
}

/// Words as a shell takes them: in double quotes, `\` makes the next character itself.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

fn rule(words: &[String], text: &str) -> Rule {
    let mut conditions = Vec::new();
    let mut verdict = Verdict::Continue;
    let (mut negated, mut connmark) = (false, false);
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        if matches!(word, "-j" | "--jump" | "-g" | "--goto") {
            let target = words.next().unwrap_or_default();
            let options: Vec<&str> = words.by_ref().collect();
            verdict =
                if word.ends_with(['g', 'o']) { Verdict::Goto(target.to_owned()) } else { jump(target, &options) };
            break;
        }
        if word == "--comment" {
            // Whatever it begins with.
            words.next();
            negated = false;
            continue;
        }
        let mut values = Vec::new();
        while let Some(value) = words.next_if(|word| *word != "!" && !word.starts_with('-')) {
            values.push(value);
        }
        if matches!(word, "-m" | "--match") {
            match values.first() {
                Some(&"connmark") => connmark = true,
                Some(&"mark") => connmark = false,
                _ => {}
            }
        }
        let what = condition(word, &values, connmark);
        if what != What::Always {
            conditions.push(Condition { negated, what });
        }
        negated = false;
    }
    Rule { conditions, verdict, text: text.to_owned() }
}

fn jump(target: &str, options: &[&str]) -> Verdict {
    let option = |name: &str| {
        options
            .iter()
            .position(|option| *option == name)
            .and_then(|at| options.get(at + 1))
            .map(|value| (*value).to_owned())
    };
    match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" => Verdict::Drop,
        "REJECT" => Verdict::Reject,
        "RETURN" => Verdict::Return,
        "DNAT" | "NETMAP" => {
            Verdict::Redirect(option("--to-destination").or(option("--to")).unwrap_or_else(|| "elsewhere".into()))
        }
        "REDIRECT" => {
            Verdict::Redirect(option("--to-ports").map_or("this host".into(), |port| format!("this host, port {port}")))
        }
        "TPROXY" => Verdict::Redirect("a proxy on this host".into()),
        "NFQUEUE" | "QUEUE" => Verdict::Asks("a program in user space (NFQUEUE)".into()),
        "MARK" | "CONNMARK" => Verdict::Mark(marking(target == "MARK", options.contains(&"--restore-mark"), &option)),
        "HMARK" => Verdict::Mark(Marking::AnyPacket),
        "MASQUERADE" => Verdict::Masquerade(None),
        "SNAT" => Verdict::Masquerade(option("--to-source").and_then(|to| sources(&to))),
        "NOTRACK" => Verdict::Notrack,
        "CT" if options.contains(&"--notrack") => Verdict::Notrack,
        // What comes back is looked up in another zone, unless that is set there, too. One of `--zone-orig` asks nothing of answers.
        "CT" if options.iter().any(|option| matches!(*option, "--zone" | "--zone-reply")) => {
            Verdict::Changes(Changed::Zone)
        }
        "TTL" | "HL" => {
            let set = option("--ttl-set").or(option("--hl-set")).and_then(|value| value.parse::<u64>().ok());
            let raised = options.iter().any(|option| matches!(*option, "--ttl-inc" | "--hl-inc"));
            if raised || set.is_some_and(|value| value >= MUCH) {
                Verdict::Changes(Changed::MoreTtl)
            } else {
                Verdict::Changes(Changed::Ttl)
            }
        }
        target if GOES_ON.contains(&target) => Verdict::Continue,
        chain => Verdict::Jump(chain.to_owned()),
    }
}

/// `10.0.0.5`, `10.0.0.5:1024-2047`, `10.0.0.5-10.0.0.9`, `[fd00::5]:1024`.
fn sources(text: &str) -> Option<(IpAddr, IpAddr)> {
    let addresses = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None if text.matches(':').count() == 1 => text.split(':').next()?,
        None => text,
    };
    let (first, last) = addresses.split_once('-').unwrap_or((addresses, addresses));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// What `MARK` and `CONNMARK` do, as their saving halves write it.
fn marking(packet: bool, restores: bool, option: &dyn Fn(&str) -> Option<String>) -> Marking {
    let mask = |name: &str| option(name).map_or(Some(u32::MAX), |text| number(&text));
    if let Some((value, mask)) = option("--set-xmark").and_then(|text| masked(&text)) {
        return if packet { Marking::Packet(value, mask) } else { Marking::Connection(value, mask) };
    }
    match (packet, mask("--nfmask"), mask("--ctmask"), mask("--mask")) {
        (true, ..) => Marking::AnyPacket,
        (false, Some(packets), Some(connections), Some(u32::MAX)) if restores => Marking::Restore(packets, connections),
        (false, Some(packets), Some(connections), Some(u32::MAX)) => Marking::Save(packets, connections),
        _ => Marking::AnyConnection,
    }
}

/// `0x4000/0x4000`, or a value without a mask.
fn masked(text: &str) -> Option<(u32, u32)> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    Some((number(value)?, mask.map_or(Some(u32::MAX), number)?))
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// What an option asks. `connmark`: it stands behind `-m connmark`.
fn condition(option: &str, values: &[&str], connmark: bool) -> What {
    let value = values.first().copied().unwrap_or_default();
    let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
    let addresses = |make: fn(Vec<_>) -> What| {
        value.split(',').map(range).collect::<Option<Vec<_>>>().map_or(What::Undecided, make)
    };
    let address_range = |make: fn(Vec<_>) -> What| {
        let ends = value.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        ends.map_or(What::Undecided, |ends| make(vec![ends]))
    };
    let ports = |make: fn(Vec<_>) -> What| {
        value.split(',').map(ports).collect::<Option<Vec<_>>>().map_or(What::Undecided, make)
    };
    match option {
        // Loads a match; what that asks comes in options of its own. Those without any decide by being there.
        "-m" | "--match" if SAID_BY_OPTIONS.contains(&value) => What::Always,
        "-s" | "--source" | "--src" => addresses(What::Source),
        "-d" | "--destination" | "--dst" => addresses(What::Destination),
        "--src-range" => address_range(What::Source),
        "--dst-range" => address_range(What::Destination),
        "-p" | "--protocol" => What::Protocol(list()),
        "--sport" | "--source-port" | "--sports" | "--source-ports" => ports(What::SourcePort),
        "--dport" | "--destination-port" | "--dports" | "--destination-ports" => ports(What::DestinationPort),
        "-i" | "--in-interface" => What::From(list()),
        "-o" | "--out-interface" => What::To(list()),
        "--ctstate" | "--state" => states(list()),
        "--dst-type" if value == "LOCAL" => What::ToThisHost,
        // No client has such an address, nor IMDS.
        "--dst-type" if matches!(value, "BROADCAST" | "MULTICAST") => What::Protocol(Vec::new()),
        "--mark" => match masked(value) {
            Some((value, mask)) if connmark => What::ConnMark(value, mask),
            Some((value, mask)) => What::Mark(value, mask),
            None => What::Undecided,
        },
        "--match-set" => {
            let side = |word| match word {
                "src" => Some(End::Source),
                "dst" => Some(End::Destination),
                _ => None,
            };
            let sides = values.get(1).and_then(|sides| sides.split(',').map(side).collect::<Option<Vec<_>>>());
            sides.map_or(What::Undecided, |sides| What::InSet(value.to_owned(), sides))
        }
        _ => What::Undecided,
    }
}

/// Whose destination was translated is told as redirected, and nobody else is in the state `DNAT`. Whose source was is not known here.
fn states(names: Vec<String>) -> What {
    const KNOWN: [&str; 6] = ["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "DNAT"];
    let (known, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| KNOWN.contains(&name.as_str()));
    if others.is_empty() {
        return What::State(known);
    }
    What::AnyOf(Arc::new(vec![vec![What::State(known)], vec![What::Undecided]]))
}

/// `80` or `8000:8080`.
fn ports(text: &str) -> Option<(u16, u16)> {
    match text.split_once(':') {
        Some((first, last)) => Some((
            if first.is_empty() { 0 } else { first.parse().ok()? },
            if last.is_empty() { u16::MAX } else { last.parse().ok()? },
        )),
        None => text.parse().ok().map(|port| (port, port)),
    }
}
