//! How is the host's kernel set at an interface, and what does its reverse-path filter make of a packet there?

use crate::interfaces::snapshot::Way;

/// A setting of an interface, or of `all`, in the host's namespace; `None` if it cannot be read.
pub fn ipv4_setting(interface: &str, key: &str) -> Option<u8> {
    setting(false, interface, key)
}

/// The same for IPv4 or IPv6.
pub fn setting(v6: bool, interface: &str, key: &str) -> Option<u8> {
    let family = if v6 { "ipv6" } else { "ipv4" };
    std::fs::read_to_string(format!("/proc/sys/net/{family}/conf/{interface}/{key}")).ok()?.trim().parse().ok()
}

/// Is reverse-path filtering strict at an interface? The greater of both values is used.
pub fn is_strict(interface: &str) -> bool {
    ["all", interface].iter().filter_map(|name| ipv4_setting(name, "rp_filter")).max() == Some(1)
}

/// A kernel that was asked about a packet that its filter drops says EXDEV or, where it gives drops a reason (6.14 and later), EINVAL,
/// as for a blackhole. Where the filter is `strict`, and no route or rule refuses the packet, the filter is why.
pub fn by_filter(way: Way, strict: bool) -> Way {
    match way {
        Way::Nowhere { why: "blackhole", answer } if strict => Way::Nowhere { why: "reverse path", answer },
        way => way,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_strict_filter_drops_is_not_taken_for_a_blackhole() {
        let way = |why| Way::Nowhere { why, answer: "Invalid argument".into() };
        assert_eq!(by_filter(way("blackhole"), true), way("reverse path"));
        assert_eq!(by_filter(way("blackhole"), false), way("blackhole"));
        assert_eq!(by_filter(way("no route"), true), way("no route"));
    }
}
