//! Do files need each other in a circle? Then none of them can be read, tried or changed alone.
//!
//! Looked at are the modules that stand beside each other in one module, each with all that is below it: so a circle between two
//! rooms is found whichever of their files closes it. A module may use what is above and below it.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Named;

/// A file of a crate, its module's path from the crate's root.
pub struct Module {
    /// As seen from the workspace's root.
    pub file: String,
    pub path: Vec<String>,
    pub names: Vec<Named>,
}

/// A module below the crate's folder; empty for the root. `None` for test code, which may name anything.
pub fn module(below: &str) -> Option<Vec<String>> {
    let path = below.trim_end_matches(".rs").trim_end_matches("/mod");
    let parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    if parts.iter().any(|part| part == "tests") {
        return None;
    }
    Some(if matches!(path, "lib" | "main" | "mod") { Vec::new() } else { parts })
}

/// The circles among the files of one crate, a sentence each, which names every step.
pub fn check(modules: &[Module]) -> Vec<String> {
    let mut beside: BTreeMap<&[String], Graph<'_>> = BTreeMap::new();
    for module in modules {
        for named in &module.names {
            let Some(target) = target(module, named, modules) else { continue };
            let common = module.path.iter().zip(target).take_while(|(one, other)| one == other).count();
            if common == module.path.len() || common == target.len() {
                continue; // above or below
            }
            let graph = beside.entry(&target[..common]).or_default();
            let step = format!("{}:{} names {}", module.file, named.line, named.path.join("::"));
            graph.entry(&module.path[common]).or_default().entry(&target[common]).or_insert(step);
        }
    }
    beside.values().filter_map(circle).collect()
}

/// Who names whom, and where first.
type Graph<'a> = BTreeMap<&'a str, BTreeMap<&'a str, String>>;

/// The module of a file that a path leads to.
fn target<'a>(module: &Module, named: &Named, modules: &'a [Module]) -> Option<&'a [String]> {
    let here = || module.path.iter().chain(&named.within).cloned();
    let ups = named.path.iter().take_while(|part| *part == "super").count();
    let mut absolute: Vec<String> = match named.path[0].as_str() {
        "crate" => Vec::new(),
        "self" => here().collect(),
        "super" => here().take((module.path.len() + named.within.len()).saturating_sub(ups)).collect(),
        _ => return None,
    };
    absolute.extend(named.path.iter().skip(ups.max(1)).cloned());
    let leads = |module: &&Module| absolute.starts_with(&module.path);
    modules.iter().filter(leads).max_by_key(|module| module.path.len()).map(|module| module.path.as_slice())
}

/// The shortest circle, if there is one.
fn circle(graph: &Graph<'_>) -> Option<String> {
    let shortest = graph.keys().filter_map(|start| from(graph, start)).min_by_key(Vec::len)?;
    let mut steps = Vec::new();
    for (number, name) in shortest.iter().enumerate() {
        let next = shortest[(number + 1) % shortest.len()];
        steps.push(graph[name][next].as_str());
    }
    let names: Vec<&str> = shortest.iter().copied().chain(shortest.first().copied()).collect();
    Some(format!("a circle, {}: move what both need to a file of its own. {}", names.join(" -> "), steps.join("; ")))
}

/// The shortest way from a module back to itself.
fn from<'a>(graph: &Graph<'a>, start: &&'a str) -> Option<Vec<&'a str>> {
    let mut ways: Vec<Vec<&'a str>> = vec![vec![*start]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut further = Vec::new();
        for way in ways {
            for next in way.last().and_then(|last| graph.get(last)).into_iter().flat_map(BTreeMap::keys) {
                if next == start {
                    return Some(way);
                }
                if seen.insert(*next) {
                    further.push(way.iter().copied().chain([*next]).collect());
                }
            }
        }
        ways = further;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::source;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let module = |(below, text): &(&str, &str)| {
            let names = source::read(text).unwrap().paths;
            Module { file: (*below).to_owned(), path: module(below).unwrap(), names }
        };
        check(&files.iter().map(module).collect::<Vec<_>>())
    }

    #[test]
    fn two_files_that_need_each_other_are_a_circle_that_is_told_whole() {
        let wrong = circles(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "\nuse crate::b::B;"),
            ("b.rs", "use super::c;"),
            ("c.rs", "fn f() { crate::a::g() }"),
        ]);
        assert_eq!(
            wrong,
            ["a circle, a -> b -> c -> a: move what both need to a file of its own. a.rs:2 names crate::b::B; \
             b.rs:1 names super::c; c.rs:1 names crate::a::g"]
        );
    }

    #[test]
    fn a_circle_between_rooms_may_be_closed_by_any_of_their_files() {
        let wrong = circles(&[
            ("lib.rs", ""),
            ("a/mod.rs", "mod inner;"),
            ("a/inner.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::A;"),
        ]);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
    }

    #[test]
    fn a_module_may_use_what_is_above_and_below_it() {
        let files = [
            ("lib.rs", "use crate::a::A;"),
            ("a.rs", "use self::inner::X; mod deep { use super::inner::X; }"),
            ("a/inner.rs", "use super::Y; use crate::lib_thing; use super::beside::Z;"),
            ("a/beside.rs", "use crate::a::Y;"),
        ];
        assert_eq!(circles(&files), Vec::<String>::new());
    }
}
