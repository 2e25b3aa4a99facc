//! Does the program do what is typed, and say in one sentence why it cannot?
//!
//! The built program, from outside: `$IMDS_TRACE_BIN`, else the one beside this test. No root needed; what only root can try is
//! marked as not run for others.

mod agreeing;
mod asking;
mod capturing;
mod closing;
mod deploying;
mod describing;
mod doctoring;
mod doubtful;
mod evidence;
mod expecting;
mod foreign;
mod hostile;
mod hosts;
mod own_network;
mod pages;
mod pipelining;
mod program;
mod readying;
mod replaying;
mod serving;
mod spoilt;
mod terminal;
mod typing;
mod watching;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

/// What came of a test.
pub type Outcome = Result<(), Failed>;

/// A claim and the story that shows it.
pub type Test = (&'static str, fn() -> Outcome);

/// Makes a row of a table from a function: its name is the claim.
#[macro_export]
macro_rules! tests {
    ($($claim:ident),* $(,)?) => {
        /// The tests of this file.
        pub const TESTS: &[$crate::Test] = &[$((stringify!($claim), $claim)),*];
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = imds_trace_tests::tracer::program() {
        eprintln!("cli: {error:#}");
        return ExitCode::from(2);
    }
    let root = nix::unistd::geteuid().is_root();
    let tables = [
        ("typing", typing::TESTS, false),
        ("replaying", replaying::TESTS, false),
        ("capturing", capturing::TESTS, false),
        ("closing", closing::TESTS, false),
        ("evidence", evidence::TESTS, false),
        ("spoilt", spoilt::TESTS, false),
        ("agreeing", agreeing::TESTS, false),
        ("doubtful", doubtful::TESTS, false),
        ("asking", asking::TESTS, false),
        ("expecting", expecting::TESTS, false),
        ("readying", readying::TESTS, false),
        ("hostile", hostile::TESTS, false),
        ("hosts", hosts::TESTS, false),
        ("own_network", own_network::TESTS, false),
        ("pages", pages::TESTS, false),
        ("pipelining", pipelining::TESTS, false),
        ("terminal", terminal::TESTS, false),
        ("describing", describing::TESTS, false),
        ("deploying", deploying::TESTS, false),
        ("doctoring", doctoring::TESTS, false),
        ("watching", watching::TESTS, false),
        ("watching", watching::TESTS_OF_ROOT, true),
        ("serving", serving::TESTS_OF_ROOT, true),
    ];
    let trials = tables.iter().flat_map(|(file, tests, needs_root)| {
        tests.iter().map(move |(claim, test)| {
            Trial::test(format!("{file}::{claim}"), test).with_ignored_flag(*needs_root && !root)
        })
    });
    libtest_mimic::run(&arguments, trials.chain(foreign::trials()).collect()).exit_code()
}
