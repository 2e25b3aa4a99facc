//! Did somebody ask for a token or credentials who is not on the allow-list?
//!
//! Also when it was refused. Cannot know what was asked of which the request was not seen.

use super::{Case, Confidence, Rule, Severity, Verdict, capitalised};
use crate::allow::{Fits, Wanted};
use crate::exchange::imds;
use crate::exchange::{Exchange, Imds};
use crate::identity::{Key, Process};
use crate::net::bounded;

/// The rule.
pub const RULE: Rule = Rule {
    id: "unexpected-client",
    severity: Severity::Error,
    explain: "A token or credentials were asked for by somebody who is not on the list that --allow names, whether they arrived or not.",
    examine,
};

/// Bytes of a program's name.
const MAX_PROGRAM: usize = 64;
/// Bytes of an executable's path.
const MAX_EXE: usize = 128;
/// Ancestors that are named.
const MAX_ANCESTORS: usize = 6;

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let allow = case.host.allow.as_ref()?;
    let exchange = case.closed()?;
    let wanted = wanted(exchange)?;
    let fits = allow.fits(case.who, wanted);
    if fits == Fits::Yes {
        return None;
    }
    let what = match wanted {
        Wanted::Token => "a token".to_owned(),
        Wanted::Credentials { role, .. } => format!("the credentials of role {role}"),
    };
    let came = if exchange.brought() {
        "got".to_owned()
    } else {
        match exchange.status() {
            Some(status) => format!("asked for (answered with {status})"),
            None => "asked for (and is not known to have got)".to_owned(),
        }
    };
    let process = case.who.process.as_deref();
    let program = process.map(program).unwrap_or_default();
    let unnamed = if case.who.by == Key::Unknown { ", which could not be identified," } else { "" };
    let not_known = match fits {
        Fits::NotKnown(what) => format!(" Whether an entry fits is not certain: {what} is not known."),
        Fits::No | Fits::Yes => String::new(),
    };
    let cause = process.map_or("", |process| process.exe.as_deref().unwrap_or(&process.comm));
    let mut verdict = Verdict::certain(
        format!("{} {}", if wanted == Wanted::Token { "token" } else { "credentials" }, bounded(cause, MAX_EXE)),
        capitalised(format!(
            "{}{unnamed} {came} {what} and is not on the allow-list{program}.{not_known}",
            case.subject()
        )),
    );
    if matches!(fits, Fits::NotKnown(_)) {
        verdict.confidence = Confidence::Likely;
    }
    verdict.path = case.path(None);
    verdict.caution = Some(
        "If it belongs here, add an entry for it to the allow-list (`imds-trace generate allow` writes them). If not: what it \
                       took is valid until it expires, up to 6 hours, and ending the process does not take it back."
        .to_owned(),
    );
    Some(verdict)
}

/// What an exchange asks for, if that is a token or credentials.
fn wanted(exchange: &Exchange) -> Option<Wanted<'_>> {
    let request = exchange.request.as_ref()?;
    match exchange.imds()? {
        Imds::Token => Some(Wanted::Token),
        // Whatever the request was: a token was in the answer.
        _ if exchange.issued.is_some() => Some(Wanted::Token),
        Imds::V1 | Imds::V2 | Imds::Other => {
            imds::role(&request.path).map(|role| Wanted::Credentials { path: &request.path, role })
        }
    }
}

/// Which program it is, and what started it.
fn program(process: &Process) -> String {
    let exe = match &process.exe {
        Some(exe) => bounded(exe, MAX_EXE).to_owned(),
        None => format!("{}, whose executable is not known", bounded(&process.comm, MAX_PROGRAM)),
    };
    let ancestors: Vec<String> = process
        .ancestors
        .iter()
        .take(MAX_ANCESTORS)
        .map(|parent| format!("{}[{}]", bounded(&parent.comm, MAX_PROGRAM), parent.pid))
        .collect();
    let started =
        if ancestors.is_empty() { String::new() } else { format!(", started by {}", ancestors.join(", by ")) };
    format!(": {exe}, pid {}, uid {}{started}", process.pid, process.uid)
}
