//! Does the host forward what containers on bridges send?

use std::fs;
use std::net::IpAddr;

use super::sight::{Bridge, Sight};
use super::{Answer, Check, Status, Subject};

/// The check.
pub const CHECK: Check =
    Check { id: "ip-forward", explain: "whether the host forwards between its bridges and its uplinks", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (family, endpoint) in [
        ("ipv4", sight.endpoints.iter().find(|endpoint| endpoint.is_ipv4())),
        ("ipv6", sight.endpoints.iter().find(|endpoint| endpoint.is_ipv6())),
    ] {
        let Some(endpoint) = endpoint else { continue };
        let bridges: Vec<&Bridge> =
            sight.bridges.iter().filter(|bridge| !bridge.internal && bridge.speaks(*endpoint)).collect();
        let has_way = sight.uplink(None, *endpoint).is_some();
        if endpoint.is_ipv6() && (!has_way || bridges.is_empty()) {
            continue;
        }
        answers.extend(judge(family, *endpoint, &bridges, sight, &|path| {
            fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        }));
    }
    answers
}

fn judge(
    family: &str,
    endpoint: IpAddr,
    bridges: &[&Bridge],
    sight: &Sight,
    read: &dyn Fn(&str) -> Option<String>,
) -> Vec<Answer> {
    let key = if family == "ipv4" { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
    let dotted = key.replace('/', ".");
    let look = format!("sysctl {dotted}");
    let mend = format!("sysctl -w {dotted}=1");
    let Some(value) = read(&format!("/proc/sys/{key}")) else {
        let summary = format!("{dotted} could not be read: is /proc/sys hidden?");
        return vec![Answer::new(Subject::Host, Status::Unknown, summary).look(look)];
    };
    let names: Vec<String> = bridges.iter().map(|bridge| bridge.name.clone()).collect();
    if value == "0" {
        let running = bridges.iter().any(|bridge| bridge.used || !bridge.containers.is_empty());
        let (status, what) = match (names.is_empty(), running) {
            (true, _) => (Status::Ok, "there is no container bridge that would need it".to_owned()),
            (false, true) => {
                (Status::Broken, format!("no container on {} can reach IMDS, or anything else", super::some_of(&names)))
            }
            (false, false) => {
                (Status::Warning, format!("a container on {} could not reach IMDS", super::some_of(&names)))
            }
        };
        return vec![Answer::new(Subject::Host, status, format!("{dotted} is 0: {what}.")).look(look).mend(mend)];
    }
    let mut answers =
        vec![Answer::new(Subject::Host, Status::Ok, format!("{dotted} is {value}: the host forwards.")).look(look)];
    // The kernel asks the interface a packet came in by: the bridge's for requests, the uplink's for answers.
    let mut interfaces = names;
    for bridge in bridges {
        interfaces.extend(sight.uplink(Some(bridge), endpoint).filter(|uplink| !interfaces.contains(uplink)));
    }
    // For IPv6 `all` decides alone: `ip6_forward` asks nothing else.
    for interface in interfaces.iter().filter(|_| family == "ipv4" && !bridges.is_empty()) {
        let key = format!("net/{family}/conf/{interface}/forwarding");
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
    use crate::doctor::firewall::Firewall;
    use crate::doctor::sight::View;

    fn sight() -> Sight {
        Sight {
            endpoints: Vec::new(),
            engine: Ok(Default::default()),
            host: View { network: Ok(Default::default()), firewall: Firewall::default() },
            inside: Vec::new(),
            bridges: Vec::new(),
        }
    }

    fn bridge(containers: Vec<(String, Vec<IpAddr>)>) -> Bridge {
        Bridge { name: "docker0".into(), network: None, subnets: Vec::new(), internal: false, containers, used: false }
    }

    fn statuses(bridges: &[&Bridge], read: &dyn Fn(&str) -> Option<String>) -> Vec<Status> {
        let endpoint = IpAddr::from([169, 254, 169, 254]);
        judge("ipv4", endpoint, bridges, &sight(), read).into_iter().map(|answer| answer.status).collect()
    }

    #[test]
    fn not_forwarding_breaks_only_those_who_need_it() {
        let zero = |_: &str| Some("0".to_owned());
        let (empty, used) = (bridge(Vec::new()), bridge(vec![("job-17".into(), Vec::new())]));
        assert_eq!(statuses(&[], &zero), [Status::Ok]);
        assert_eq!(statuses(&[&empty], &zero), [Status::Warning]);
        assert_eq!(statuses(&[&used], &zero), [Status::Broken]);
        assert_eq!(statuses(&[&used], &|_| None), [Status::Unknown]);
    }

    #[test]
    fn one_interface_that_does_not_forward_is_named() {
        let read = |path: &str| Some(if path.contains("docker0") { "0" } else { "1" }.to_owned());
        assert_eq!(statuses(&[&bridge(Vec::new())], &read), [Status::Ok, Status::Broken]);
    }
}
