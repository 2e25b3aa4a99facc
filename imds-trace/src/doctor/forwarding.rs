//! Does the host forward what its clients send?

use std::fs;

use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use crate::interfaces::snapshot::Way;
use diagnosis::printable::shell_word;

/// The check.
pub const CHECK: Check =
    Check { id: "ip-forward", explain: "whether the host forwards between its clients and its uplinks", examine };

/// What turning it on costs.
const COST: &str =
    "the host then sends on whatever comes in there and its firewall lets through, to every network that it is on";

/// What turning IPv6's on costs besides (`rt6_purge_dflt_routers`).
const COST_V6: &str =
    "the kernel forgets IPv6 routes that it has of router advertisements, and takes no more, where accept_ra is not 2";

/// Who needs it, of one family of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Needs {
    /// Interfaces by which clients come in.
    entered: Vec<String>,
    /// Names of the clients.
    clients: Vec<String>,
    /// Bridges on which somebody could come.
    idle: Vec<String>,
    /// Interfaces by which answers come in.
    uplinks: Vec<String>,
}

fn examine(sight: &Sight) -> Vec<Answer> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let mut answers = Vec::new();
    for v6 in [false, true] {
        if !sight.endpoints.iter().any(|endpoint| endpoint.is_ipv6() == v6) {
            continue;
        }
        let needs = needs(sight, v6);
        if !v6 || !needs.entered.is_empty() || !needs.idle.is_empty() && !needs.uplinks.is_empty() {
            answers.extend(judge(v6, &needs, &read));
        }
    }
    answers
}

fn needs(sight: &Sight, v6: bool) -> Needs {
    let mut needs = Needs::default();
    let add = |names: &mut Vec<String>, name: &str| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    let Ok(network) = &sight.host.network else { return needs };
    for leg in sight.legs.iter().filter(|leg| leg.endpoint.is_ipv6() == v6) {
        let Some(by) = leg.by() else { continue };
        // One of its own that has no way out by intention.
        if sight.bridge(by).is_some_and(|bridge| bridge.internal) {
            continue;
        }
        add(&mut needs.entered, by);
        add(&mut needs.clients, &leg.name);
        if let Some(Way::Out { interface, .. }) = sight.onward(leg) {
            add(&mut needs.uplinks, network.name(*interface));
        }
    }
    for bridge in sight.bridges.iter().filter(|bridge| !bridge.internal) {
        if needs.entered.contains(&bridge.name) {
            continue;
        }
        for endpoint in sight.endpoints.iter().filter(|endpoint| endpoint.is_ipv6() == v6 && bridge.speaks(**endpoint))
        {
            if bridge.used {
                // Somebody is on it who was not seen.
                add(&mut needs.entered, &bridge.name);
            } else {
                add(&mut needs.idle, &bridge.name);
            }
            let way = bridge.example(*endpoint).and_then(|source| sight.forwarded(source, &bridge.name, *endpoint));
            if let Some(Way::Out { interface, .. }) = way {
                add(&mut needs.uplinks, network.name(*interface));
            }
        }
    }
    needs
}

fn judge(v6: bool, needs: &Needs, read: &dyn Fn(&str) -> Option<String>) -> Vec<Answer> {
    let key = if v6 { "net/ipv6/conf/all/forwarding" } else { "net/ipv4/ip_forward" };
    let dotted = key.replace('/', ".");
    let look = format!("sysctl {dotted}");
    let Some(value) = read(&format!("/proc/sys/{key}")) else {
        let summary = format!("{dotted} could not be read: is /proc/sys hidden?");
        return vec![Answer::new(Subject::Host, Status::Unknown, summary).look(look)];
    };
    // The kernel asks the interface a packet came in by: the client's for requests, the uplink's for answers. For IPv6 `all` decides
    // unless the interface forwards by force (`ip6_forward`).
    let own_key = |interface: &str| match v6 {
        true => format!("net/ipv6/conf/{interface}/force_forwarding"),
        false => format!("net/ipv4/conf/{interface}/forwarding"),
    };
    let someone = needs.entered.iter().chain(&needs.idle);
    let interfaces: Vec<&String> =
        someone.chain(needs.uplinks.iter().filter(|uplink| !needs.entered.contains(uplink))).collect();
    let own = |interface: &str| read(&format!("/proc/sys/{}", own_key(interface)));
    let by_itself = |interface: &String| own(interface).as_deref() == Some("1");
    let some_do = interfaces.iter().any(|interface| by_itself(interface));
    if value == "0" && !some_do {
        let who = if needs.clients.is_empty() {
            "container".to_owned()
        } else {
            format!("client ({})", super::some_of(&needs.clients))
        };
        let (status, what) = match (needs.entered.is_empty(), needs.idle.is_empty()) {
            (false, _) => (
                Status::Broken,
                format!("no {who} on {} can reach IMDS, or anything else", super::some_of(&needs.entered)),
            ),
            (true, false) => {
                (Status::Warning, format!("a container on {} could not reach IMDS", super::some_of(&needs.idle)))
            }
            (true, true) => (Status::Ok, "there is no client that would need it".to_owned()),
        };
        return vec![turned_on(
            Answer::new(Subject::Host, status, format!("{dotted} is 0: {what}.")).look(look),
            v6,
            read,
        )];
    }
    let what = if value == "0" { "only interfaces that are set so themselves forward" } else { "the host forwards" };
    let mut answers = vec![Answer::new(Subject::Host, Status::Ok, format!("{dotted} is {value}: {what}.")).look(look)];
    for interface in interfaces {
        let key = own_key(interface);
        let off = own(interface).as_deref() == Some("0");
        if off && !v6 || value == "0" && !by_itself(interface) {
            let summary = format!("{key} is 0: what comes in by {interface} is not forwarded.");
            let answer = Answer::new(Subject::Interface(interface.clone()), Status::Broken, summary);
            let key = shell_word(&key);
            let mend = format!("sysctl -w {key}=1  # lowers safety: {COST}");
            answers.push(answer.look(format!("cat /proc/sys/{key}")).mend(mend));
        }
    }
    answers
}

/// With the command that turns it on for all interfaces, unless that takes the host's own IPv6 away.
fn turned_on(answer: Answer, v6: bool, read: &dyn Fn(&str) -> Option<String>) -> Answer {
    if !v6 {
        return answer.mend(format!("sysctl -w net.ipv4.ip_forward=1  # lowers safety: {COST}"));
    }
    match advertised(read) {
        Some(card) => {
            let summary = format!(
                "{} No command is offered: turning it on makes the kernel forget what routers advertised, which may be the host's own default route by {card}; accept_ra of {card} would have to be 2 before.",
                answer.summary
            );
            Answer { summary, ..answer }.look("ip -6 route show default")
        }
        None => answer.mend(format!("sysctl -w net.ipv6.conf.all.forwarding=1  # lowers safety: {COST}; {COST_V6}")),
    }
}

/// An interface with an IPv6 default route that may be of a router's advertisement, and would be forgotten.
fn advertised(read: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    const ADDRCONF: u32 = 0x0004_0000; // RTF_ADDRCONF, `include/uapi/linux/ipv6_route.h`
    let Some(routes) = read("/proc/net/ipv6_route") else { return Some("the uplink".to_owned()) };
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "00", .., flags, card] = fields.as_slice() else { return None };
        let by_kernel = u32::from_str_radix(flags, 16).ok()? & ADDRCONF != 0;
        let accepts = read(&format!("/proc/sys/net/ipv6/conf/{card}/accept_ra"));
        let lost = match accepts.as_deref() {
            Some("2") => false,
            Some("0") => by_kernel,
            _ => true,
        };
        (*card != "lo" && lost).then(|| (*card).to_owned())
    };
    routes.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(entered: &[&str], idle: &[&str], read: &dyn Fn(&str) -> Option<String>) -> Vec<Status> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let needs = Needs { entered: names(entered), idle: names(idle), ..Needs::default() };
        judge(false, &needs, read).into_iter().map(|answer| answer.status).collect()
    }

    #[test]
    fn not_forwarding_breaks_only_those_who_need_it() {
        let zero = |_: &str| Some("0".to_owned());
        assert_eq!(statuses(&[], &[], &zero), [Status::Ok]);
        assert_eq!(statuses(&[], &["docker0"], &zero), [Status::Warning]);
        assert_eq!(statuses(&["eni1a2b3c4d5e6"], &["docker0"], &zero), [Status::Broken], "a pod's own link");
        assert_eq!(statuses(&["docker0"], &[], &|_| None), [Status::Unknown]);
    }

    #[test]
    fn one_interface_that_does_not_forward_is_named() {
        let read = |path: &str| Some(if path.contains("docker0") { "0" } else { "1" }.to_owned());
        assert_eq!(statuses(&[], &["docker0"], &read), [Status::Ok, Status::Broken]);
    }

    #[test]
    fn interfaces_that_forward_by_themselves_need_no_general_leave() {
        let of = |v6: bool, forwarding: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let needs = Needs { entered: names(&["docker0"]), uplinks: names(&["ens5"]), ..Needs::default() };
            let read = |path: &str| {
                let forced = !v6 || path.ends_with("/force_forwarding");
                let on = forced && forwarding.iter().any(|name| path.contains(name));
                Some(if on { "1" } else { "0" }.to_owned())
            };
            judge(v6, &needs, &read).into_iter().map(|answer| answer.status).collect::<Vec<_>>()
        };
        for v6 in [false, true] {
            assert_eq!(of(v6, &[]), [Status::Broken]);
            assert_eq!(of(v6, &["docker0", "ens5"]), [Status::Ok]);
            assert_eq!(of(v6, &["docker0"]), [Status::Ok, Status::Broken], "answers come in by ens5");
        }
    }

    #[test]
    fn what_takes_the_hosts_own_ipv6_away_is_not_offered() {
        // As the kernel writes it, with RTF_ADDRCONF | RTF_DEFAULT, and for a route that somebody made.
        let (of_router, made) = ("00450003", "00000003");
        let of = |flags: &str, accepts: &str| {
            let zeros = "0".repeat(32);
            let routes = format!("{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 {flags}     ens5");
            let read = |path: &str| match path {
                "/proc/net/ipv6_route" => Some(routes.clone()),
                path if path.ends_with("ens5/accept_ra") => Some(accepts.to_owned()),
                path => path.ends_with("/forwarding").then(|| "0".to_owned()),
            };
            let needs = Needs { entered: vec!["docker0".into()], ..Needs::default() };
            let answers = judge(true, &needs, &read);
            assert!(answers.len() == 1 && answers[0].status == Status::Broken, "{answers:?}");
            let Answer { mend, summary, .. } = answers[0].clone();
            assert_eq!(mend.is_none(), summary.contains("No command"), "{summary}");
            mend
        };
        assert_eq!(of(of_router, "1"), None);
        assert_eq!(of(of_router, "0"), None, "it was taken before");
        assert_eq!(of(made, "1"), None, "whoever made it");
        for mend in [of(of_router, "2"), of(made, "0")] {
            assert!(mend.is_some_and(|mend| mend.contains("router advertisements")));
        }
    }
}
