//! Does a `Host` header name IMDS? The name itself is not kept.

/// Names of IMDS: EC2's own (`instance-data` resolves in a VPC), and those by which clients of other clouds ask for theirs.
const NAMES: [&str; 5] = [
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.google.internal",
    "metadata.google.internal.",
];

/// Does a `Host` name something that is no address and not IMDS?
pub fn is_foreign(value: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(value.trim_ascii()) else { return true };
    if host.is_empty() || host.parse::<std::net::SocketAddr>().is_ok() || host.parse::<std::net::IpAddr>().is_ok() {
        return false;
    }
    if host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok())
    {
        return false;
    }
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    // `instance-data.<region>.compute.internal`, too.
    let is_regional = name.starts_with("instance-data.") && name.ends_with(".compute.internal");
    !is_regional && !NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_the_names_of_imds_are_its_own() {
        for own in [
            "169.254.169.254",
            "169.254.169.254:80",
            "[fd00:ec2::254]",
            "[fd00:ec2::254]:80",
            "instance-data",
            "Instance-Data:80",
            "instance-data.eu-west-1.compute.internal",
            "",
        ] {
            assert!(!is_foreign(own.as_bytes()), "{own}");
        }
        for foreign in ["attacker.example", "localhost:8080", "169.254.169.254.nip.io", "instance-data.example"] {
            assert!(is_foreign(foreign.as_bytes()), "{foreign}");
        }
        assert!(is_foreign(&[0xff, 0xfe]));
    }
}
