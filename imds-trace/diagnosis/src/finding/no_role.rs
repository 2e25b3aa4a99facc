//! Were there no credentials to get, because the instance has no role, or not this one?
//!
//! SDKs use the same words for this as for a lost token response.

use super::{Case, Rule, Severity, Verdict, capitalised};
use crate::exchange::Exchange;
use crate::exchange::imds::is_success;

/// The rule.
pub const RULE: Rule = Rule {
    id: "no-role",
    severity: Severity::Warning,
    explain: "404 below iam/security-credentials: the instance has no role, or not the one that was asked for.",
    examine,
};

/// Below it stand the instance's roles. What stands below `security-credentials-extended` is asked for first by some SDKs and is
/// 404 where IMDS does not know it, which is no error.
const ROLES: &str = "/meta-data/iam/security-credentials";

/// The first version of the metadata that has roles (`latest` comes behind all days).
const SINCE: &str = "2012-01-12";

/// Those that have, as IMDS lists them. Of one that is newer than this it is not known whether there is one of that name.
const VERSIONS: [&str; 15] = [
    SINCE,
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
];

/// The cause where no role at all was asked for by name.
pub(super) const ANY: &str = "none";

/// The role that is asked for: empty where it is the list of them, `None` where it is something else.
pub(super) fn role(exchange: &Exchange) -> Option<&str> {
    let request = exchange.request.as_ref()?;
    let (version, role) = request.path.split_once(ROLES)?;
    // Below an older version nobody has one, and what does not read is told nothing.
    if version.trim_matches('/') < SINCE || !matches!(request.method.as_str(), "GET" | "HEAD") {
        return None;
    }
    match role {
        "" => Some(""),
        role => Some(role.strip_prefix('/')?.trim_end_matches('/')),
    }
}

/// The role that the instance has by what it answered, whether that reached its client or not; empty where it listed them.
pub(super) fn shown(exchange: &Exchange) -> Option<&str> {
    role(exchange).filter(|_| exchange.came_status().is_some_and(is_success))
}

/// Is the path one where IMDS has roles, if the instance has any? Else 404 is about the path.
fn is_their_place(exchange: &Exchange, role: &str) -> bool {
    let path = exchange.request.as_ref().map_or("", |request| request.path.as_str());
    let version = path.split_once(ROLES).map_or("", |(version, _)| version.trim_matches('/'));
    (version == "latest" || VERSIONS.contains(&version)) && !role.contains('/')
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.status() == Some(404))?;
    let role = role(exchange).filter(|role| is_their_place(exchange, role))?;
    if case.history.had_role(exchange, role) {
        return None;
    }
    let voice = case.speaks_for_instance()?;
    let subject = case.subject();
    let (cause, why) = match role {
        "" => (ANY.to_owned(), "this instance has no instance profile, or its role is gone".to_owned()),
        role => (role.to_owned(), format!("this instance has no role {role}")),
    };
    let mut verdict = Verdict::certain(
        cause,
        capitalised(format!(
            "{subject}{} reached IMDS and asked for credentials, and got 404: {why}. The network and the hop limit are not the cause.",
            case.hint()
        )),
    );
    let instance = case.instance();
    verdict.remedy = vec![
        format!("aws ec2 describe-iam-instance-profile-associations --filters Name=instance-id,Values={instance}"),
        format!(
            "aws ec2 associate-iam-instance-profile --instance-id {instance} --iam-instance-profile Name=<profile>"
        ),
    ];
    verdict.caution = Some(
        "The second command gives the role to every process and container that reaches IMDS; a role for the job alone \
                       (OIDC, ECS task role, EKS Pod Identity) does not."
            .to_owned(),
    );
    Some(voice.temper(verdict))
}
