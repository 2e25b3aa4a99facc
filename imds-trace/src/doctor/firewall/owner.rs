//! Who set a rule up? By its chain, table and comment: what a tool made, that tool changes, and nobody deletes behind its back.

use super::rules::{Chain, Rule, What};

/// Somebody who sets rules up, and how to have others of him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: &'static str,
    /// What to do, in its own words.
    pub advice: &'static str,
}

const DOCKER: Owner = Owner {
    name: "Docker",
    advice: "it keeps networks apart and guards published ports: leave it, and look at the networks with `docker network inspect`; \
             rules of one's own belong into DOCKER-USER",
};
const KUBE_PROXY: Owner = Owner {
    name: "Kubernetes (kube-proxy, kubelet)",
    advice: "it comes back when deleted: look at `kubectl -n kube-system get configmap kube-proxy -o yaml` and at the services",
};
const KUBE_ROUTER: Owner = Owner {
    name: "kube-router",
    advice: "a NetworkPolicy decides: look at `kubectl get networkpolicy -A`, and allow egress to 169.254.169.254/32, TCP port 80, \
             there if the pod is to reach IMDS",
};
const CALICO: Owner = Owner {
    name: "Calico",
    advice: "a policy decides: look at `kubectl get networkpolicy -A` and `calicoctl get globalnetworkpolicy`",
};
const CILIUM: Owner = Owner {
    name: "Cilium",
    advice: "a policy decides: look at `kubectl get cnp,ccnp -A` and `cilium monitor --type drop`",
};
const VPC_CNI: Owner = Owner {
    name: "the Amazon VPC CNI",
    advice: "its settings decide (`kubectl -n kube-system describe daemonset aws-node`)",
};
const CNI: Owner = Owner { name: "a CNI plugin", advice: "its network's file below /etc/cni/net.d decides" };
const NETAVARK: Owner = Owner { name: "podman (netavark)", advice: "look at `podman network inspect`" };
const FIREWALLD: Owner = Owner {
    name: "firewalld",
    advice: "look at `firewall-cmd --list-all-zones` and `firewall-cmd --list-all-policies`, and change zone or policy there",
};
const UFW: Owner = Owner { name: "ufw", advice: "look at `ufw status numbered`, and allow it with `ufw route allow`" };
const EKSCTL: Owner = Owner {
    name: "eksctl's disablePodIMDS (or a script like it)",
    advice: "it keeps pods off the node's role on purpose: give the pod a role of its own (IRSA, EKS Pod Identity), or make the \
             node group with disablePodIMDS: false",
};
const ISTIO: Owner = Owner {
    name: "Istio",
    advice: "exclude IMDS with the annotation traffic.sidecar.istio.io/excludeOutboundIPRanges: 169.254.169.254/32",
};
const LIBVIRT: Owner = Owner { name: "libvirt", advice: "look at `virsh net-dumpxml`" };
const TAILSCALE: Owner = Owner { name: "Tailscale", advice: "look at `tailscale debug prefs`" };
const FAIL2BAN: Owner = Owner { name: "fail2ban", advice: "look at `fail2ban-client status`" };
const CROWDSEC: Owner = Owner { name: "CrowdSec", advice: "look at `cscli decisions list`" };
const FLANNEL: Owner = Owner { name: "flannel", advice: "its network's settings decide" };
const WEAVE: Owner =
    Owner { name: "Weave Net", advice: "a NetworkPolicy decides: look at `kubectl get networkpolicy -A`" };
const ANTREA: Owner = Owner { name: "Antrea", advice: "a policy decides: look at `antctl get networkpolicy`" };

/// Beginnings of chains' names; the first that fits.
const CHAINS: &[(&str, Owner)] = &[
    ("DOCKER", DOCKER),
    ("KUBE-ROUTER", KUBE_ROUTER),
    ("KUBE-POD-FW", KUBE_ROUTER),
    ("KUBE-NWPLCY", KUBE_ROUTER),
    ("KUBE-", KUBE_PROXY),
    ("cali-", CALICO),
    ("felix-", CALICO),
    ("CILIUM_", CILIUM),
    ("OLD_CILIUM_", CILIUM),
    ("AWS-", VPC_CNI),
    ("NETAVARK", NETAVARK),
    ("CNI-", CNI),
    ("FLANNEL", FLANNEL),
    ("WEAVE", WEAVE),
    ("ANTREA", ANTREA),
    ("FWDI_", FIREWALLD),
    ("FWDO_", FIREWALLD),
    ("FWD_", FIREWALLD),
    ("IN_", FIREWALLD),
    ("PRE_", FIREWALLD),
    ("POST_", FIREWALLD),
    ("ufw", UFW),
    ("ISTIO", ISTIO),
    ("LIBVIRT", LIBVIRT),
    ("ts-", TAILSCALE),
    ("f2b-", FAIL2BAN),
    ("CROWDSEC", CROWDSEC),
];

/// Parts of nftables' tables' names.
const TABLES: &[(&str, Owner)] = &[
    ("docker", DOCKER),
    ("kube-proxy", KUBE_PROXY),
    ("kube-router", KUBE_ROUTER),
    ("calico", CALICO),
    ("cilium", CILIUM),
    ("netavark", NETAVARK),
    ("firewalld", FIREWALLD),
    ("libvirt", LIBVIRT),
    ("f2b", FAIL2BAN),
    ("crowdsec", CROWDSEC),
    ("flannel", FLANNEL),
    ("antrea", ANTREA),
    ("cni_", CNI),
    ("aws", VPC_CNI),
];

/// What tools write into a rule's comment.
const COMMENTS: &[(&str, Owner)] = &[
    ("cali:", CALICO),
    ("cilium", CILIUM),
    ("kube-router", KUBE_ROUTER),
    ("kubernetes", KUBE_PROXY),
    ("AWS, ", VPC_CNI),
    ("AWS ", VPC_CNI),
    ("flanneld", FLANNEL),
    ("firewalld", FIREWALLD),
    ("istio", ISTIO),
    ("name: \\\"", CNI),
];

/// Who set up a rule of this chain, or its policy; `None`: nobody who is known, so perhaps a person.
pub fn of(chain: &Chain, rule: Option<&Rule>) -> Option<Owner> {
    if chain.name == "DOCKER-USER" {
        return None;
    }
    let by_chain = CHAINS.iter().find(|(begin, _)| chain.name.starts_with(begin));
    let by_table = TABLES.iter().find(|(part, _)| chain.tool == "nft" && chain.table.contains(part));
    if let Some((_, owner)) = by_chain.or(by_table) {
        return Some(*owner);
    }
    let Some(rule) = rule else {
        // Whoever turned forwarding on with an engine has this policy of the engine.
        return None;
    };
    if let Some(begin) = rule.text.find("comment ") {
        let comment = &rule.text[begin..];
        if let Some((_, owner)) = COMMENTS.iter().find(|(part, _)| comment.contains(part)) {
            return Some(*owner);
        }
    }
    // Docker 28: published ports are reached by their own bridge only.
    if chain.table == "raw" && chain.name == "PREROUTING" && rule.conditions.iter().any(|condition| condition.negated) {
        return Some(DOCKER);
    }
    let pods = |condition: &super::rules::Condition| match &condition.what {
        What::From(names) if !condition.negated => names.iter().any(|name| matches!(name.as_str(), "eni+" | "eni*")),
        _ => false,
    };
    rule.conditions.iter().any(pods).then_some(EKSCTL)
}
