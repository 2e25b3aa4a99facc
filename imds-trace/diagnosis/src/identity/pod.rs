//! Which pod is a container in? What the host's own word on it is, and what a runtime's files or an engine's labels add.
//!
//! The uid in the cgroup path is the kubelet's word. A name counts only beside the same uid, or where no uid contradicts it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::net::bounded;
use crate::secret::mask;

/// Longest name of a pod: a DNS subdomain name, RFC 1123.
const MAX_NAME: usize = 253;
/// Longest id that is kept: 32 bytes in hexadecimal digits.
const MAX_ID: usize = 64;
/// Letters that Kubernetes makes endings of names from: `rand.SafeEncodeString` of k8s.io/apimachinery.
const SAFE: &str = "bcdfghjklmnpqrstvwxz2456789";
/// How many of them end the name of a pod.
const ENDING: usize = 5;
/// Labels that cri-dockerd sets.
const LABELS: &str = "io.kubernetes.";

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pod {
    /// Kubernetes' uid, podman's id.
    pub uid: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its Kubernetes namespace.
    pub namespace: Option<String>,
    /// The container that holds its network.
    pub sandbox: Option<String>,
}

impl Pod {
    /// Of which only the uid is known.
    pub fn of_uid(uid: &str) -> Self {
        Self { uid: Some(uid.to_owned()), ..Self::default() }
    }

    /// Is it known which one it is?
    pub fn is_known(&self) -> bool {
        self.uid.is_some() || self.name.is_some()
    }

    /// With what a source says, bounded and without secrets; `None` if that is nothing.
    pub fn said(uid: Option<&str>, name: Option<&str>, namespace: Option<&str>, sandbox: Option<&str>) -> Option<Self> {
        let kept = |text: Option<&str>, most| {
            text.map(str::trim).filter(|text| !text.is_empty()).map(|text| bounded(&mask(text), most).to_owned())
        };
        let pod = Self {
            uid: kept(uid, MAX_ID),
            name: kept(name, MAX_NAME),
            namespace: kept(namespace, MAX_NAME),
            sandbox: kept(sandbox, MAX_ID),
        };
        (pod != Self::default()).then_some(pod)
    }

    /// What labels of cri-dockerd say. Whoever starts a container chooses them: to be taken beside the same uid only.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        let said = |name: &str| labels.get(&format!("{LABELS}{name}")).map(String::as_str);
        let uid = said("pod.uid")?;
        Self::said(Some(uid), said("pod.name"), said("pod.namespace"), said("sandbox.id"))
    }

    /// This with what else is known of it; without that where the uids are not the same.
    pub fn with(self, other: Option<&Self>) -> Self {
        let Some(other) = other else { return self };
        if self.uid.is_some() && other.uid.is_some() && self.uid != other.uid {
            return self;
        }
        let Self { uid, name, namespace, sandbox } = self;
        Self {
            uid: uid.or_else(|| other.uid.clone()),
            name: name.or_else(|| other.name.clone()),
            namespace: namespace.or_else(|| other.namespace.clone()),
            sandbox: sandbox.or_else(|| other.sandbox.clone()),
        }
    }

    /// Is this its name, with or without that of its namespace before it?
    pub fn is_called(&self, wanted: &str) -> bool {
        let (namespace, name) =
            wanted.rsplit_once('/').map_or((None, wanted), |(namespace, name)| (Some(namespace), name));
        self.name.as_deref() == Some(name) && (namespace.is_none() || namespace == self.namespace.as_deref())
    }

    /// What made it, by the pattern of its name: `web` of `web-7d4b9c6f5d-x2k4p` (Deployment), of `web-x2k4p` (DaemonSet, Job) and of
    /// `web-0` (StatefulSet); its name where that has no such ending.
    pub fn workload(&self) -> Option<&str> {
        let name = self.name.as_deref()?;
        let Some((begin, end)) = name.rsplit_once('-').filter(|(begin, _)| !begin.is_empty()) else {
            return Some(name);
        };
        let is_safe = |text: &str| text.chars().all(|letter| SAFE.contains(letter));
        if !end.is_empty() && end.len() <= 4 && end.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(begin);
        }
        if end.len() != ENDING || !is_safe(end) {
            return Some(name);
        }
        // A ReplicaSet's hash: a number of 32 bits in these letters.
        let set = begin.rsplit_once('-').filter(|(begin, hash)| {
            !begin.is_empty()
                && (6..=10).contains(&hash.len())
                && is_safe(hash)
                && hash.bytes().any(|byte| byte.is_ascii_digit())
        });
        Some(set.map_or(begin, |(begin, _)| begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_made_a_pod_is_told_by_its_name() {
        for (name, workload) in [
            ("web-7d4b9c6f5d-x2k4p", "web"),
            ("my-web-7d4b9c6f5d-x2k4p", "my-web"),
            ("aws-node-x2k4p", "aws-node"),
            ("db-0", "db"),
            ("db-12", "db"),
            ("web", "web"),
            ("kube-proxy-config", "kube-proxy-config"),
            ("-x2k4p", "-x2k4p"),
            ("", ""),
        ] {
            let pod = Pod { name: Some(name.into()), ..Pod::default() };
            assert_eq!(pod.workload(), Some(workload), "{name}");
        }
    }

    #[test]
    fn a_name_counts_only_beside_the_same_uid() {
        let named = Pod::said(Some("a"), Some("web"), Some("shop"), None).unwrap();
        assert_eq!(Pod::of_uid("a").with(Some(&named)), named);
        assert_eq!(Pod::of_uid("b").with(Some(&named)), Pod::of_uid("b"));
        let without = Pod { uid: None, ..named.clone() };
        assert_eq!(Pod::of_uid("a").with(Some(&without)), named);
        assert_eq!(Pod::of_uid("b").with(None), Pod::of_uid("b"));
    }

    #[test]
    fn what_is_said_is_bounded_and_nothing_is_no_pod() {
        let long = "é".repeat(100_000);
        let pod = Pod::said(Some(&long), Some(&long), Some(&long), Some(&long)).unwrap();
        assert!(pod.uid.unwrap().len() <= MAX_ID && pod.name.unwrap().len() <= MAX_NAME);
        assert_eq!(Pod::said(Some(" "), None, Some(""), None), None);
    }
}
