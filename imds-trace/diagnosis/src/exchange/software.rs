//! What software asks? From the User-Agent: a hint, never an identity, for a client sends what it likes and some send nothing.
//!
//! Refuses to say how long it waits and how often it tries: that changes with versions and settings, and the trace shows it.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Serialize;

use crate::net::bounded;

/// Bytes of a version that are kept.
const MAX_VERSION: usize = 24;

/// A client's software.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Software {
    /// Its family, e.g. `boto3`.
    pub name: &'static str,
    /// Its version as it says; `None` if it does not.
    pub version: Option<String>,
    /// What kind of software.
    #[serde(skip)]
    kind: Kind,
}

/// What kind of software it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An AWS SDK, or made with one.
    Sdk,
    /// The same, and it fails where it gets no token: it has no code that asks without one.
    SdkWithoutV1,
    /// Something else.
    Plain,
}

/// What a User-Agent begins with, and whose it is.
struct Family {
    begins: &'static str,
    name: &'static str,
    kind: Kind,
}

const fn family(begins: &'static str, name: &'static str, kind: Kind) -> Family {
    Family { begins, name, kind }
}

/// More telling beginnings first. Kinds as in the projects' sources of August 2026.
const FAMILIES: &[Family] = &[
    family("boto3/", "boto3", Kind::Sdk),
    family("botocore/", "botocore", Kind::Sdk),
    family("aws-cli/", "aws-cli", Kind::Sdk),
    family("aws-sdk-go-v2/", "aws-sdk-go-v2", Kind::Sdk),
    family("aws-sdk-go/", "aws-sdk-go", Kind::Sdk),
    family("aws-sdk-rust/", "aws-sdk-rust", Kind::SdkWithoutV1),
    family("aws-sdk-java/2", "aws-sdk-java-v2", Kind::Sdk),
    family("aws-sdk-java/", "aws-sdk-java", Kind::Sdk),
    family("aws-sdk-js/", "aws-sdk-js", Kind::Sdk),
    family("aws-sdk-dotnet", "aws-sdk-dotnet", Kind::Sdk),
    family("aws-sdk-ruby", "aws-sdk-ruby", Kind::Sdk),
    family("aws-sdk-php/", "aws-sdk-php", Kind::Sdk),
    family("cloud-init/", "cloud-init", Kind::Plain),
    family("amazon-ssm-agent/", "amazon-ssm-agent", Kind::Sdk),
    family("datadog agent/", "datadog-agent", Kind::Plain),
    family("curl/", "curl", Kind::Plain),
    family("wget/", "wget", Kind::Plain),
    family("python-requests/", "python-requests", Kind::Plain),
    family("python-urllib/", "python-urllib", Kind::Plain),
    family("go-http-client/", "go-http-client", Kind::Plain),
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
        kind: family.kind,
    })
}

/// Beginnings of the User-Agents of browsers, and of servers that fetch what people link to.
const BROWSERS: [&str; 4] = ["mozilla/", "facebookexternalhit/", "slackbot", "twitterbot/"];

/// Is this a browser's User-Agent, or that of a server that fetches what people link to? PowerShell, which is none, calls itself one too.
pub fn is_browser(user_agent: &str) -> bool {
    let lower = user_agent.to_ascii_lowercase();
    BROWSERS.iter().any(|begins| lower.starts_with(begins)) && !lower.contains("powershell/")
}

impl Software {
    /// Is it an AWS SDK, or made with one?
    pub fn is_sdk(&self) -> bool {
        matches!(self.kind, Kind::Sdk | Kind::SdkWithoutV1)
    }

    /// Does it take the seconds that it waits from `AWS_METADATA_SERVICE_TIMEOUT`?
    pub fn reads_timeout(&self) -> bool {
        matches!(self.name, "boto3" | "botocore" | "aws-cli" | "aws-sdk-java-v2")
    }

    /// Does it fail where it gets no token, in every version whose source was read?
    pub fn never_falls_back(&self) -> bool {
        self.kind == Kind::SdkWithoutV1
    }

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
    fn a_browser_is_told_from_what_calls_itself_one() {
        assert!(is_browser(
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/120.0"
        ));
        assert!(is_browser("Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)"));
        for other in ["Mozilla/5.0 (Linux; Ubuntu 24.04; en-US) PowerShell/7.4.1", "curl/8.5.0", "", "x Mozilla/5.0"] {
            assert!(!is_browser(other), "{other}");
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
