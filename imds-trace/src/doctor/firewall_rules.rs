//! Would a firewall rule drop, reject or redirect IMDS traffic, on the host or in a client's namespace?

use std::net::IpAddr;

use super::firewall::arp;
use super::firewall::fate::{Client, Heading, fate};
use super::firewall::owner;
use super::firewall::rules::{Chain, Rule, Verdict, What};
use super::firewall::walk::Hit;
use super::inside::View;
use super::redirect::{self, End};
use super::sight::{self, Sight};
use super::{Answer, Check, Status, Subject, some_of};
use crate::interfaces::snapshot::Way;
use diagnosis::printable::shell_word;
use diagnosis::words::counted;

/// The check.
pub const CHECK: Check =
    Check { id: "firewall", explain: "whether a firewall rule drops, rejects or redirects IMDS traffic", examine };

/// What a rule, or a chain's policy, would do, and to whom.
struct Found<'a> {
    hit: Hit<'a>,
    heading: Heading,
    /// Is it about what asks who has an address, without which requests and answers do not come?
    finds: bool,
    endpoints: Vec<IpAddr>,
    who: Vec<String>,
    /// Where requests end that it redirects.
    end: Option<End>,
    /// Is there anybody among them?
    real: bool,
    /// May it be deleted, and would they all get through then?
    mends: bool,
}

/// A namespace, and how it is spoken of.
struct Place<'a> {
    sight: &'a Sight,
    view: &'a View,
    is_host: bool,
    about: &'a dyn Fn() -> Subject,
    command: &'a dyn Fn(&str) -> String,
}

fn examine(sight: &Sight) -> Vec<Answer> {
    let plain = |command: &str| command.to_owned();
    let host = Place { sight, view: &sight.host, is_host: true, about: &|| Subject::Host, command: &plain };
    let mut answers = judge(&host, &sight.clients());
    for inside in &sight.inside {
        let about = || Subject::Container(inside.name());
        match &inside.view {
            Ok(view) => {
                let command = |command: &str| inside.command(command);
                let own = |endpoint: &IpAddr| sight::own(inside.name(), inside.network(), *endpoint);
                let clients: Vec<Client> = sight.endpoints.iter().filter_map(own).collect();
                let place = Place { sight, view, is_host: false, about: &about, command: &command };
                answers.extend(judge(&place, &clients));
            }
            Err(why) => {
                answers.push(Answer::new(about(), Status::Unknown, format!("Its firewall rules are not known: {why}.")))
            }
        }
    }
    answers
}

fn judge(place: &Place, clients: &[Client]) -> Vec<Answer> {
    let Place { about, command, .. } = place;
    let firewall = &place.view.firewall;
    let found = all(place, clients);
    let mut answers: Vec<Answer> = found.iter().map(|found| answer(found, about, command)).collect();
    if let Some(why) = firewall.unread() {
        answers.push(Answer::new(about(), Status::Unknown, format!("Not all firewall rules are known: {why}.")));
    }
    if answers.is_empty() {
        let rules: usize = firewall.chains.iter().map(|chain| chain.rules.len()).sum();
        let mut names: Vec<String> = Vec::new();
        for client in clients {
            // One for each endpoint.
            if !names.contains(&client.name) {
                names.push(client.name.clone());
            }
        }
        let summary = match clients {
            [] => "No client reaches IMDS through its rules.".to_owned(),
            _ if rules == 0 => "There are no firewall rules.".to_owned(),
            _ => format!(
                "None of {} ({}) drops, rejects or redirects IMDS traffic of {}.",
                counted(rules as u64, "firewall rule"),
                firewall.read_by.join(", "),
                some_of(&names)
            ),
        };
        answers.push(Answer::new(about(), Status::Ok, summary).look(command("nft list ruleset")));
    }
    answers
}

/// What would happen, each rule once.
fn all<'a>(place: &Place<'a>, clients: &[Client]) -> Vec<Found<'a>> {
    let mut found: Vec<Found<'a>> = Vec::new();
    let read = |key: &str| {
        // Of the host alone: in another namespace `/proc/sys` would have to be read from within.
        let path = format!("/proc/sys/net/ipv4/conf/{key}");
        std::fs::read_to_string(path).ok().filter(|_| place.is_host).map(|text| text.trim().to_owned())
    };
    let chains = &place.view.firewall.chains;
    for client in clients {
        let Some(endpoint) = client.endpoint else { continue };
        let neighbours = arp::hits(chains, client, router(place, client, endpoint));
        let packets = fate(chains, client).hits.into_iter().map(|hit| (hit, false));
        for ((heading, hit), finds) in packets.chain(neighbours.into_iter().map(|hit| (hit, true))) {
            let end = match hit.rule.map(|rule| &rule.verdict) {
                Some(Verdict::Redirect(to)) => {
                    Some(redirect::end(place.sight, place.view, place.is_host, client, to, &read))
                }
                _ => None,
            };
            let same = |known: &&mut Found| {
                std::ptr::eq(known.hit.chain, hit.chain)
                    && known.hit.rule.map(|rule| &rule.text) == hit.rule.map(|rule| &rule.text)
                    && known.finds == finds
                    // What is certain for one and not for another is two things.
                    && (known.hit.sure, known.hit.named, &known.end) == (hit.sure, hit.named, &end)
            };
            let may_go = hit.rule.is_some_and(|rule| is_about(rule, heading, &place.sight.endpoints));
            let mends = may_go && is_alone(chains, client, &hit);
            match found.iter_mut().find(same) {
                Some(known) => {
                    known.mends &= mends;
                    known.real |= !client.is_example;
                    if !known.who.contains(&client.name) {
                        known.who.push(client.name.clone());
                    }
                    if !known.endpoints.contains(&endpoint) {
                        known.endpoints.push(endpoint);
                    }
                }
                None => {
                    let (endpoints, who, real) = (vec![endpoint], vec![client.name.clone()], !client.is_example);
                    found.push(Found { hit, heading, finds, endpoints, who, end, real, mends });
                }
            }
        }
    }
    found
}

/// Whom this namespace asks for by ARP to send a client's requests on.
fn router(place: &Place, client: &Client, endpoint: IpAddr) -> Option<IpAddr> {
    let way = match (&client.by, client.address) {
        (Some(by), Some(source)) => place.sight.forwarded(source, by, endpoint)?,
        (Some(_), None) => return None,
        (None, _) => place.view.network.as_ref().ok()?.way(endpoint)?,
    };
    match way {
        Way::Out { gateway, .. } => Some(gateway.unwrap_or(endpoint)),
        _ => None,
    }
}

/// Would a client's packets certainly get through if a rule that iptables shows were deleted? Of two that are alike the first goes.
fn is_alone(chains: &[Chain], client: &Client, hit: &Hit) -> bool {
    let Some(rule) = hit.rule.filter(|rule| hit.sure && hit.ends() && rule.text.starts_with("-A ")) else {
        return false;
    };
    let Some(place) = chains.iter().position(|chain| std::ptr::eq(chain, hit.chain)) else { return false };
    let mut without = chains.to_vec();
    let rules = &mut without[place].rules;
    let Some(first) = rules.iter().position(|other| other.text == rule.text) else { return false };
    rules.remove(first);
    let stops = |hit: &Hit| hit.ends() || matches!(hit.rule.map(|rule| &rule.verdict), Some(Verdict::Asks(_)));
    !fate(&without, client).hits.iter().any(|(_, hit)| stops(hit))
}

fn answer(found: &Found, about: &dyn Fn() -> Subject, command: &dyn Fn(&str) -> String) -> Answer {
    let Found { hit, heading, finds, endpoints, who, end, real, mends } = found;
    let chain = hit.chain;
    let place = format!("chain {} of table {} ({})", chain.name, chain.table, tool(chain.tool, &chain.family));
    let (table, name) = (shell_word(&chain.table), shell_word(&chain.name));
    // What iptables would show without the set that it asks is nft's.
    let native = hit.rule.is_some_and(|rule| !rule.text.starts_with("-A "));
    let look = match chain.tool {
        _ if native => format!("nft -a list chain {} {table} {name}", chain.family),
        "nft" => format!("nft -a list chain {} {table} {name}", chain.family),
        tool => format!("{tool} -t {table} -nvL {name}"),
    };
    let traffic = match heading {
        Heading::Request => "requests to",
        Heading::Answer => "answers from",
    };
    let endpoints_of = endpoints.as_slice();
    let endpoints = endpoints.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ");
    let traffic = format!("{traffic} {endpoints} ({})", some_of(who));
    let traffic = match (finds, chain.family.as_str()) {
        (false, _) => traffic,
        (true, "arp") => format!("ARP that {traffic} need"),
        (true, _) => format!("neighbour discovery (ICMPv6) that {traffic} need"),
    };
    let owner = owner::of(chain, hit.rule);
    let set_up = owner.map_or(String::new(), |owner| format!(" {} set it up; {}.", owner.name, owner.advice));
    let answer = |status, summary: String| {
        // What would become of somebody who is not there breaks nothing, and is perhaps meant so.
        let status = if *real || status == Status::Ok { status } else { Status::Unknown };
        Answer::new(about(), status, summary + &set_up).look(command(&look))
    };
    let Some(rule) = hit.rule else {
        return if hit.sure {
            // Docker sets it, and lets its own through. Here nothing was found that does.
            let summary = format!("The policy of {place} is to drop, and no rule lets {traffic} through.");
            answer(Status::Broken, summary)
        } else {
            let summary = format!(
                "The policy of {place} is to drop, and whether a rule lets {traffic} through cannot be decided here."
            );
            answer(Status::Unknown, summary)
        };
    };
    let does = match &rule.verdict {
        Verdict::Drop => "drops",
        Verdict::Reject => "rejects",
        Verdict::Redirect(_) => "redirects",
        Verdict::Asks(who) => {
            let summary =
                format!("The rule `{}` in {place} hands {traffic} to {who}, which may drop them: not read.", rule.text);
            return answer(Status::Unknown, summary);
        }
        Verdict::Changes(changed) => {
            let summary = format!(
                "The rule `{}` in {place} changes {} of {traffic}: whether they arrive then cannot be decided here.",
                rule.text,
                changed.words()
            );
            return answer(Status::Unknown, summary);
        }
        Verdict::Notrack => {
            let summary = format!(
                "The rule `{}` in {place} keeps {traffic} from being tracked: whether they are translated back to the client cannot be decided here.",
                rule.text
            );
            return answer(Status::Unknown, summary);
        }
        _ => {
            let summary =
                format!("Whether {place} lets {traffic} through cannot be decided: too many rules lead to each other.");
            return answer(Status::Unknown, summary);
        }
    };
    let says = format!("The rule `{}` in {place} {does}", rule.text);
    if let Verdict::Redirect(to) = &rule.verdict {
        let end = end.as_ref().unwrap_or(&End::Unknown);
        if hit.sure {
            return redirected(&format!("{says} {traffic} to {to}"), end, &answer);
        }
    }
    let (status, summary) = match (hit.sure, hit.named) {
        (true, _) => (Status::Broken, format!("{says} {traffic}.")),
        (false, true) => {
            (Status::Warning, format!("{says} some {traffic}: it has further matches that cannot be evaluated here."))
        }
        (false, false) => (
            Status::Unknown,
            format!("Whether the rule `{}` in {place} {does} {traffic} cannot be decided here.", rule.text),
        ),
    };
    let alone = is_about(rule, *heading, endpoints_of);
    let summary = match (status, alone, owner) {
        (Status::Broken, false, None) => format!(
            "{summary} The rule is not about IMDS alone: leave it, and put an exception before it if they are to reach IMDS."
        ),
        _ => summary,
    };
    let said = answer(status, summary);
    // Who made the rule chose its words: only harmless ones are handed to a shell. What is wider than IMDS is not for us to undo.
    // Where iptables sees some rule of the chain without the set that it asks, it may take that one for this.
    let seen_whole = chain.rules.iter().all(|rule| rule.text.starts_with("-A "));
    let harmless = |c: char| c.is_ascii_alphanumeric() || " ./:,_=-!".contains(c);
    match rule.text.strip_prefix("-A ") {
        Some(words)
            if *real
                && *mends
                && hit.sure
                && alone
                && seen_whole
                && owner.is_none()
                && chain.table != "raw"
                && words.chars().all(harmless) =>
        {
            let delete = command(&format!("{} -t {} -D {words}", chain.tool, chain.table));
            said.mend(format!("{delete}  # lowers safety: whom it kept off IMDS can then take the instance's role"))
        }
        _ => said,
    }
}

/// Does a rule by itself name these endpoints and nothing else, so that nothing but IMDS changes when it goes? Not so where only the rule
/// that leads to it does: others may lead there, too.
fn is_about(rule: &Rule, heading: Heading, endpoints: &[IpAddr]) -> bool {
    rule.conditions.iter().any(|condition| {
        let ranges = match (&condition.what, heading) {
            (What::Destination(ranges), Heading::Request) | (What::Source(ranges), Heading::Answer) => ranges,
            _ => return false,
        };
        let is_endpoint = |(first, last): &(IpAddr, IpAddr)| first == last && endpoints.contains(first);
        !condition.negated && !ranges.is_empty() && ranges.iter().all(is_endpoint)
    })
}

/// What is said of requests that are certainly redirected.
fn redirected(begins: &str, end: &End, answer: &dyn Fn(Status, String) -> Answer) -> Answer {
    match end {
        End::Imds => answer(Status::Ok, format!("{begins}, which is IMDS.")),
        End::Taken(who) => answer(Status::Ok, format!("{begins}, {who}: they are answered there, in place of IMDS.")),
        End::Kept(who) => answer(
            Status::Unknown,
            format!(
                "{begins}, {who}, so that they are not answered by IMDS: whether somebody answers there is not known."
            ),
        ),
        End::Nobody(why, mend) => {
            let summary = format!(
                "{begins}, {why}. Whom it redirects gets nothing, until what it was meant for runs again or the rule goes."
            );
            let said = answer(Status::Broken, summary);
            mend.iter().fold(said, |said, mend| said.mend(mend.clone()))
        }
        End::Elsewhere(whither) => {
            answer(Status::Warning, format!("{begins}, {whither}: whoever is there answers them, and not IMDS."))
        }
        End::Unknown => answer(
            Status::Unknown,
            format!("{begins}, so that they are not answered by IMDS: whether somebody answers there is not known."),
        ),
    }
}

fn tool(tool: &str, family: &str) -> String {
    if tool == "nft" { format!("nft, family {family}") } else { tool.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::firewall::iptables;
    use super::*;

    #[test]
    fn beside_a_rule_that_iptables_sees_in_part_nothing_is_deleted() {
        let text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 169.254.169.254/32 -p tcp -j DROP\nCOMMIT\n";
        let mut chains = iptables::read(text, "iptables");
        let rule = chains[0].rules[0].clone();
        let offered = |chain: &Chain| {
            let hit = Hit { chain, rule: chain.rules.last(), sure: true, named: true };
            let (endpoints, who) = (vec![IpAddr::from([169, 254, 169, 254])], vec!["job-17".to_owned()]);
            let found = Found {
                hit,
                heading: Heading::Request,
                finds: false,
                endpoints,
                who,
                end: None,
                real: true,
                mends: true,
            };
            answer(&found, &|| Subject::Host, &|command| command.to_owned()).mend
        };
        assert!(offered(&chains[0]).is_some());
        let text = "ip daddr 169.254.169.254 tcp dport { 8080, 443 } drop".to_owned();
        chains[0].rules.insert(0, Rule { text, ..rule });
        assert_eq!(offered(&chains[0]), None);
    }

    /// The command offered for the last rule of the chain `chain` of a table, where it certainly drops.
    fn offered(table: &str, chain: &str, heading: Heading, rules: &str) -> Option<String> {
        let text =
            format!("*{table}\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:LOGDROP - [0:0]\n{rules}\nCOMMIT\n");
        let chains = iptables::read(&text, "iptables");
        let chain = chains.iter().find(|found| found.name == chain).expect("a chain");
        let hit = Hit { chain, rule: chain.rules.last(), sure: true, named: true };
        let (endpoints, who) = (vec![IpAddr::from([169, 254, 169, 254])], vec!["job-17".to_owned()]);
        let found = Found { hit, heading, finds: false, endpoints, who, end: None, real: true, mends: true };
        let said = answer(&found, &|| Subject::Host, &|command| command.to_owned());
        assert_eq!(said.status, Status::Broken);
        assert_eq!(said.mend.is_none(), said.summary.contains("not about IMDS alone"), "{}", said.summary);
        said.mend
    }

    #[test]
    fn only_a_rule_about_imds_alone_is_offered_to_be_deleted() {
        use Heading::{Answer, Request};
        let forward =
            |heading, rule: &str| offered("filter", "FORWARD", heading, &format!("-A FORWARD {rule} -j DROP"));
        assert!(
            forward(Request, "-d 169.254.169.254/32 -p tcp -m tcp --dport 80")
                .is_some_and(|mend| mend.starts_with("iptables -t filter -D FORWARD -d 169.254.169.254/32 "))
        );
        assert!(forward(Answer, "-s 169.254.169.254/32").is_some());
        for rule in [
            "-s 172.17.0.0/16 ! -d 10.0.0.0/8",
            "-s 172.17.0.2/32",
            "-d 169.254.0.0/16",
            "-d 169.254.169.254/31",
            "-s 169.254.169.254/32",
            "! -d 169.254.169.254/32",
        ] {
            assert_eq!(forward(Request, rule), None, "{rule}");
        }
        let shared = "-A FORWARD -d 169.254.169.254/32 -j LOGDROP\n-A FORWARD -d 10.0.0.1/32 -j LOGDROP\n-A LOGDROP -j LOG\n-A LOGDROP -j DROP";
        assert_eq!(offered("filter", "LOGDROP", Request, shared), None);
        let net = "-A POSTROUTING -s 172.17.0.0/16 -o ens5 -j DROP";
        assert_eq!(offered("mangle", "POSTROUTING", Request, net), None);
    }

    #[test]
    fn a_rule_is_not_offered_to_be_deleted_where_another_drops_all_the_same() {
        let rule = "-A FORWARD -d 169.254.169.254/32 -j DROP";
        let alone = |policy: &str, rules: &str| {
            let text = format!("*filter\n:FORWARD {policy} [0:0]\n{rules}\nCOMMIT\n");
            let chains = iptables::read(&text, "iptables");
            let client = Client {
                address: Some(IpAddr::from([172, 17, 0, 2])),
                by: Some("docker0".into()),
                endpoint: Some(IpAddr::from([169, 254, 169, 254])),
                ..Client::default()
            };
            let hits = fate(&chains, &client).hits;
            is_alone(&chains, &client, &hits[0].1)
        };
        assert!(alone("ACCEPT", rule));
        assert!(!alone("DROP", rule));
        assert!(!alone("ACCEPT", &format!("{rule}\n{rule}")), "the first of two goes");
        assert!(!alone("ACCEPT", &format!("{rule}\n-A FORWARD -i docker0 -j REJECT")));
        assert!(!alone("ACCEPT", &format!("{rule}\n-A FORWARD -m recent --name x --rcheck -j DROP")), "perhaps");
    }
}
