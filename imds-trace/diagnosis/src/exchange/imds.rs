//! What does a request ask of IMDS?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schemars::JsonSchema;
use serde::Serialize;

use crate::observation::RequestHead;

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Imds {
    /// Asks for a session token.
    Token,
    /// Reads with a token (IMDSv2).
    V2,
    /// Reads without a token (IMDSv1).
    V1,
    /// Something that is not the EC2 protocol, or of which too little was seen.
    Other,
}

/// The address of the instance's IMDS by which it is known, of those that it has: it answers alike at both.
pub fn known_by(endpoint: IpAddr) -> IpAddr {
    const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if endpoint == V6 { IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)) } else { endpoint }
}

/// Is this one of the addresses at which others answer?
pub fn is_of_others(endpoint: IpAddr) -> bool {
    OTHERS.contains(&endpoint)
}

/// Where tokens are asked for, below any version.
pub const TOKEN_PATH: &str = "/api/token";

/// Beginnings of paths that other clouds' clients ask on the same address (cloud-init's sources): no use of EC2's IMDS, even with
/// a token.
const FOREIGN: &[&str] = &[
    // Google, Azure, DigitalOcean and UpCloud, Oracle, Hetzner, OpenStack.
    "/computeMetadata/",
    "/metadata/",
    "/Metadata/",
    "/opc/",
    "/hetzner/",
    "/openstack/",
    // Vultr; Akamai's, which has token requests of its own; NWCS.
    "/v1.json",
    "/v1/",
    "/api/v1/",
];

/// Addresses at which others answer to protocols of their own: ECS task credentials, EKS Pod Identity, Scaleway, Alibaba.
const OTHERS: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// Classifies a request to an address by method, path and the presence of a token.
pub fn classify(request: &RequestHead, endpoint: IpAddr) -> Imds {
    if is_of_others(endpoint) {
        return Imds::Other;
    }
    if request.method == "PUT" && asks_for_token(&request.path) {
        Imds::Token
    } else if !reads(request) || is_foreign(&request.path) {
        Imds::Other
    } else if request.token {
        Imds::V2
    } else if is_ec2(&request.path) && !request.cut {
        Imds::V1
    } else {
        // Detection of whatever cloud this is (`GET /`), another cloud's, or nobody knows what.
        Imds::Other
    }
}

/// May a request that is [`Imds::Other`] all the same be read as one without a token, by an EC2 that takes it?
pub fn may_be_v1(request: &RequestHead, endpoint: IpAddr) -> bool {
    let is_elsewhere = request.other_cloud && !climbs(&request.path);
    let tells_another = is_elsewhere || is_foreign(&request.path) || is_of_others(endpoint);
    let may_read = request.method != "PUT" && !request.token;
    classify(request, endpoint) == Imds::Other && may_read && !tells_another
}

/// Is this where tokens are asked for, or meant to be?
pub fn asks_for_token(path: &str) -> bool {
    path.trim_end_matches('/').ends_with(TOKEN_PATH)
}

/// Is this the status of an answer that does what was asked?
pub fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Where credentials are, below any version and `meta-data`, and what follows is the role.
const CREDENTIALS: [&[&str]; 3] = [
    &["iam", "security-credentials"],
    &["iam", "security-credentials-extended"],
    &["identity-credentials", "ec2", "security-credentials"],
];

/// The role whose credentials a path asks for. Servers take several slashes for one.
pub fn role(path: &str) -> Option<&str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    CREDENTIALS.iter().find_map(|place| {
        let begin = segments.windows(place.len()).position(|window| window == *place)?;
        segments.get(begin + place.len()).copied()
    })
}

fn reads(request: &RequestHead) -> bool {
    matches!(request.method.as_str(), "GET" | "HEAD")
}

/// Is this a path of another cloud?
pub fn is_foreign(path: &str) -> bool {
    FOREIGN.iter().any(|prefix| path.starts_with(prefix)) && !climbs(path)
}

/// May a path lead elsewhere than it begins, however that is spelled?
fn climbs(path: &str) -> bool {
    path.contains("..") || path.contains('%')
}

/// Does EC2 have something there? All that it tells stands below a version: `latest`, a day, or the first one, `1.0`.
fn is_ec2(path: &str) -> bool {
    let version = path.split('/').find(|segment| !segment.is_empty()).unwrap_or_default();
    let is_day = || {
        let mut parts = version.split('-');
        let mut has = |digits| parts.next().is_some_and(|part| part.len() == digits && is_number(part));
        has(4) && has(2) && has(2) && parts.next().is_none()
    };
    matches!(version, "latest" | "1.0") || is_day()
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_classified_by_method_path_and_token() {
        let classified = |method: &str, path: &str, token| {
            let request = RequestHead { method: method.into(), path: path.into(), token, ..RequestHead::default() };
            classify(&request, Ipv4Addr::new(169, 254, 169, 254).into())
        };
        assert_eq!(classified("PUT", "/latest/api/token", false), Imds::Token);
        assert_eq!(classified("GET", "/latest/meta-data/", true), Imds::V2);
        assert_eq!(classified("HEAD", "/latest/meta-data/", false), Imds::V1);
        assert_eq!(classified("GET", "/computeMetadata/v1/", false), Imds::Other);
        assert_eq!(classified("POST", "/latest/meta-data/", false), Imds::Other);
        assert_eq!(classified("PUT", "/v1/token", false), Imds::Other);
        assert_eq!(classified("PUT", "/latest/api/token/", false), Imds::Token);
        assert_eq!(classified("GET", "//2021-03-23/meta-data/", false), Imds::V1);
        assert_eq!(classified("GET", "/1.0/meta-data/", false), Imds::V1);
        assert_eq!(classified("GET", "/computeMetadata/v1/", true), Imds::Other);
        for detection in ["/", "/conf", "/2021-03/x", "/***"] {
            assert_eq!(classified("GET", detection, false), Imds::Other, "{detection}");
        }
        assert_eq!(classified("GET", "/", true), Imds::V2);
        let cut = RequestHead { method: "GET".into(), path: "/latest/".into(), cut: true, ..RequestHead::default() };
        let endpoint = Ipv4Addr::new(169, 254, 169, 254).into();
        assert_eq!(classify(&cut, endpoint), Imds::Other, "its token may stand behind what was seen");
    }

    #[test]
    fn a_header_of_another_cloud_hides_no_read_of_ec2s() {
        let request = |path: &str, other_cloud| RequestHead {
            method: "GET".into(),
            path: path.into(),
            other_cloud,
            ..RequestHead::default()
        };
        let endpoint = Ipv4Addr::new(169, 254, 169, 254).into();
        assert_eq!(classify(&request("/latest/meta-data/", true), endpoint), Imds::V1);
        assert!(may_be_v1(&request("/", false), endpoint));
        assert!(!may_be_v1(&request("/", true), endpoint));
        assert!(!may_be_v1(&request("/openstack/latest", false), endpoint));
        assert!(may_be_v1(&request("/v1/%2e%2e/latest/meta-data/", false), endpoint));
    }

    #[test]
    fn a_role_stands_behind_the_place_of_credentials() {
        for (path, expected) in [
            ("/latest/meta-data/iam/security-credentials/ci-runner", Some("ci-runner")),
            ("/2021-03-23/meta-data/iam/security-credentials/ci-runner?x", Some("ci-runner")),
            ("/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance", Some("ec2-instance")),
            ("/latest/meta-data/iam/security-credentials-extended/ci-runner", Some("ci-runner")),
            ("/latest/meta-data/iam//security-credentials/ci-runner/", Some("ci-runner")),
            ("/latest/meta-data/iam/security-credentials/", None),
            ("/latest/meta-data/iam/info", None),
        ] {
            assert_eq!(role(path), expected, "{path}");
        }
    }

    #[test]
    fn what_others_are_asked_is_no_use_of_imds() {
        let request = RequestHead { method: "GET".into(), path: "/v2/credentials/x".into(), ..RequestHead::default() };
        for endpoint in OTHERS {
            assert_eq!(classify(&request, endpoint), Imds::Other);
        }
    }
}
