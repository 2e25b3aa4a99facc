//! Who set a rule up? By its chain, table and comment: what a tool made, that tool changes, and nobody deletes behind its back.

use std::net::IpAddr;

use super::rules::{Chain, Condition, Rule, Verdict, What};

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
const FIREWALLD_DIRECT: Owner = Owner {
    name: "firewalld",
    advice: "it is one of its direct rules: look at `firewall-cmd --permanent --direct --get-all-rules`, and change it there",
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
const PROXMOX: Owner = Owner {
    name: "Proxmox VE's firewall",
    advice: "look at `pve-firewall compile`, and change it in the firewall's files",
};
const NIXOS: Owner = Owner { name: "NixOS", advice: "networking.firewall in its configuration decides" };
const SHOREWALL: Owner = Owner { name: "Shorewall", advice: "its files policy and rules below /etc/shorewall decide" };
const CSF: Owner =
    Owner { name: "csf", advice: "look at `csf -l`, and change /etc/csf/csf.conf, csf.allow or csf.deny" };
const NETWORK_MANAGER: Owner = Owner {
    name: "NetworkManager",
    advice: "it shares a connection (ipv4.method shared): look at `nmcli connection show --active`",
};
const OPENWRT: Owner = Owner { name: "OpenWrt's firewall", advice: "look at `uci show firewall`" };
const OVN_KUBERNETES: Owner =
    Owner { name: "OVN-Kubernetes", advice: "look at `kubectl get networkpolicy,egressfirewall -A`" };
const RANCHER: Owner = Owner { name: "Rancher", advice: "its agent sets it up again: its network's settings decide" };
const PODMAN: Owner = Owner { name: "podman", advice: "look at `podman network inspect`" };
const INCUS: Owner = Owner { name: "Incus", advice: "look at `incus network show` and `incus network acl list`" };
const LXD: Owner = Owner { name: "LXD", advice: "look at `lxc network show` and `lxc network acl list`" };
const KIAM: Owner = Owner { name: "kiam", advice: "its agent's settings decide" };
const KUBE2IAM: Owner = Owner { name: "kube2iam", advice: "its daemon set's settings decide" };

/// Beginnings of chains' names; the first that fits.
const CHAINS: &[(&str, Owner)] = &[
    ("DOCKER-ISOLATION", DOCKER),
    ("DOCKER-FORWARD", DOCKER),
    ("DOCKER-BRIDGE", DOCKER),
    ("DOCKER-CT", DOCKER),
    ("DOCKER-INTERNAL", DOCKER),
    ("DOCKER-INGRESS", DOCKER),
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
    ("FORWARD_direct", FIREWALLD_DIRECT),
    ("INPUT_direct", FIREWALLD_DIRECT),
    ("OUTPUT_direct", FIREWALLD_DIRECT),
    ("PREROUTING_direct", FIREWALLD_DIRECT),
    ("POSTROUTING_direct", FIREWALLD_DIRECT),
    ("ufw", UFW),
    ("PVEFW-", PROXMOX),
    ("nixos-fw", NIXOS),
    ("DENYIN", CSF),
    ("DENYOUT", CSF),
    ("ALLOWIN", CSF),
    ("ALLOWOUT", CSF),
    ("LOCALINPUT", CSF),
    ("LOCALOUTPUT", CSF),
    ("LOGDROPIN", CSF),
    ("LOGDROPOUT", CSF),
    ("SMTPOUTPUT", CSF),
    ("nm-sh-", NETWORK_MANAGER),
    ("OVN-KUBE-", OVN_KUBERNETES),
    ("CATTLE_", RANCHER),
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
    ("nixos-fw", NIXOS),
    ("proxmox-firewall", PROXMOX),
    ("nm-shared", NETWORK_MANAGER),
    ("ovn-kubernetes", OVN_KUBERNETES),
    ("incus", INCUS),
    ("lxd", LXD),
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
    ("generated for Incus ", INCUS),
    ("generated for LXD ", LXD),
];

/// What tools write as the only word of a comment. A person's sentence may have the same word in it.
const WORDS: &[(&str, Owner)] = &[
    ("weave", WEAVE),
    ("libvirt", LIBVIRT),
    ("podman", PODMAN),
    ("ufw", UFW),
    ("incus", INCUS),
    ("lxd", LXD),
    ("portmap", CNI),
    ("tailscale", TAILSCALE),
    ("kiam", KIAM),
    ("kube2iam", KUBE2IAM),
];

/// May a container have this address? IMDS's is one that nobody routes, and so are none of theirs.
fn is_routed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => address.segments()[..2] != [0xfd00, 0x0ec2],
    }
}

/// Does a name begin so, as a word of its own?
fn begins(name: &str, begin: &str) -> bool {
    let separated = begin.ends_with(['-', '_']);
    name.strip_prefix(begin).is_some_and(|rest| separated || rest.is_empty() || rest.starts_with(['-', '_']))
}

/// Has a name this word?
fn has_word(name: &str, word: &str) -> bool {
    name.match_indices(word).any(|(at, _)| {
        let (before, behind) = (&name[..at], &name[at + word.len()..]);
        !before.ends_with(char::is_alphabetic) && (word.ends_with('_') || !behind.starts_with(char::is_alphabetic))
    })
}

/// Of a chain with one of firewalld's shorter beginnings: is it a zone's or a policy's? These have parts, to which the chain leads.
fn is_zones(chain: &Chain) -> bool {
    const SHORT: [&str; 4] = ["IN_", "FWD_", "PRE_", "POST_"];
    const PARTS: [&str; 5] = ["_pre", "_log", "_deny", "_allow", "_post"];
    let leads = |rule: &Rule| matches!(&rule.verdict, Verdict::Jump(to) if PARTS.iter().any(|part| *to == format!("{}{part}", chain.name)));
    !SHORT.iter().any(|begin| chain.name.starts_with(begin))
        || PARTS.iter().any(|part| chain.name.ends_with(part))
        || chain.rules.iter().any(leads)
}

/// Whose is a chain whose name is made of the names of zones? `fw2net` and `loc-net` are Shorewall's, `zone_lan_forward` is OpenWrt's.
fn of_zones(name: &str) -> Option<Owner> {
    const ZONES: [&str; 4] = ["fw", "net", "loc", "dmz"];
    const ENDS: [&str; 5] = ["_forward", "_input", "_output", "_prerouting", "_postrouting"];
    let pair = |separator: char| {
        name.split_once(separator).is_some_and(|(from, to)| from != to && ZONES.contains(&from) && ZONES.contains(&to))
    };
    if pair('-') || pair('2') {
        return Some(SHOREWALL);
    }
    let is_zone = |rest: &str| rest.contains("_dest_") || ENDS.iter().any(|end| rest.ends_with(end));
    name.strip_prefix("zone_").filter(|rest| is_zone(rest)).map(|_| OPENWRT)
}

/// A rule's comment, up to a quotation mark within it.
fn comment(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("--comment ").or_else(|| text.split_once(" comment "))?;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(' ').next(),
    }
}

/// Who set up a rule of this chain, or its policy; `None`: nobody who is known, so perhaps a person.
pub fn of(chain: &Chain, rule: Option<&Rule>) -> Option<Owner> {
    match chain.name.as_str() {
        "DOCKER-USER" => return None,
        "DOCKER" => return Some(DOCKER),
        _ => {}
    }
    let by_chain = CHAINS.iter().find(|(begin, _)| begins(&chain.name, begin) && is_zones(chain));
    let by_table = TABLES.iter().find(|(part, _)| chain.tool == "nft" && has_word(&chain.table, part));
    if let Some((_, owner)) = by_chain.or(by_table) {
        return Some(*owner);
    }
    if let Some(owner) = of_zones(&chain.name) {
        return Some(owner);
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
    let word = comment(&rule.text).unwrap_or_default().trim_end_matches(':');
    if let Some((_, owner)) = WORDS.iter().find(|(known, _)| word.eq_ignore_ascii_case(known)) {
        return Some(*owner);
    }
    // Docker 28: containers' addresses are reached by their own bridge only.
    let guards = |condition: &Condition| match &condition.what {
        What::Destination(ranges) => {
            !condition.negated && ranges.iter().all(|(first, last)| first == last && is_routed(*first))
        }
        _ => false,
    };
    let elsewhere = |condition: &Condition| condition.negated && matches!(condition.what, What::From(_));
    if chain.table == "raw"
        && chain.name == "PREROUTING"
        && rule.conditions.iter().any(guards)
        && rule.conditions.iter().any(elsewhere)
    {
        return Some(DOCKER);
    }
    if !matches!(rule.verdict, Verdict::Drop | Verdict::Reject) {
        // An agent for pods' credentials redirects by the same interfaces.
        return None;
    }
    let pods = |condition: &Condition| match &condition.what {
        What::From(names) if !condition.negated => names.iter().any(|name| matches!(name.as_str(), "eni+" | "eni*")),
        _ => false,
    };
    rule.conditions.iter().any(pods).then_some(EKSCTL)
}

#[cfg(test)]
mod tests {
    use super::super::iptables;
    use super::*;

    /// Whose is a rule of this chain that drops requests to IMDS?
    fn owner(chain: &str, comment: &str) -> Option<&'static str> {
        let text = format!("*filter\n:{chain} - [0:0]\n-A {chain} -d 169.254.169.254/32{comment} -j DROP\nCOMMIT\n");
        let chains = iptables::read(&text, "iptables");
        let chain = chains.iter().find(|found| !found.rules.is_empty()).expect("a chain with a rule");
        of(chain, chain.rules.first()).map(|owner| owner.name)
    }

    #[test]
    fn chains_of_other_managers_of_rules_are_theirs() {
        for (chain, name) in [
            ("FORWARD_direct", "firewalld"),
            ("INPUT_direct", "firewalld"),
            ("PVEFW-FORWARD", "Proxmox VE's firewall"),
            ("nixos-fw-log-refuse", "NixOS"),
            ("loc-net", "Shorewall"),
            ("fw2net", "Shorewall"),
            ("DENYOUT", "csf"),
            ("nm-sh-fw-wlan0", "NetworkManager"),
            ("zone_lan_forward", "OpenWrt's firewall"),
            ("OVN-KUBE-EGRESS-IP-MULTI-NIC", "OVN-Kubernetes"),
            ("CATTLE_FORWARD", "Rancher"),
        ] {
            assert_eq!(owner(chain, ""), Some(name), "{chain}");
        }
        for own in ["FORWARD", "DENYOUTSIDE", "net-net", "loc-nets", "zone_a", "FORWARD_directly"] {
            assert_eq!(owner(own, ""), None, "{own}");
        }
    }

    #[test]
    fn a_comment_of_one_word_names_a_tool_and_a_sentence_does_not() {
        let of = |comment: &str| owner("FORWARD", &format!(" -m comment --comment {comment}"));
        for (comment, name) in [
            ("weave", "Weave Net"),
            ("libvirt", "libvirt"),
            ("podman", "podman"),
            ("ufw", "ufw"),
            ("portmap", "a CNI plugin"),
            ("tailscale", "Tailscale"),
            ("kiam", "kiam"),
            ("\"kube2iam\"", "kube2iam"),
            ("\"generated for Incus network incusbr0\"", "Incus"),
        ] {
            assert_eq!(of(comment), Some(name), "{comment}");
        }
        assert_eq!(of("\"keep podman off IMDS\""), None);
        assert_eq!(of("weaver"), None);
    }
}
