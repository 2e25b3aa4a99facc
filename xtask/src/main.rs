//! What can be asked of this workspace beyond `cargo build`?
//!
//! Exit codes as in `imds-trace` itself: 0 done, 1 ran and something failed, 2 could not run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod arch;
mod bench;
mod cross;
mod debian;
mod demo;
mod dist;
mod fuzz;
mod lint;
mod reasons;
mod record;
mod release;
mod setup;
mod tally;
mod test;
#[path = "../../imds-trace/build/toolchain.rs"]
mod toolchain;
mod vm;
mod workspace;

/// The chores of imds-trace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find what building the kernel half takes; install what is missing, where that can be done
    Setup {
        /// What the lab and packages take, too: a Docker engine, busybox, iptables, nft, ip, boto3, aws-cli, curl, systemd, rpm
        #[arg(long)]
        lab: bool,
    },
    /// Trace a container that cannot reach IMDS, in a lab on this machine (root)
    Demo,
    /// Formatting, clippy, and the house rules: who may import whom, first lines, file names
    Lint,
    /// Run tests; without PART all of them. The last line is the sum
    Test {
        parts: Vec<test::Part>,
        /// Handed to the test programs: a part of a test's name, or their flags
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Make the recordings in tests/recordings anew, in the lab, and what is told of them (root)
    Record,
    /// Write what the program says now of each recording beside it; `git diff` shows what changed
    Bless,
    /// Measure what tracing costs and what is lost, beside tcpdump, in the lab (root); be alone on the machine
    Bench(bench::Asked),
    /// Trace while containers, networks and the engine come and go: memory, files and processor time stay as they are, nothing is lost, and
    /// whoever is killed leaves nothing behind (root); be alone on the machine
    Soak {
        /// For so long
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
    },
    /// Look for bytes that a parser does not stand: each target of fuzz/, for so long, led by what it covers
    Fuzz(fuzz::Asked),
    /// Make what others get, in target/dist: one static file, completions, manual pages, .deb, .rpm, image, sums, list of parts
    Dist {
        /// For another processor, e.g. arm64 (Graviton): in target/dist-arm64
        #[arg(long)]
        arch: Option<arch::Arch>,
    },
    /// Run the lab's tests on other kernels, in virtual machines, and show kernels × scenarios (root)
    Vm(vm::Asked),
    /// Every test and the demo, in less than forty minutes; installs what it needs
    Ci,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup { lab } => setup::setup(lab),
        Task::Demo => demo::demo(),
        Task::Lint => lint::lint(),
        Task::Test { parts, filter } => test::test(&parts, &filter),
        Task::Record => record::record(),
        Task::Bless => record::bless(),
        Task::Bench(asked) => bench::bench(&asked),
        Task::Soak { minutes } => test::soak_alone(minutes),
        Task::Fuzz(asked) => fuzz::fuzz(&asked),
        Task::Dist { arch } => dist::dist(arch),
        Task::Vm(asked) => vm::vm(asked),
        Task::Ci => test::ci(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
