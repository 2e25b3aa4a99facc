//! What software asks, and what does it do when its token request is lost? From the User-Agent: a hint, never an identity, for a
//! client sends what it likes and some send nothing.

use std::borrow::Cow;

use serde::Serialize;

use crate::net::bounded;

/// Bytes of a version that are kept.
const MAX_VERSION: usize = 24;

/// A client's software.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Software {
    /// Its family, e.g. `boto3`.
    pub name: &'static str,
    /// Its version as it says; `None` if it does not.
    pub version: Option<String>,
    /// What it does when a token request gets no answer; `None` if nobody read its source.
    #[serde(skip)]
    pub when_lost: Option<&'static str>,
}

/// What a User-Agent begins with, whose it is, and what that one does when a token request gets no answer.
struct Family {
    begins: &'static str,
    name: &'static str,
    when_lost: Option<&'static str>,
}

const BOTOCORE: Option<&str> = Some("waits 1 s, once, then asks without a token");
const GO_V1: Option<&str> = Some("waits 5 s, then asks without a token");

/// More telling beginnings first. Timeouts and fallbacks as in the projects' sources of August 2026.
const FAMILIES: &[Family] = &[
    Family { begins: "boto3/", name: "boto3", when_lost: BOTOCORE },
    Family { begins: "botocore/", name: "botocore", when_lost: BOTOCORE },
    Family { begins: "aws-cli/", name: "aws-cli", when_lost: BOTOCORE },
    Family {
        begins: "aws-sdk-go-v2/",
        name: "aws-sdk-go-v2",
        when_lost: Some("waits 0.5 s, then asks without a token for as long as it runs, or until it gets a 401"),
    },
    Family { begins: "aws-sdk-go/", name: "aws-sdk-go", when_lost: GO_V1 },
    Family {
        begins: "aws-sdk-rust/",
        name: "aws-sdk-rust",
        when_lost: Some("waits 1 s, then fails: it never asks without a token"),
    },
    Family {
        begins: "aws-sdk-java/2",
        name: "aws-sdk-java-v2",
        when_lost: Some("waits 1 s, then asks without a token"),
    },
    Family { begins: "aws-sdk-java/", name: "aws-sdk-java", when_lost: None },
    Family {
        begins: "aws-sdk-js/",
        name: "aws-sdk-js",
        when_lost: Some("waits 1 s, then asks without a token, at every refresh anew"),
    },
    Family {
        begins: "aws-sdk-dotnet",
        name: "aws-sdk-dotnet",
        when_lost: Some("fails: it never asks without a token"),
    },
    Family { begins: "aws-sdk-ruby", name: "aws-sdk-ruby", when_lost: None },
    Family { begins: "aws-sdk-php/", name: "aws-sdk-php", when_lost: None },
    Family {
        begins: "cloud-init/",
        name: "cloud-init",
        when_lost: Some("waits 50 s a request, 240 s in all, then goes on without EC2: it never asks without a token"),
    },
    Family { begins: "amazon-ssm-agent/", name: "amazon-ssm-agent", when_lost: GO_V1 },
    Family {
        begins: "datadog agent/",
        name: "datadog-agent",
        when_lost: Some("waits 0.6 s, and tries again every 15 s for ever"),
    },
    Family { begins: "curl/", name: "curl", when_lost: Some("waits until its --max-time, for ever without one") },
    Family { begins: "wget/", name: "wget", when_lost: None },
    Family { begins: "python-requests/", name: "python-requests", when_lost: None },
    Family { begins: "python-urllib/", name: "python-urllib", when_lost: None },
    Family { begins: "go-http-client/", name: "go-http-client", when_lost: None },
];

/// The software that a User-Agent names; `None` if it is none that is known.
pub fn of(user_agent: &str) -> Option<Software> {
    let lower = user_agent.to_ascii_lowercase();
    let family = FAMILIES.iter().find(|family| lower.starts_with(family.begins))?;
    let first = user_agent.split_whitespace().find(|word| word.contains('/'));
    let version = first.and_then(|word| word.split_once('/')).map(|(_, version)| version);
    let is_version = |version: &&str| version.starts_with(|c: char| c.is_ascii_digit());
    Some(Software {
        name: family.name,
        version: version.filter(is_version).map(|version| bounded(version, MAX_VERSION).to_owned()),
        when_lost: family.when_lost,
    })
}

impl Software {
    /// Name and version, e.g. `boto3 1.40.21`.
    pub fn label(&self) -> Cow<'static, str> {
        match &self.version {
            Some(version) => Cow::Owned(format!("{} {version}", self.name)),
            None => Cow::Borrowed(self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_and_a_version_are_read_from_what_sdks_send() {
        for (user_agent, expected) in [
            ("Boto3/1.40.21 Python/3.11 Linux/6.12 Botocore/1.40.21", "boto3 1.40.21"),
            ("Botocore/1.29.27 Python/3.11.2 Linux/6.1", "botocore 1.29.27"),
            ("aws-cli/2.9.19 Python/3.11.2 Linux/6.1 source/x86_64", "aws-cli 2.9.19"),
            ("aws-sdk-go-v2/1.38.1 ua/2.1 os/linux lang/go#1.22", "aws-sdk-go-v2 1.38.1"),
            ("aws-sdk-go/1.55.5 (go1.22; linux; amd64)", "aws-sdk-go 1.55.5"),
            ("aws-sdk-rust/1.3.9 ua/2.1 api/imds/1.8.10 os/linux", "aws-sdk-rust 1.3.9"),
            ("aws-sdk-java/2.20.0 Linux/6.1", "aws-sdk-java-v2 2.20.0"),
            ("aws-sdk-java/1.12.0 Linux/6.1", "aws-sdk-java 1.12.0"),
            ("Cloud-Init/24.1", "cloud-init 24.1"),
            ("curl/8.5.0", "curl 8.5.0"),
        ] {
            assert_eq!(of(user_agent).map(|software| software.label().into_owned()).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for user_agent in ["", "/", "Mozilla/5.0", "my-boto3/1", "curlew"] {
            assert_eq!(of(user_agent), None, "{user_agent}");
        }
        assert_eq!(of("Boto3/***").and_then(|software| software.version), None);
    }
}
