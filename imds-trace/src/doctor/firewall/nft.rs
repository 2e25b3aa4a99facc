//! What does `nft -j list ruleset` say? Its JSON to [`Chain`]s; the rules' wording from `nft -a list ruleset`. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::Value;

use super::mark::Marking;
use super::rules::{Chain, Condition, Hook, Rule, Verdict, What, range};

/// Elements of a set or map that are looked at; of one with more nothing is decided.
const MAX_ELEMENTS: usize = 65_536;

/// Family, table, and name of a set or handle of a rule.
type Key = (String, String, String);

/// The chains of a ruleset. `wording` is the same ruleset as text with handles; without it, rules are told by their handle.
pub fn read(json: &str, wording: &str) -> Result<Vec<Chain>, serde_json::Error> {
    let whole: Value = serde_json::from_str(json)?;
    let objects = whole["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let worded = worded(wording);
    let key = |object: &Value, last: &str| -> Key { (text(object, "family"), text(object, "table"), last.to_owned()) };
    let mut sets: HashMap<Key, Vec<Value>> = HashMap::new();
    let mut chains: Vec<Chain> = Vec::new();
    // Sets and chains may stand behind the rules that name them.
    for object in objects {
        for kind in ["set", "map"] {
            if let Some(set) = object.get(kind) {
                let elements = set["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
                if elements.len() <= MAX_ELEMENTS {
                    sets.insert(key(set, &text(set, "name")), elements.to_vec());
                }
            }
        }
        if let Some(chain) = object.get("chain") {
            chains.push(Chain {
                tool: "nft",
                family: text(chain, "family"),
                table: text(chain, "table"),
                name: text(chain, "name"),
                hook: chain["hook"].as_str().and_then(hook),
                priority: chain["prio"].as_i64().and_then(|at| i32::try_from(at).ok()).unwrap_or_default(),
                nat: chain["type"] == "nat",
                drops_the_rest: chain["policy"] == "drop",
                rules: Vec::new(),
            });
        }
    }
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let (family, table) = (text(rule, "family"), text(rule, "table"));
        let Some(chain) = chains.iter_mut().find(|chain| {
            chain.family == family && chain.table == table && rule["chain"].as_str() == Some(&chain.name)
        }) else {
            continue;
        };
        let handle = rule["handle"].to_string();
        let text = worded.get(&key(rule, &handle)).cloned().unwrap_or_else(|| format!("rule with handle {handle}"));
        let elements = |name: &str| sets.get(&(family.clone(), table.clone(), name.to_owned()));
        let expressions = rule["expr"].as_array().cloned().unwrap_or_default();
        chain.rules.extend(rules(&expressions, &text, &elements));
    }
    Ok(chains)
}

/// Each rule as it is written, by family, table and handle.
fn worded(text: &str) -> HashMap<Key, String> {
    let mut found = HashMap::new();
    let (mut family, mut table) = (String::new(), String::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if line.starts_with("table ") {
            words.next();
            family = words.next().unwrap_or_default().to_owned();
            table = words.next().unwrap_or_default().to_owned();
        } else if let Some((rule, handle)) = line.rsplit_once(" # handle ")
            && !rule.ends_with('{')
        {
            let key = (family.clone(), table.clone(), handle.trim().to_owned());
            found.insert(key, rule.trim().to_owned());
        }
    }
    found
}

fn hook(name: &str) -> Option<Hook> {
    match name {
        "ingress" => Some(Hook::Ingress),
        "prerouting" => Some(Hook::Prerouting),
        "input" => Some(Hook::Input),
        "forward" => Some(Hook::Forward),
        "output" => Some(Hook::Output),
        "postrouting" => Some(Hook::Postrouting),
        _ => None,
    }
}

fn text(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or_default().to_owned()
}

/// One rule, or one for each entry of a verdict map.
fn rules<'a>(expressions: &[Value], text: &str, elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>) -> Vec<Rule> {
    let mut conditions = Vec::new();
    let mut rules = Vec::new();
    for expression in expressions {
        let Some((kind, body)) = expression.as_object().and_then(|object| object.iter().next()) else { continue };
        let mut decide = |verdict: Verdict, conditions: &[Condition]| {
            rules.push(Rule { conditions: conditions.to_vec(), verdict, text: text.to_owned() });
        };
        match kind.as_str() {
            "match" => {
                let negated = matches!(body["op"].as_str(), Some("!=" | "!"));
                let understood = matches!(body["op"].as_str(), Some("==" | "!=" | "in" | "!"));
                conditions.extend(matched(&body["left"], &body["right"], negated, understood, elements));
            }
            "vmap" => {
                let entries = match &body["data"] {
                    Value::String(name) => elements(name.trim_start_matches('@')).cloned(),
                    data => data["set"].as_array().cloned(),
                };
                let Some(entries) = entries else {
                    conditions.push(undecided());
                    continue;
                };
                for entry in entries {
                    let (Some(value), Some(said)) = (entry.get(0), entry.get(1)) else { continue };
                    let Some(verdict) = verdict_of(said) else { continue };
                    let mut all = conditions.clone();
                    all.extend(matched(&body["key"], value, false, true, elements));
                    decide(verdict, &all);
                }
            }
            "mangle" => {
                let number = body["value"].as_u64().and_then(|value| u32::try_from(value).ok());
                let of = |field: &str| body["key"][field]["key"] == "mark";
                match (of("meta"), of("ct"), number) {
                    (true, _, Some(value)) => decide(Verdict::Mark(Marking::Packet(value, u32::MAX)), &conditions),
                    (true, _, None) => decide(Verdict::Mark(Marking::AnyPacket), &conditions),
                    (_, true, Some(value)) => decide(Verdict::Mark(Marking::Connection(value, u32::MAX)), &conditions),
                    (_, true, None) => decide(Verdict::Mark(Marking::AnyConnection), &conditions),
                    _ => {}
                }
            }
            "queue" => decide(Verdict::Asks("a program in user space (queue)".into()), &conditions),
            // These ask nothing of the packet, and change nothing that is asked elsewhere.
            "counter" | "log" | "comment" | "notrack" | "set" | "map" | "flow" | "ct helper" | "ct timeout"
            | "ct expectation" | "secmark" | "dup" | "last" => {}
            // iptables' own modules, which nft only names.
            "xt" if body["type"] == "target" => match body["name"].as_str() {
                Some("MASQUERADE" | "SNAT") => decide(Verdict::Masquerade, &conditions),
                Some("DNAT" | "REDIRECT") => decide(Verdict::Redirect("elsewhere".into()), &conditions),
                Some("NFQUEUE") => decide(Verdict::Asks("a program in user space (NFQUEUE)".into()), &conditions),
                Some("MARK") => decide(Verdict::Mark(Marking::AnyPacket), &conditions),
                Some("CONNMARK") => {
                    decide(Verdict::Mark(Marking::AnyPacket), &conditions);
                    decide(Verdict::Mark(Marking::AnyConnection), &conditions);
                }
                _ => {}
            },
            "limit" | "quota" | "xt" | "ct count" | "meter" | "synproxy" => conditions.push(undecided()),
            "redirect" => {
                let port = body["port"].as_u64().map_or(String::new(), |port| format!(", port {port}"));
                decide(Verdict::Redirect(format!("this host{port}")), &conditions);
            }
            "dnat" => {
                let address = body["addr"].as_str().unwrap_or("elsewhere");
                let port = body["port"].as_u64().map_or(String::new(), |port| format!(":{port}"));
                decide(Verdict::Redirect(format!("{address}{port}")), &conditions);
            }
            "tproxy" => decide(Verdict::Redirect("a proxy on this host".into()), &conditions),
            _ => match verdict_of(expression) {
                Some(verdict) => decide(verdict, &conditions),
                None => conditions.push(undecided()),
            },
        }
    }
    rules
}

fn verdict_of(expression: &Value) -> Option<Verdict> {
    let (kind, body) = expression.as_object()?.iter().next()?;
    let target = || body["target"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "accept" => Some(Verdict::Accept),
        "drop" => Some(Verdict::Drop),
        "reject" => Some(Verdict::Reject),
        "return" => Some(Verdict::Return),
        "jump" => Some(Verdict::Jump(target())),
        "goto" => Some(Verdict::Goto(target())),
        "masquerade" | "snat" => Some(Verdict::Masquerade),
        "continue" => Some(Verdict::Continue),
        _ => None,
    }
}

fn undecided() -> Condition {
    Condition { negated: false, what: What::Undecided }
}

/// What `left` must be, as conditions; that a packet has the header that is looked at is one of them.
fn matched<'a>(
    left: &Value,
    right: &Value,
    negated: bool,
    understood: bool,
    elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>,
) -> Vec<Condition> {
    let certain = |what| Condition { negated: false, what };
    let (Some(values), true) = (values(right, elements), understood) else { return vec![undecided()] };
    if let Some(parts) = left["concat"].as_array() {
        return concatenated(parts, &values, negated, elements);
    }
    let words = || values.iter().map(word).collect::<Option<Vec<_>>>();
    let words_as = |make: fn(Vec<String>) -> What| words().map_or(What::Undecided, make);
    let addresses = |make: fn(Vec<_>) -> What| {
        values.iter().map(addresses).collect::<Option<Vec<_>>>().map_or(What::Undecided, make)
    };
    let ports =
        |make: fn(Vec<_>) -> What| values.iter().map(ports).collect::<Option<Vec<_>>>().map_or(What::Undecided, make);
    let mut conditions = Vec::new();
    let payload = &left["payload"];
    let what = match (payload["protocol"].as_str(), payload["field"].as_str()) {
        (Some(family @ ("ip" | "ip6")), field) => {
            conditions.push(certain(What::V6(family == "ip6")));
            match field {
                Some("saddr") => addresses(What::Source),
                Some("daddr") => addresses(What::Destination),
                Some("protocol" | "nexthdr") => words_as(What::Protocol),
                _ => What::Undecided,
            }
        }
        (
            Some(protocol @ ("tcp" | "udp" | "th" | "icmp" | "icmpv6" | "sctp" | "dccp" | "arp" | "esp" | "ah")),
            field,
        ) => {
            if protocol != "th" {
                conditions.push(certain(What::Protocol(vec![protocol.to_owned()])));
            }
            match field {
                Some("sport") => ports(What::SourcePort),
                Some("dport") => ports(What::DestinationPort),
                _ => What::Undecided,
            }
        }
        _ => match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
            (Some("iifname" | "iif"), _) => words_as(What::From),
            (Some("oifname" | "oif"), _) => words_as(What::To),
            (Some("l4proto"), _) => words_as(What::Protocol),
            (Some("mark"), _) => number(&values).map_or(What::Undecided, |value| What::Mark(value, u32::MAX)),
            (_, Some("mark")) => number(&values).map_or(What::Undecided, |value| What::ConnMark(value, u32::MAX)),
            (Some("nfproto" | "protocol"), _) => match words().as_deref() {
                Some([one]) if one == "ipv4" || one == "ip" => What::V6(false),
                Some([one]) if one == "ipv6" || one == "ip6" => What::V6(true),
                _ => What::Undecided,
            },
            (_, Some("state")) => words_as(What::State),
            // Who is redirected is told as such; nobody else's address was changed.
            (_, Some("status")) if words().is_some_and(|words| words == ["dnat"]) => What::State(Vec::new()),
            // `meta mark & 0x4000 == 0x4000`
            _ if left["&"][0]["meta"]["key"] == "mark" || left["&"][0]["ct"]["key"] == "mark" => {
                let mask = left["&"][1].as_u64().and_then(|mask| u32::try_from(mask).ok());
                match (number(&values), mask, left["&"][0]["meta"]["key"] == "mark") {
                    (Some(value), Some(mask), true) => What::Mark(value, mask),
                    (Some(value), Some(mask), false) => What::ConnMark(value, mask),
                    _ => What::Undecided,
                }
            }
            _ if left["fib"]["result"] == "type" && left["fib"]["flags"] == serde_json::json!(["daddr"]) => {
                match words().as_deref() {
                    Some([one]) if one == "local" => What::ToThisHost,
                    _ => What::Undecided,
                }
            }
            _ => What::Undecided,
        },
    };
    conditions.push(Condition { negated, what });
    conditions
}

/// `ip daddr . tcp dport { 169.254.169.254 . 80 }`: decided where there is one entry; with more, only that it may be.
fn concatenated<'a>(
    parts: &[Value],
    values: &[Value],
    negated: bool,
    elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>,
) -> Vec<Condition> {
    let [only] = values else { return vec![undecided()] };
    let Some(entry) = only["concat"].as_array().filter(|_| !negated) else { return vec![undecided()] };
    parts.iter().zip(entry).flat_map(|(part, value)| matched(part, value, false, true, elements)).collect()
}

/// What stands on the right, as a list; `None` if it cannot be known.
fn values<'a>(right: &Value, elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>) -> Option<Vec<Value>> {
    let list = match right {
        Value::String(name) if name.starts_with('@') => elements(name.trim_start_matches('@'))?.clone(),
        Value::Array(list) => list.clone(),
        Value::Object(object) => match object.get("set").or_else(|| object.get("|")) {
            Some(Value::Array(list)) => list.clone(),
            _ => vec![right.clone()],
        },
        single => vec![single.clone()],
    };
    // An element with a time-out or a comment is wrapped.
    Some(
        list.into_iter()
            .map(|element| element.get("elem").map_or(element.clone(), |inner| inner["val"].clone()))
            .collect(),
    )
}

/// The only value, if it is a number of 32 bits.
fn number(values: &[Value]) -> Option<u32> {
    let [only] = values else { return None };
    only.as_u64().and_then(|value| u32::try_from(value).ok())
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn addresses(value: &Value) -> Option<(IpAddr, IpAddr)> {
    if let Some(prefix) = value.get("prefix") {
        return range(&format!("{}/{}", prefix["addr"].as_str()?, prefix["len"].as_u64()?));
    }
    if let Some(ends) = value.get("range") {
        return Some((ends[0].as_str()?.parse().ok()?, ends[1].as_str()?.parse().ok()?));
    }
    range(value.as_str()?)
}

fn ports(value: &Value) -> Option<(u16, u16)> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    if let Some(ends) = value.get("range") {
        return Some((port(&ends[0])?, port(&ends[1])?));
    }
    port(value).map(|port| (port, port))
}
