//! What does a request ask of IMDS?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::observation::RequestHead;

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
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

/// Where tokens are asked for, below any version.
pub const TOKEN_PATH: &str = "/api/token";

/// Beginnings of paths that other clouds' clients ask on the same address (cloud-init's sources): no IMDSv1 use of EC2.
const FOREIGN: &[&str] = &[
    // Google, Azure, DigitalOcean and UpCloud, Oracle, Hetzner, OpenStack.
    "/computeMetadata/",
    "/metadata/",
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
    if OTHERS.contains(&endpoint) {
        return Imds::Other;
    }
    let reads = matches!(request.method.as_str(), "GET" | "HEAD");
    if request.method == "PUT" && request.path.ends_with(TOKEN_PATH) {
        Imds::Token
    } else if FOREIGN.iter().any(|prefix| request.path.starts_with(prefix)) {
        Imds::Other
    } else if reads && request.token {
        Imds::V2
    } else if reads && !request.cut {
        Imds::V1
    } else {
        Imds::Other
    }
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
        let cut = RequestHead { method: "GET".into(), path: "/latest/".into(), cut: true, ..RequestHead::default() };
        let endpoint = Ipv4Addr::new(169, 254, 169, 254).into();
        assert_eq!(classify(&cut, endpoint), Imds::Other, "its token may stand behind what was seen");
    }

    #[test]
    fn what_others_are_asked_is_no_use_of_imds() {
        let request = RequestHead { method: "GET".into(), path: "/v2/credentials/x".into(), ..RequestHead::default() };
        for endpoint in OTHERS {
            assert_eq!(classify(&request, endpoint), Imds::Other);
        }
    }
}
