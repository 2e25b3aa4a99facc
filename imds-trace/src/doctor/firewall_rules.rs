//! Would a firewall rule drop, reject or redirect IMDS traffic, on the host or in a container?

use std::net::IpAddr;

use super::firewall::rules::{Hit, Verdict, walk};
use super::firewall::{Client, Firewall, Heading};
use super::sight::Sight;
use super::{Answer, Check, Status, Subject, some_of};
use diagnosis::printable::shell_word;

/// The check.
pub const CHECK: Check =
    Check { id: "firewall", explain: "whether a firewall rule drops, rejects or redirects IMDS traffic", examine };

/// What a rule, or a chain's policy, would do, and to whom.
struct Found<'a> {
    hit: Hit<'a>,
    heading: Heading,
    endpoints: Vec<IpAddr>,
    who: Vec<String>,
}

fn examine(sight: &Sight) -> Vec<Answer> {
    let plain = |command: &str| command.to_owned();
    let mut answers = judge(&sight.host.firewall, &sight.clients(), &|| Subject::Host, &plain);
    for inside in &sight.inside {
        let about = || Subject::Container(inside.name());
        match &inside.view {
            Ok(view) => {
                let command = |command: &str| inside.command(command);
                answers.extend(judge(&view.firewall, &inside.clients(&sight.endpoints), &about, &command));
            }
            Err(why) => {
                answers.push(Answer::new(about(), Status::Unknown, format!("Its firewall rules are not known: {why}.")))
            }
        }
    }
    answers
}

fn judge(
    firewall: &Firewall,
    clients: &[Client],
    about: &dyn Fn() -> Subject,
    command: &dyn Fn(&str) -> String,
) -> Vec<Answer> {
    let found = all(firewall, clients);
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
            [] => "Nobody's way to IMDS passes its rules.".to_owned(),
            _ if rules == 0 => "There are no firewall rules.".to_owned(),
            _ => format!(
                "None of {} ({}) drops, rejects or redirects IMDS traffic of {}.",
                super::counted(rules, "firewall rule"),
                firewall.read_by.join(", "),
                some_of(&names)
            ),
        };
        answers.push(Answer::new(about(), Status::Ok, summary).look(command("nft list ruleset")));
    }
    answers
}

/// What would happen, each rule once.
fn all<'a>(firewall: &'a Firewall, clients: &[Client]) -> Vec<Found<'a>> {
    let mut found: Vec<Found<'a>> = Vec::new();
    for client in clients {
        for (heading, hook, packet) in client.packets() {
            for hit in walk(&firewall.chains, hook, &packet) {
                if matches!(hit.rule.map(|rule| &rule.verdict), Some(Verdict::Accept | Verdict::Masquerade)) {
                    continue;
                }
                let same = |known: &&mut Found| {
                    std::ptr::eq(known.hit.chain, hit.chain)
                        && known.hit.rule.map(|rule| &rule.text) == hit.rule.map(|rule| &rule.text)
                };
                match found.iter_mut().find(same) {
                    Some(known) => {
                        known.hit.sure |= hit.sure;
                        known.hit.named |= hit.named;
                        if !known.who.contains(&client.name) {
                            known.who.push(client.name.clone());
                        }
                        if !known.endpoints.contains(&client.endpoint) {
                            known.endpoints.push(client.endpoint);
                        }
                    }
                    None => found.push(Found {
                        hit,
                        heading,
                        endpoints: vec![client.endpoint],
                        who: vec![client.name.clone()],
                    }),
                }
            }
        }
    }
    found
}

fn answer(found: &Found, about: &dyn Fn() -> Subject, command: &dyn Fn(&str) -> String) -> Answer {
    let Found { hit, heading, endpoints, who } = found;
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
    let answer = |status, summary| Answer::new(about(), status, summary).look(command(&look));
    let Some(rule) = hit.rule else {
        // Docker sets it, and lets its own through. Here nothing was found that does.
        let summary = format!("The policy of {place} is to drop, and no rule was found that lets {traffic} through.");
        return answer(Status::Warning, summary);
    };
    let does = match &rule.verdict {
        Verdict::Drop => "drops",
        Verdict::Reject => "rejects",
        Verdict::Redirect(_) => "redirects",
        _ => {
            let summary =
                format!("Whether {place} lets {traffic} through cannot be decided: too many rules lead to each other.");
            return answer(Status::Unknown, summary);
        }
    };
    let to = match &rule.verdict {
        Verdict::Redirect(to) => format!(" to {to}, so that they are answered locally and not by IMDS"),
        _ => String::new(),
    };
    let (status, summary) = match (&rule.verdict, hit.sure, hit.named) {
        (Verdict::Redirect(_), true, _) => {
            (Status::Warning, format!("The rule `{}` in {place} {does} {traffic}{to}.", rule.text))
        }
        (_, true, _) => (Status::Broken, format!("The rule `{}` in {place} {does} {traffic}{to}.", rule.text)),
        (_, false, true) => (
            Status::Warning,
            format!(
                "The rule `{}` in {place} {does} some {traffic}{to}: what it further depends on cannot be decided here.",
                rule.text
            ),
        ),
        (_, false, false) => (
            Status::Unknown,
            format!("Whether the rule `{}` in {place} {does} {traffic} cannot be decided here.", rule.text),
        ),
    };
    let answer = answer(status, summary);
    // Who made the rule chose its words: only harmless ones are handed to a shell.
    let harmless = |c: char| c.is_ascii_alphanumeric() || " ./:,_=-!".contains(c);
    match rule.text.strip_prefix("-A ") {
        Some(words) if words.chars().all(harmless) => {
            answer.mend(command(&format!("{} -t {} -D {words}", chain.tool, chain.table)))
        }
        _ => answer,
    }
}

fn tool(tool: &str, family: &str) -> String {
    if tool == "nft" { format!("nft, family {family}") } else { tool.to_owned() }
}
