//! What does a request ask of IMDS?

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

/// Classifies a request by method, path and the presence of a token.
pub fn classify(request: &RequestHead) -> Imds {
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
            classify(&RequestHead { method: method.into(), path: path.into(), token, ..RequestHead::default() })
        };
        assert_eq!(classified("PUT", "/latest/api/token", false), Imds::Token);
        assert_eq!(classified("GET", "/latest/meta-data/", true), Imds::V2);
        assert_eq!(classified("HEAD", "/latest/meta-data/", false), Imds::V1);
        assert_eq!(classified("GET", "/computeMetadata/v1/", false), Imds::Other);
        assert_eq!(classified("POST", "/latest/meta-data/", false), Imds::Other);
        assert_eq!(classified("PUT", "/v1/token", false), Imds::Other);
        let cut = RequestHead { method: "GET".into(), path: "/latest/".into(), cut: true, ..RequestHead::default() };
        assert_eq!(classify(&cut), Imds::Other, "its token may stand behind what was seen");
    }
}
