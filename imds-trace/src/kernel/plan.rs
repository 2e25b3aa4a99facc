//! Where do our programs go, and what is gone without those that cannot? Pure: what the kernel has in, lists out. On which interfaces
//! is decided in `diagnosis::way::listen`.

use super::Error;
use super::features::Features;
use super::hooks::{About, Feature, HOOKS, Hook, Weight};
use diagnosis::event::{Has, Missing, Via};

/// What is attached how, and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// How programs hang on interfaces.
    pub via: Via,
    /// Those that hang on no interface, in this order.
    pub others: Vec<&'static Hook>,
    /// Are cgroup paths read in the kernel?
    pub cgroup_paths: bool,
    /// What is not there, and what that costs.
    pub missing: Vec<Missing>,
}

/// What can be attached with these features. What is not known is tried. An error if one is lacking that is needed.
pub fn hooks(features: &Features) -> Result<Hooks, Error> {
    let lacks = |feature| matches!(features.get(feature), Some(Has::No { .. }));
    let mut missing = Vec::new();
    for (feature, has) in features.iter() {
        let Has::No { needs } = has else { continue };
        let About { weight, without, .. } = feature.about();
        let why = format!("not there (needs {needs}). {without}");
        match weight {
            Weight::Needed => return Err(Error::Lacking { what: feature.name(), why }),
            Weight::Costs => missing.push(Missing { hook: feature.name().to_owned(), why }),
            Weight::Replaced => {}
        }
    }
    let possible = |hook: &&Hook| !hook.features.iter().any(|feature| lacks(*feature));
    Ok(Hooks {
        via: if features.has(Feature::Tcx) { Via::Tcx } else { Via::Clsact },
        others: HOOKS.iter().filter(possible).collect(),
        cgroup_paths: !lacks(Feature::CgroupPaths),
        missing,
    })
}

/// Why something that was tried failed: what the kernel said, and what is known of the features behind it.
pub fn explain(features: &Features, feature: Feature, said: &str) -> String {
    let about = |feature: Feature| match features.get(feature) {
        Some(Has::No { needs }) => format!("{}: not supported (needs {needs})", feature.name()),
        Some(Has::Unknown { why }) => format!("{said}; whether this kernel has {} is not known: {why}", feature.name()),
        Some(Has::Yes) | None => said.to_owned(),
    };
    match feature {
        // That it is used at all is for want of the other.
        Feature::Clsact => format!("{}; {}", about(feature), about(Feature::Tcx)),
        feature => about(feature),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hooks::FEATURES;
    use super::*;

    fn all() -> impl Iterator<Item = Feature> {
        FEATURES.iter().map(|about| about.feature)
    }

    fn without(lacking: &[Feature]) -> Features {
        let no = || Has::No { needs: "more".to_owned() };
        all().map(|feature| (feature, if lacking.contains(&feature) { no() } else { Has::Yes })).collect()
    }

    fn missing(hooks: &Hooks) -> Vec<&str> {
        hooks.missing.iter().map(|missing| missing.hook.as_str()).collect()
    }

    #[test]
    fn a_kernel_that_has_all_gets_all() {
        let hooks = hooks(&without(&[])).unwrap();
        assert_eq!((hooks.via, hooks.others.len(), hooks.cgroup_paths), (Via::Tcx, 5, true));
        assert_eq!(hooks.missing, []);
    }

    #[test]
    fn linux_5_10_gets_filters_and_drops_without_reasons() {
        let hooks = hooks(&without(&[Feature::Tcx, Feature::DropReasons])).unwrap();
        assert_eq!((hooks.via, hooks.others.len()), (Via::Clsact, 5));
        assert_eq!(missing(&hooks), ["drop reasons"]);
        assert!(hooks.missing[0].why.starts_with("not there (needs more). Drops come without"), "{hooks:?}");
    }

    #[test]
    fn what_is_lacking_takes_its_hooks_with_it_and_says_so() {
        let others = |lacking: &[Feature]| {
            let others = hooks(&without(lacking)).unwrap().others.into_iter();
            others.map(|hook| hook.program.trim_start_matches("imds_")).collect::<Vec<_>>()
        };
        assert_eq!(others(&[Feature::KfreeSkb]), ["set_state", "connect4", "connect6", "sock_ops"]);
        assert_eq!(others(&[Feature::SetState]), ["kfree_skb", "connect4", "connect6", "sock_ops"]);
        assert_eq!(others(&[Feature::RawTracepoints]), ["connect4", "connect6", "sock_ops"]);
        assert_eq!(others(&[Feature::Connect]), ["kfree_skb", "set_state"]);
        assert_eq!(others(&[Feature::FunctionNames]).len(), 5);
        let away = [Feature::Connect, Feature::CgroupPaths, Feature::FunctionNames];
        let hooks = hooks(&without(&away)).unwrap();
        assert_eq!(missing(&hooks), ["function names", "cgroup connect", "cgroup paths"]);
        assert!(!hooks.cgroup_paths);
    }

    #[test]
    fn without_what_is_needed_nothing_is_attached() {
        for feature in all().filter(|feature| feature.about().weight == Weight::Needed) {
            let sentence = hooks(&without(&[feature])).unwrap_err().to_string();
            assert!(sentence.contains(feature.name()) && sentence.contains("needs more"), "{sentence}");
        }
    }

    #[test]
    fn what_is_not_known_is_tried() {
        let unknown = Has::Unknown { why: "no list of modules".to_owned() };
        let features: Features = all()
            .map(|feature| (feature, unknown.clone()))
            .chain([(Feature::Tcx, Has::No { needs: "Linux 6.6".to_owned() })])
            .collect();
        let hooks = hooks(&features).unwrap();
        assert_eq!((hooks.via, hooks.others.len(), hooks.missing.len()), (Via::Clsact, 5, 0));
        assert_eq!(
            explain(&features, Feature::Clsact, "Invalid argument"),
            "Invalid argument; whether this kernel has clsact is not known: no list of modules; tcx: not supported (needs \
             Linux 6.6)"
        );
        assert_eq!(explain(&features, Feature::Tcx, "Invalid argument"), "tcx: not supported (needs Linux 6.6)");
        assert_eq!(explain(&without(&[]), Feature::KfreeSkb, "Operation not permitted"), "Operation not permitted");
    }
}
