//! Would a firewall rule drop, reject or redirect IMDS traffic, on the host or in a client's namespace?

use std::net::IpAddr;

use super::firewall::fate::{Client, Heading, fate};
use super::firewall::owner;
use super::firewall::rules::Verdict;
use super::firewall::walk::Hit;
use super::inside::View;
use super::redirect::{self, End};
use super::sight::{self, Sight};
use super::{Answer, Check, Status, Subject, some_of};
use diagnosis::printable::shell_word;
use diagnosis::words::counted;

/// The check.
pub const CHECK: Check =
    Check { id: "firewall", explain: "whether a firewall rule drops, rejects or redirects IMDS traffic", examine };

/// What a rule, or a chain's policy, would do, and to whom.
struct Found<'a> {
    hit: Hit<'a>,
    heading: Heading,
    endpoints: Vec<IpAddr>,
    who: Vec<String>,
    /// Where requests end that it redirects.
    end: Option<End>,
    /// Is there anybody among them?
    real: bool,
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
    for client in clients {
        let Some(endpoint) = client.endpoint else { continue };
        for (heading, hit) in fate(&place.view.firewall.chains, client).hits {
            let end = match hit.rule.map(|rule| &rule.verdict) {
                Some(Verdict::Redirect(to)) => {
                    Some(redirect::end(place.sight, place.view, place.is_host, client, to, &read))
                }
                _ => None,
            };
            let same = |known: &&mut Found| {
                std::ptr::eq(known.hit.chain, hit.chain)
                    && known.hit.rule.map(|rule| &rule.text) == hit.rule.map(|rule| &rule.text)
                    // What is certain for one and not for another is two things.
                    && (known.hit.sure, known.hit.named, &known.end) == (hit.sure, hit.named, &end)
            };
            match found.iter_mut().find(same) {
                Some(known) => {
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
                    found.push(Found { hit, heading, endpoints, who, end, real });
                }
            }
        }
    }
    found
}

fn answer(found: &Found, about: &dyn Fn() -> Subject, command: &dyn Fn(&str) -> String) -> Answer {
    let Found { hit, heading, endpoints, who, end, real } = found;
    let chain = hit.chain;
    let place = format!("chain {} of table {} ({})", chain.name, chain.table, tool(chain.tool, &chain.family));
    let (table, name) = (shell_word(&chain.table), shell_word(&chain.name));
    let look = match chain.tool {
        "nft" => format!("nft -a list chain {} {table} {name}", chain.family),
        tool => format!("{tool} -t {table} -nvL {name}"),
    };
    let traffic = match heading {
        Heading::Request => "requests to",
        Heading::Answer => "answers from",
    };
    let endpoints = endpoints.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ");
    let traffic = format!("{traffic} {endpoints} ({})", some_of(who));
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
    let said = answer(status, summary);
    // Who made the rule chose its words: only harmless ones are handed to a shell. What is wider than IMDS is not for us to undo.
    let harmless = |c: char| c.is_ascii_alphanumeric() || " ./:,_=-!".contains(c);
    match rule.text.strip_prefix("-A ") {
        Some(words)
            if *real
                && hit.sure
                && hit.named
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

/// What is said of requests that are certainly redirected.
fn redirected(begins: &str, end: &End, answer: &dyn Fn(Status, String) -> Answer) -> Answer {
    match end {
        End::Imds => answer(Status::Ok, format!("{begins}, which is IMDS.")),
        End::Taken(who) => answer(Status::Ok, format!("{begins}, {who}: they are answered there, in place of IMDS.")),
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
