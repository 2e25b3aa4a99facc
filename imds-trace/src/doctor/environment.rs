//! Do a container's variables turn its SDK away from IMDS?
//!
//! Only names are told, and the values of switches: a proxy's address may hold a password.

use std::net::IpAddr;

use super::firewall::rules::range;
use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use crate::sources::listing::Running;

/// The check.
pub const CHECK: Check =
    Check { id: "environment", explain: "whether variables of containers turn SDKs away from IMDS", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    sight.containers().iter().flat_map(|container| judge(container, &sight.endpoints)).collect()
}

fn judge(container: &Running, endpoints: &[IpAddr]) -> Vec<Answer> {
    let value = |name: &str| {
        let variable = container.environment.iter().find(|(known, _)| known == name);
        variable.map(|(_, value)| value.as_deref().unwrap_or_default())
    };
    let answer = |status, summary: String| {
        // Names alone: what the values are, only the one who asks should see.
        let format = "'{{range .Config.Env}}{{println .}}{{end}}'";
        let look = format!(
            "docker inspect --format {format} {} | cut -d= -f1",
            diagnosis::printable::shell_word(&container.name)
        );
        Answer::new(Subject::Container(container.name.clone()), status, summary).look(look)
    };
    let is_true = |name: &str| value(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let mut answers = Vec::new();
    if is_true("AWS_EC2_METADATA_DISABLED") {
        answers.push(answer(
            Status::Broken,
            "AWS_EC2_METADATA_DISABLED is true: its SDKs never ask IMDS. Leave it out, if the container is to get the instance's role.".into(),
        ));
    }
    if is_true("AWS_EC2_METADATA_V1_DISABLED") {
        answers.push(answer(
            Status::Ok,
            "AWS_EC2_METADATA_V1_DISABLED is true: its SDKs say so when a token is lost, and do not fall back to IMDSv1.".into(),
        ));
    }
    if let Some(url) = value("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        let host = host(url);
        let known = host.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| endpoints.contains(&address));
        answers.push(match known {
            true => answer(Status::Ok, format!("AWS_EC2_METADATA_SERVICE_ENDPOINT names {host}, which is IMDS.")),
            false => answer(
                Status::Warning,
                format!("AWS_EC2_METADATA_SERVICE_ENDPOINT is set: its SDKs ask {host}, not IMDS."),
            ),
        });
    }
    let proxies: Vec<&str> = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
        .into_iter()
        .filter(|name| value(name).is_some())
        .collect();
    if !proxies.is_empty() {
        let spared = ["no_proxy", "NO_PROXY"].iter().filter_map(|name| value(name)).any(|list| spares(list, endpoints));
        let names = proxies.join(" and ");
        answers.push(if spared {
            answer(Status::Ok, format!("{names} is set, and no_proxy spares IMDS."))
        } else {
            answer(
                Status::Warning,
                format!(
                    "{names} is set, and no_proxy does not name 169.254.169.254: some SDKs send what is for IMDS to the proxy, which is \
                     another host. Start it anew with 169.254.169.254 added to what NO_PROXY and no_proxy name."
                ),
            )
        });
    }
    if answers.is_empty() {
        answers.push(answer(Status::Ok, "No variable turns its SDKs away from IMDS.".into()));
    }
    answers
}

/// The host of a URL, without user and password.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    match authority.split_once(']') {
        Some((v6, _)) => &authority[..v6.len() + 1],
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// Does the list name an endpoint, or a range that has it?
fn spares(list: &str, endpoints: &[IpAddr]) -> bool {
    list.split(',').map(str::trim).any(|entry| {
        let bare = entry.trim_matches(['[', ']']);
        entry == "*"
            || range(bare)
                .is_some_and(|(first, last)| endpoints.iter().any(|endpoint| (first..=last).contains(endpoint)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(environment: &[(&str, Option<&str>)]) -> Vec<(Status, String)> {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        let container = Running { name: "job-17".into(), environment, ..Running::default() };
        let endpoints = [IpAddr::from([169, 254, 169, 254])];
        judge(&container, &endpoints).into_iter().map(|answer| (answer.status, answer.summary)).collect()
    }

    #[test]
    fn switches_and_proxies_are_told_apart() {
        assert_eq!(answers(&[])[0].0, Status::Ok);
        assert_eq!(answers(&[("AWS_EC2_METADATA_DISABLED", Some("TRUE"))])[0].0, Status::Broken);
        assert_eq!(answers(&[("AWS_EC2_METADATA_DISABLED", Some("false"))])[0].0, Status::Ok);
        assert_eq!(answers(&[("HTTP_PROXY", None)])[0].0, Status::Warning);
        for list in ["169.254.169.254", "localhost, 169.254.0.0/16", "*"] {
            assert_eq!(answers(&[("HTTP_PROXY", None), ("NO_PROXY", Some(list))])[0].0, Status::Ok, "{list}");
        }
        assert_eq!(answers(&[("http_proxy", None), ("no_proxy", Some("169.254.169.25"))])[0].0, Status::Warning);
    }

    #[test]
    fn an_endpoint_is_told_without_its_password() {
        let url = "http://user:password@proxy.example:8080/latest?key=secret";
        let told = &answers(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", Some(url))])[0];
        assert_eq!(told.0, Status::Warning);
        assert!(
            told.1.contains("proxy.example") && !told.1.contains("password") && !told.1.contains("secret"),
            "{told:?}"
        );
        assert_eq!(host("http://[fd00:ec2::254]:80/"), "[fd00:ec2::254]");
    }
}
