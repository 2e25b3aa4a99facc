//! Which BPF programs of others, and filters of traffic control, may decide about clients' packets?
//!
//! What one does is not read, so the answer is never that it breaks something, only that it may.

use std::collections::{BTreeMap, BTreeSet};

use super::sight::{Arrival, Leg, Sight};
use super::{Answer, Check, Status, Subject, some_of};
use crate::interfaces::snapshot::Way;
use crate::kernel::hooks::is_ours;
use crate::kernel::programs::{self, Program};
use diagnosis::net::Ifindex;
use diagnosis::way::hops::{below, hops};

/// The check.
pub const CHECK: Check =
    Check { id: "bpf", explain: "which BPF programs and tc filters on the way may decide", examine };

/// What is said of the host's own processes.
const OWN: &str = "the host's own processes";

/// Beginnings of names of programs, whose they are, and what tells more.
const KNOWN: &[(&str, &str)] = &[
    ("cil_", "Cilium's: `cilium monitor --type drop` shows what it drops"),
    (
        "sd_fw_",
        "systemd's, for IPAddressAllow= and IPAddressDeny= of a unit: see `systemctl show -p IPAddressDeny UNIT`",
    ),
    ("cali_", "Calico's: `calicoctl get globalnetworkpolicy` and `kubectl get networkpolicy -A` show its policies"),
    ("calico_", "Calico's: `calicoctl get globalnetworkpolicy` and `kubectl get networkpolicy -A` show its policies"),
    ("handle_ingress", "perhaps the Amazon VPC CNI's network policy agent: see `kubectl get networkpolicy -A`"),
    ("handle_egress", "perhaps the Amazon VPC CNI's network policy agent: see `kubectl get networkpolicy -A`"),
];

/// One program, or several of the same name that are attached alike.
#[derive(Debug, Default)]
struct Found {
    ids: BTreeSet<u32>,
    places: Vec<String>,
    who: Vec<String>,
    look: Option<String>,
}

/// A name, whether it is a BPF program, and how it is attached.
type Key = (String, bool, &'static str);

fn examine(sight: &Sight) -> Vec<Answer> {
    let mut unknown: Vec<(String, Vec<String>)> = Vec::new();
    let mut seen: Vec<(Program, String, String)> = Vec::new();
    let mut missed = |why: &String, who: String| match unknown.iter_mut().find(|(known, _)| known == why) {
        Some((_, all)) => all.push(who),
        None => unknown.push((why.clone(), vec![who])),
    };
    match (&sight.host.programs, &sight.host.network) {
        (Ok(programs), Ok(network)) => {
            for (index, who) in passed(sight) {
                for program in programs.get(&index).into_iter().flatten() {
                    seen.push((program.clone(), network.name(index).to_owned(), who.clone()));
                }
            }
        }
        (Err(why), _) | (_, Err(why)) => missed(why, "the host's interfaces".into()),
    }
    let root = programs::cgroup_root();
    let of_cgroup = |path: &str| root.as_deref().map(|root| programs::of_cgroup(root, path));
    for inside in &sight.inside {
        let name = inside.name();
        match inside.view.as_ref().map(|view| (&view.programs, &view.network)) {
            Ok((Ok(programs), Ok(network))) => {
                let by: BTreeSet<Ifindex> =
                    sight.endpoints.iter().filter_map(|endpoint| network.leaves_by(*endpoint)).collect();
                for (index, program) in
                    by.iter().flat_map(|by| programs.get(by).into_iter().flatten().map(move |it| (by, it)))
                {
                    seen.push((program.clone(), format!("{} of {name}", network.name(*index)), name.clone()));
                }
            }
            Ok((Err(why), _) | (_, Err(why))) | Err(why) => missed(why, name.clone()),
        }
        for path in &inside.cgroups {
            match of_cgroup(path) {
                Some(Ok(programs)) => seen.extend(programs.into_iter().map(|(program, at)| {
                    let at = at.unwrap_or_else(|| "one above its own".into());
                    (program, at, name.clone())
                })),
                Some(Err(why)) => missed(&why, format!("{name}'s cgroup")),
                None => {
                    missed(&"the machine's version 2 cgroups are not visible here".into(), format!("{name}'s cgroup"))
                }
            }
        }
    }
    match of_cgroup("/") {
        Some(Ok(programs)) => {
            seen.extend(programs.into_iter().map(|(program, at)| (program, at.unwrap_or_default(), OWN.to_owned())));
        }
        Some(Err(why)) => missed(&why, "the root cgroup".into()),
        // Without such a hierarchy no program hangs on a cgroup.
        None => {}
    }
    let found = group(seen);
    let mut answers: Vec<Answer> = found.into_iter().map(|(key, found)| answer(&key, &found)).collect();
    answers.extend(unknown.into_iter().map(|(why, who)| {
        let summary = format!("Which programs may decide about packets there is not known ({}): {why}.", some_of(&who));
        Answer::new(Subject::Host, Status::Unknown, summary).look("bpftool net show; bpftool cgroup tree")
    }));
    if answers.is_empty() {
        let summary = "No BPF program or tc filter of others is attached to the interfaces and cgroups on the way.";
        answers.push(Answer::new(Subject::Host, Status::Ok, summary).look("bpftool net show; bpftool cgroup tree"));
    }
    answers
}

/// Interfaces of the host, and who passes them.
fn passed(sight: &Sight) -> BTreeSet<(Ifindex, String)> {
    let Ok(network) = &sight.host.network else { return BTreeSet::new() };
    let mut passed = BTreeSet::new();
    for endpoint in &sight.endpoints {
        if let Some(Way::Out { interface, .. }) = network.way(*endpoint) {
            passed.extend(below(&network.links, *interface).into_iter().map(|index| (index, OWN.to_owned())));
        }
    }
    let card = |leg: &Leg| match &leg.arrival {
        Arrival::Card(_, card) => network.links.values().find(|link| link.name == *card).map(|link| link.index),
        _ => None,
    };
    for leg in &sight.legs {
        let end = sight.inside[leg.inside].host_end(leg.endpoint).filter(|_| leg.by().is_some());
        let out = match sight.onward(leg) {
            Some(Way::Out { interface, .. }) => Some(*interface),
            _ => card(leg),
        };
        passed.extend(hops(&network.links, end, out).into_iter().map(|index| (index, leg.name.clone())));
    }
    passed
}

/// Those of one name that are attached alike are told together: with some engines each pod has its own.
fn group(seen: Vec<(Program, String, String)>) -> BTreeMap<Key, Found> {
    let ids: BTreeSet<u32> = seen.iter().filter_map(|(program, _, _)| program.id).collect();
    let names = programs::names(&ids);
    let mut found: BTreeMap<Key, Found> = BTreeMap::new();
    for (program, place, who) in seen {
        let known = program.id.and_then(|id| names.get(&id)).filter(|name| !name.is_empty());
        let name = known.or(program.filter.as_ref()).cloned().unwrap_or_default();
        let is_bpf = program.id.is_some();
        if is_bpf && (is_ours(&name) || program.filter.as_deref().is_some_and(is_ours)) {
            continue;
        }
        let one = found.entry((name, is_bpf, program.how)).or_default();
        one.ids.extend(program.id);
        if !one.places.contains(&place) {
            one.places.push(place);
        }
        if !one.who.contains(&who) {
            one.who.push(who);
        }
        one.look.get_or_insert_with(|| match program.id {
            Some(id) => format!("bpftool prog dump xlated id {id}"),
            None => "tc -s filter show dev INTERFACE ingress; tc -s filter show dev INTERFACE egress".into(),
        });
    }
    found
}

fn answer((name, is_bpf, how): &Key, found: &Found) -> Answer {
    let about = match found.who.as_slice() {
        [one] if one != OWN => Subject::Container(one.clone()),
        _ => Subject::Host,
    };
    let name = if name.is_empty() { "without a name".to_owned() } else { format!("`{name}`") };
    let places = some_of(&found.places);
    let (who, ids) = (some_of(&found.who), some_of(&found.ids.iter().map(u32::to_string).collect::<Vec<_>>()));
    let what = match (is_bpf, found.ids.len()) {
        (false, _) => format!("A filter of traffic control, {name} ({how} of {places}),"),
        (true, 1) => format!("A BPF program, {name} (id {ids}, {how} of {places}),"),
        (true, many) => format!("{many} BPF programs, {name} (ids {ids}; {how} of {places}),"),
    };
    let known = KNOWN.iter().find(|(begin, _)| name.trim_start_matches('`').starts_with(begin));
    let whose = known.map_or(String::new(), |(_, whose)| format!(" It is {whose}."));
    let summary = format!("{what} may decide about packets of {who}: not read.{whose}");
    let said = Answer::new(about, Status::Unknown, summary);
    match (&found.look, is_bpf) {
        (Some(look), true) => said.look(look.clone()),
        (Some(look), false) => {
            let place = found.places.first().map(String::as_str).unwrap_or_default();
            said.look(look.replace(
                "INTERFACE",
                &diagnosis::printable::shell_word(place.split(" of ").next().unwrap_or_default()),
            ))
        }
        (None, _) => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_attached_alike_are_one_answer_and_never_a_broken_one() {
        let seen = (1..=20).map(|id| {
            let program =
                Program { id: Some(4_000_000_000 + id), filter: Some("cil_from_contai".into()), how: "tcx ingress" };
            (program, format!("lxc{id}"), format!("pod-{id}"))
        });
        let filter = Program { id: None, filter: Some("flower".into()), how: "tc filter egress" };
        let seen = seen.chain([(filter, "ens5".into(), OWN.into())]).collect();
        let answers: Vec<Answer> = group(seen).iter().map(|(key, found)| answer(key, found)).collect();
        assert_eq!(answers.len(), 2, "{answers:#?}");
        assert!(answers.iter().all(|answer| answer.status == Status::Unknown));
        assert!(
            answers[0].summary.contains("20 BPF programs, `cil_from_contai`") && answers[0].summary.contains("Cilium")
        );
        assert_eq!(
            answers[1].look.as_deref(),
            Some("tc -s filter show dev ens5 ingress; tc -s filter show dev ens5 egress")
        );
    }

    #[test]
    fn our_own_are_not_told() {
        let ours = Program { id: Some(4_000_000_000), filter: Some("imds_ingress".into()), how: "tcx ingress" };
        assert!(group(vec![(ours, "ens5".into(), OWN.into())]).is_empty());
    }
}
