//! Does the host forward what its clients send?

use std::fs;

use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use crate::interfaces::snapshot::Way;

/// The check.
pub const CHECK: Check =
    Check { id: "ip-forward", explain: "whether the host forwards between its clients and its uplinks", examine };

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
    let mend = format!("sysctl -w {dotted}=1");
    let Some(value) = read(&format!("/proc/sys/{key}")) else {
        let summary = format!("{dotted} could not be read: is /proc/sys hidden?");
        return vec![Answer::new(Subject::Host, Status::Unknown, summary).look(look)];
    };
    if value == "0" {
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
        return vec![Answer::new(Subject::Host, status, format!("{dotted} is 0: {what}.")).look(look).mend(mend)];
    }
    let mut answers =
        vec![Answer::new(Subject::Host, Status::Ok, format!("{dotted} is {value}: the host forwards.")).look(look)];
    // The kernel asks the interface a packet came in by: the client's for requests, the uplink's for answers. For IPv6 `all` decides
    // alone: `ip6_forward` asks nothing else.
    let someone = needs.entered.iter().chain(&needs.idle);
    let interfaces = someone.chain(needs.uplinks.iter().filter(|uplink| !needs.entered.contains(uplink)));
    for interface in interfaces.filter(|_| !v6) {
        let key = format!("net/ipv4/conf/{interface}/forwarding");
        if read(&format!("/proc/sys/{key}")).as_deref() == Some("0") {
            let summary = format!("{key} is 0: what comes in by {interface} is not forwarded.");
            let answer = Answer::new(Subject::Interface(interface.clone()), Status::Broken, summary);
            let key = diagnosis::printable::shell_word(&key);
            answers.push(answer.look(format!("cat /proc/sys/{key}")).mend(format!("sysctl -w {key}=1")));
        }
    }
    answers
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
}
