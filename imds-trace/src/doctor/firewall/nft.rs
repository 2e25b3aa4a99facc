//! What does `nft -j list ruleset` say? Its JSON to [`Chain`]s; the rules' wording from `nft -a list ruleset`. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::elements::bounded;
use super::mangle::{changed, marking};
use super::mark::Marking;
use super::rules::{Chain, Condition, Hook, Rule, Verdict, What, range};
use super::wording::{Key, dormant, on_devices, worded};

/// A chain as it is listed, and what each rule of the list became.
pub struct Listed {
    /// The chain.
    pub chain: Chain,
    /// How many of its rules one listed rule became, and whether that asks a set or a map.
    pub made: Vec<(usize, bool)>,
}

/// The chains of a ruleset. `wording` is the same ruleset as text with handles; without it, rules are told by their handle.
pub fn read(json: &str, wording: &str) -> Result<Vec<Chain>, serde_json::Error> {
    Ok(listed(json, wording)?.into_iter().map(|listed| listed.chain).collect())
}

/// The same, rule by rule.
pub fn listed(json: &str, wording: &str) -> Result<Vec<Listed>, serde_json::Error> {
    let whole = bounded(json)?;
    let objects = whole["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let worded = worded(wording);
    let on_devices = on_devices(wording);
    let mut dormant = dormant(wording);
    let tables = objects.iter().filter_map(|object| object.get("table")).filter(|table| is_dormant(table));
    dormant.extend(tables.map(|table| (text(table, "family"), text(table, "name"))));
    let sleeps = |chain: &Value| dormant.contains(&(text(chain, "family"), text(chain, "table")));
    let key = |object: &Value, last: &str| -> Key { (text(object, "family"), text(object, "table"), last.to_owned()) };
    let none = Vec::new();
    let mut sets: HashMap<Key, &Vec<Value>> = HashMap::new();
    let mut chains: Vec<Listed> = Vec::new();
    let mut places: HashMap<Key, usize> = HashMap::new();
    // Sets and chains may stand behind the rules that name them.
    for object in objects {
        for kind in ["set", "map"] {
            if let Some(set) = object.get(kind) {
                // Of one with too many elements none is there.
                if let Some(elements) = set.get("elem").map_or(Some(&none), Value::as_array) {
                    sets.insert(key(set, &text(set, "name")), elements);
                }
            }
        }
        if let Some(chain) = object.get("chain") {
            places.insert(key(chain, &text(chain, "name")), chains.len());
            let chain = Chain {
                tool: "nft",
                family: text(chain, "family"),
                table: text(chain, "table"),
                name: text(chain, "name"),
                hook: chain["hook"].as_str().and_then(hook).filter(|_| !sleeps(chain)),
                priority: chain["prio"].as_i64().and_then(|at| i32::try_from(at).ok()).unwrap_or_default(),
                nat: chain["type"] == "nat",
                drops_the_rest: chain["policy"] == "drop",
                devices: devices(&chain["dev"])
                    .or_else(|| on_devices.get(&key(chain, &text(chain, "name"))).cloned())
                    .unwrap_or_default(),
                rules: Vec::new(),
            };
            chains.push(Listed { chain, made: Vec::new() });
        }
    }
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let (family, table) = (text(rule, "family"), text(rule, "table"));
        let place = places.get(&key(rule, &text(rule, "chain")));
        let Some(listed) = place.and_then(|place| chains.get_mut(*place)) else { continue };
        let handle = rule["handle"].to_string();
        let text = worded.get(&key(rule, &handle)).cloned().unwrap_or_else(|| format!("rule with handle {handle}"));
        let elements = |name: &str| sets.get(&(family.clone(), table.clone(), name.to_owned())).copied();
        let expressions = rule["expr"].as_array().cloned().unwrap_or_default();
        let made = rules(&expressions, &text, &elements);
        listed.made.push((made.len(), expressions.iter().any(asks_set)));
        listed.chain.rules.extend(made);
    }
    Ok(chains)
}

/// Does an expression look something up in a set or a map, named or not?
fn asks_set(expression: &Value) -> bool {
    match expression {
        Value::Object(fields) => fields.iter().any(|(field, value)| {
            matches!(field.as_str(), "set" | "map" | "vmap") || field != "prefix" && asks_set(value)
        }),
        Value::Array(list) => list.iter().any(asks_set),
        Value::String(text) => text.starts_with('@'),
        _ => false,
    }
}

/// Families and names of the tables, out of `nft -j list tables`.
pub fn tables(json: &str) -> Result<Vec<(String, String)>, serde_json::Error> {
    let whole: Value = serde_json::from_str(json)?;
    let objects = whole["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let tables = objects.iter().filter_map(|object| object.get("table"));
    Ok(tables.map(|table| (text(table, "family"), text(table, "name"))).collect())
}

fn hook(name: &str) -> Option<Hook> {
    match name {
        "ingress" => Some(Hook::Ingress),
        "prerouting" => Some(Hook::Prerouting),
        "input" => Some(Hook::Input),
        "forward" => Some(Hook::Forward),
        "output" => Some(Hook::Output),
        "postrouting" => Some(Hook::Postrouting),
        "egress" => Some(Hook::Egress),
        _ => None,
    }
}

/// A card's own chain names one or several. nft 1.0 does not say so in JSON.
fn devices(said: &Value) -> Option<Vec<String>> {
    match said {
        Value::String(name) => Some(vec![name.clone()]),
        Value::Array(all) => all.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// Are a table's chains not asked? nft 1.1 and later say so.
fn is_dormant(table: &Value) -> bool {
    let flags = &table["flags"];
    flags == "dormant" || flags.as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "dormant"))
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
            "vmap" => match choices(body, &conditions, elements) {
                Some(choices) => {
                    for (conditions, said) in choices {
                        if let Some(verdict) = verdict_of(&said) {
                            decide(verdict, &conditions);
                        }
                    }
                }
                None => {
                    conditions.push(undecided());
                    decide(Verdict::Asks("a verdict map that could not be read".into()), &conditions);
                }
            },
            "mangle" => {
                let of = |field: &str| body["key"][field]["key"] == "mark";
                let packet = match (of("meta"), of("ct")) {
                    (true, _) => true,
                    (_, true) => false,
                    _ => {
                        if let Some(changed) = changed(&body["key"], &body["value"]) {
                            decide(Verdict::Changes(changed), &conditions);
                        }
                        continue;
                    }
                };
                for (conditions, value) in chosen(&body["value"], &conditions, elements) {
                    decide(Verdict::Mark(marking(packet, &value)), &conditions);
                }
            }
            "notrack" => decide(Verdict::Notrack, &conditions),
            "fwd" => decide(Verdict::Asks("another interface, past routes and rules (fwd)".into()), &conditions),
            "queue" => decide(Verdict::Asks("a program in user space (queue)".into()), &conditions),
            // These ask nothing of the packet, and change nothing that is asked elsewhere.
            "counter" | "log" | "comment" | "flow" | "ct helper" | "ct timeout" | "ct expectation" | "secmark"
            | "dup" | "last" => {}
            // iptables' own modules, which nft only names.
            "xt" if body["type"] == "target" => match body["name"].as_str() {
                Some("MASQUERADE" | "SNAT") => decide(Verdict::Masquerade(None), &conditions),
                Some("DNAT" | "REDIRECT") => decide(Verdict::Redirect("elsewhere".into()), &conditions),
                Some("NFQUEUE") => decide(Verdict::Asks("a program in user space (NFQUEUE)".into()), &conditions),
                Some("MARK") => decide(Verdict::Mark(Marking::AnyPacket), &conditions),
                Some("CONNMARK") => {
                    decide(Verdict::Mark(Marking::AnyPacket), &conditions);
                    decide(Verdict::Mark(Marking::AnyConnection), &conditions);
                }
                _ => {}
            },
            // `update @flood { ip saddr limit rate over 100/second }` asks what it says behind the element, which not every nft writes.
            "set" | "map" => conditions.push(undecided()),
            "limit" | "quota" | "xt" | "ct count" | "meter" | "synproxy" => conditions.push(undecided()),
            "redirect" => {
                let port = port_told(&body["port"]).map_or(String::new(), |port| format!(", port {port}"));
                decide(Verdict::Redirect(format!("this host{port}")), &conditions);
            }
            "snat" => {
                for (conditions, to) in chosen(&body["addr"], &conditions, elements) {
                    decide(Verdict::Masquerade(addresses(&to)), &conditions);
                }
            }
            "dnat" => {
                for (conditions, to) in chosen(&body["addr"], &conditions, elements) {
                    // `dnat to ip daddr . tcp dport map { … : address . port }`
                    let (address, port) = match to["concat"].as_array().map(Vec::as_slice) {
                        Some([address, port]) => (address.as_str(), port_told(port)),
                        _ => (to.as_str(), port_told(&body["port"])),
                    };
                    let (address, port) = (address.unwrap_or("elsewhere"), port.map(|port| format!(":{port}")));
                    let port = port.unwrap_or_default();
                    let to = if address.contains(':') && !port.is_empty() {
                        format!("[{address}]{port}")
                    } else {
                        format!("{address}{port}")
                    };
                    decide(Verdict::Redirect(to), &conditions);
                }
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

/// A port that a rule gives, if it gives one. A range or a map gives one of several, and is not to be taken for none.
fn port_told(port: &Value) -> Option<String> {
    match port {
        Value::Null => None,
        Value::Number(port) => Some(port.to_string()),
        port => Some(port["range"].as_array().map_or("of several".into(), |ends| format!("{}-{}", ends[0], ends[1]))),
    }
}

/// An element of a set or a map that stands for all that no other is.
const REST: &str = "*";

/// An element as such: one with a time-out or a comment is wrapped.
fn bare(element: &Value) -> Value {
    element.get("elem").map_or(element, |inner| &inner["val"]).clone()
}

/// What a map gives, entry by entry, each with what must hold for it; `None` if the map's elements are not known.
fn choices<'a>(
    map: &Value,
    conditions: &[Condition],
    elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>,
) -> Option<Vec<(Vec<Condition>, Value)>> {
    let entries = match &map["data"] {
        Value::String(name) => elements(name.trim_start_matches('@'))?.clone(),
        data => data["set"].as_array()?.clone(),
    };
    // What matches all that no other entry does.
    let is_rest = |entry: &Value| entry.get(0).map(bare).is_some_and(|value| value == REST);
    let named: Vec<Value> =
        entries.iter().filter(|entry| !is_rest(entry)).filter_map(|entry| entry.get(0)).cloned().collect();
    let choice = |entry: &Value| {
        let (value, said) = (entry.get(0)?, entry.get(1)?);
        let mut all = conditions.to_vec();
        if !is_rest(entry) {
            all.extend(matched(&map["key"], value, false, true, elements));
        } else if !named.is_empty() {
            all.extend(matched(&map["key"], &Value::Array(named.clone()), true, true, elements));
        }
        Some((all, said.clone()))
    };
    // One that cannot be read may be the one that holds.
    entries.iter().map(choice).collect()
}

/// A value as it stands, or each that a map gives. Of a map that is not known: something, perhaps.
fn chosen<'a>(
    value: &Value,
    conditions: &[Condition],
    elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>,
) -> Vec<(Vec<Condition>, Value)> {
    let Some(map) = value.get("map") else { return vec![(conditions.to_vec(), value.clone())] };
    choices(map, conditions, elements).unwrap_or_else(|| {
        let perhaps = conditions.iter().cloned().chain([undecided()]);
        vec![(perhaps.collect(), Value::Null)]
    })
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
        "masquerade" => Some(Verdict::Masquerade(None)),
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
    let everything = values.iter().any(|value| value == REST);
    if let Some(parts) = left["concat"].as_array().filter(|_| !everything) {
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
                Some("saddr ip") => addresses(What::Source),
                Some("daddr ip") => addresses(What::Destination),
                // Ethernet's and IPv4's.
                Some("htype" | "hlen" | "plen") if protocol == "arp" => What::Always,
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
    let what = if everything { What::Always } else { what };
    conditions.push(Condition { negated, what });
    conditions
}

/// `ip daddr . tcp dport { 169.254.169.254 . 80, … }`: all of one entry must hold. That the packet has the headers that are looked at
/// must hold besides, negated or not.
fn concatenated<'a>(
    parts: &[Value],
    values: &[Value],
    negated: bool,
    elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>,
) -> Vec<Condition> {
    let mut headers: Vec<Condition> = Vec::new();
    let mut entries = Vec::new();
    for value in values {
        let Some(entry) = value["concat"].as_array().filter(|entry| entry.len() == parts.len()) else {
            return vec![undecided()];
        };
        let mut all = Vec::new();
        for (part, value) in parts.iter().zip(entry) {
            let mut asked = matched(part, value, false, true, elements);
            let Some(last) = asked.pop().filter(|last| !last.negated) else { return vec![undecided()] };
            all.push(last.what);
            for header in asked {
                if !headers.contains(&header) {
                    headers.push(header);
                }
            }
        }
        entries.push(all);
    }
    headers.push(Condition { negated, what: What::AnyOf(Arc::new(entries)) });
    headers
}

/// What stands on the right, as a list; `None` if it cannot be known.
fn values<'a>(right: &Value, elements: &dyn Fn(&str) -> Option<&'a Vec<Value>>) -> Option<Vec<Value>> {
    let single = std::slice::from_ref(right);
    let list = match right {
        Value::String(name) if name.starts_with('@') => elements(name.trim_start_matches('@'))?,
        Value::Array(list) => list,
        Value::Object(object) => match object.get("set").or_else(|| object.get("|")) {
            Some(Value::Array(list)) => list,
            _ => single,
        },
        _ => single,
    };
    Some(list.iter().map(bare).collect())
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
