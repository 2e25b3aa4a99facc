//! Which labels of a container are kept? Few, short ones without secrets; those that tell of a CI job before others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use diagnosis::identity::job;
use diagnosis::net::bounded;
use diagnosis::secret;

/// Labels kept of one container, and bytes of each; whoever starts a container chooses them.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 512;

/// Labels as they are kept: bounded in number and length, secrets masked. Those that tell of a job stay when there are too many.
pub fn labels(labels: HashMap<String, String>) -> Arc<BTreeMap<String, String>> {
    let mut named: Vec<_> = labels.into_iter().collect();
    named.sort_by_cached_key(|(name, _)| (!job::reads(name), name.clone()));
    named.truncate(MAX_LABELS);
    let kept = |text: &str| bounded(text, MAX_LABEL).to_owned();
    let pairs = named.iter().map(|(name, value)| (kept(&secret::mask(name)), kept(&secret::mask_value(name, value))));
    Arc::new(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_masked_and_those_of_a_job_stay() {
        let mut many: HashMap<_, _> = (0..1_000).map(|n| (format!("a{n}"), "x".repeat(100_000))).collect();
        many.insert("com.gitlab.gitlab-runner.job.id".into(), "4711".into());
        many.insert("com.example.registry-password".into(), "hunter2".into());
        let few = HashMap::from([("registry-password".to_owned(), "hunter2".to_owned())]);
        let kept = labels(many);
        assert_eq!(kept.len(), MAX_LABELS);
        assert_eq!(kept.get("com.gitlab.gitlab-runner.job.id").map(String::as_str), Some("4711"));
        assert!(kept.values().all(|value| value.len() <= MAX_LABEL));
        assert_eq!(labels(few).get("registry-password").map(String::as_str), Some("***"));
    }
}
