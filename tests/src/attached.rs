//! Which BPF programs does this machine hold now, and what hangs on the runner's interfaces?

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use aya::programs::tc::TcAttachType;
use aya::programs::{SchedClassifier, loaded_programs};

use crate::netns::Namespace;

/// The kernel keeps 15 characters of a program's name (BPF_OBJ_NAME_LEN is 16, with the NUL).
const NAME_LENGTH: usize = 15;

/// The names under which the tracer's programs are loaded.
pub const OURS: [&str; 4] = ["imds_ingress", "imds_egress", "imds_kfree_skb", "imds_set_state"];

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name, at most 15 characters.
    pub name: String,
    /// Instructions that the verifier followed; not told before Linux 5.16.
    pub verified: Option<u32>,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface.
    pub interface: String,
    /// `tcx ingress`, `tcx egress`, `clsact ingress` or `clsact egress`.
    pub place: String,
    /// The program's name.
    pub program: String,
}

/// Every BPF program on the machine, whoever loaded it.
pub fn loaded() -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for info in loaded_programs() {
        // A program may go between being listed and being asked about.
        let Ok(info) = info else { continue };
        let name = info.name_as_str().unwrap_or_default().to_owned();
        programs.push(Program { id: info.id(), name, verified: info.verified_instruction_count() });
    }
    Ok(programs)
}

/// The tracer's own programs among them: empty when it is gone and left nothing.
pub fn loaded_of_ours() -> Result<Vec<Program>> {
    let mut programs = loaded()?;
    programs.retain(|program| OURS.iter().any(|name| program.name == name[..name.len().min(NAME_LENGTH)]));
    Ok(programs)
}

/// The numbers of the programs that a process holds, by themselves or by a link. The kernel does not give a number away
/// again soon, so these tell one tracer's programs from another's.
pub fn held_by(pid: u32) -> Result<BTreeSet<u32>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.strip_prefix("prog_id:"));
        numbers.extend(lines.filter_map(|number| number.trim().parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// What hangs on the interfaces of a namespace, as tcx programs or clsact filters, whosever they are.
pub fn attached(namespace: &Namespace) -> Result<Vec<Attached>> {
    let mut found = Vec::new();
    for interface in interfaces(namespace)? {
        for (side, attach_type) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            let programs = namespace.run_inside(|| SchedClassifier::query_tcx(&interface, attach_type))?;
            // Before Linux 6.6 there is no tcx to ask about: then there is nothing there either.
            for info in programs.map(|(_, programs)| programs).unwrap_or_default() {
                let program = info.name_as_str().unwrap_or_default().to_owned();
                found.push(Attached { interface: interface.clone(), place: format!("tcx {side}"), program });
            }
            let filters = namespace.run("tc", &["filter", "show", "dev", &interface, side]).unwrap_or_default();
            for program in filters.lines().filter_map(name_of_filter) {
                let interface = interface.clone();
                found.push(Attached { interface, place: format!("clsact {side}"), program });
            }
        }
    }
    Ok(found)
}

/// Leaves only the interfaces of a namespace without a tcx program on both sides.
pub fn keep_bare(namespace: &Namespace, interfaces: &mut Vec<String>) -> Result<()> {
    let has = |interface: &String, side| {
        SchedClassifier::query_tcx(interface, side).is_ok_and(|(_, programs)| !programs.is_empty())
    };
    namespace.run_inside(|| {
        interfaces.retain(|interface| !has(interface, TcAttachType::Ingress) || !has(interface, TcAttachType::Egress));
    })
}

/// `filter protocol all pref 49152 bpf chain 0 handle 0x1 NAME direct-action …`
fn name_of_filter(line: &str) -> Option<String> {
    let (_, behind) = line.split_once(" bpf ")?.1.split_once("handle ")?;
    behind.split_whitespace().nth(1).map(str::to_owned)
}

/// The interfaces of a namespace that have a clsact qdisc, whosever it is.
pub fn clsact(namespace: &Namespace) -> Result<BTreeSet<String>> {
    let text = namespace.run("tc", &["qdisc", "show"])?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("qdisc clsact "));
    Ok(lines.filter_map(|line| Some(line.split_once(" dev ")?.1.split_whitespace().next()?.to_owned())).collect())
}

/// Has this kernel links on interfaces, which go with their process? Else there are filters, which stay.
pub fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// The interfaces of a namespace by name.
pub fn interfaces(namespace: &Namespace) -> Result<Vec<String>> {
    let text = namespace.proc_net("dev").context("list interfaces")?;
    Ok(text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}
