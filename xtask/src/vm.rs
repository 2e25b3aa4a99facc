//! Does it work on other kernels? The lab's tests, built once, run in a virtual machine for each, and make a table.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{release, setup, tally::Tally, workspace};
use kernel::Kernel;
use machine::{Accelerator, Qemu, Run};

mod image;
mod kernel;
mod machine;
mod scenarios;
mod table;

/// What CI runs: the long-term kernels that Debian 12 has for cloud machines.
pub const DEFAULT: &[&str] = &["6.1", "6.12"];

/// A machine that has not ended by then hangs. Under software emulation all scenarios take three minutes.
const LIMIT: Duration = Duration::from_secs(12 * 60);

/// Where in the repository the table is kept.
const README: &str = "README.md";

#[derive(Args)]
pub struct Asked {
    /// Series of Debian's cloud kernels, e.g. 5.10 or 6.12 (fetched, unpacked, never installed)
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// A kernel of your own (bzImage)
    #[arg(long, value_name = "VMLINUZ", requires = "modules")]
    kernel: Option<PathBuf>,
    /// Its modules: the folder lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Write the table of each kernel's last whole run into README.md
    #[arg(long, conflicts_with = "filter")]
    readme: bool,
    /// Handed to the lab's tests, e.g. a part of a test's name; without it, what the table shows
    #[arg(last = true)]
    filter: Vec<String>,
}

/// What came of a kernel.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What it is called here.
    pub name: String,
    /// As it calls itself; empty if it never came up.
    pub release: String,
    /// By test: did it pass?
    pub tests: BTreeMap<String, bool>,
    /// Why it ended before its tests, and the end of its log.
    pub broken: Option<String>,
}

/// `cargo xtask vm`.
pub fn vm(asked: Asked) -> Result<ExitCode> {
    setup::compiler_half()?;
    let mut tally = Tally::default();
    run(&asked, true, None, &mut tally)?;
    if asked.readme {
        table::write(&workspace::root().join(README), &kept()?)?;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(ExitCode::from(u8::from(tally.failed > 0)))
}

/// The part of CI: the default kernels and scenarios.
pub fn part(deadline: Option<Instant>, tally: &mut Tally) -> Result<()> {
    let asked = Asked { kernels: Vec::new(), kernel: None, modules: None, readme: false, filter: Vec::new() };
    run(&asked, false, deadline, tally)
}

/// With `all`, every row of the table, and its results are kept.
fn run(asked: &Asked, all: bool, deadline: Option<Instant>, tally: &mut Tally) -> Result<()> {
    if !workspace::is_root() {
        bail!("unpacking kernels and the machine's programs takes root");
    }
    setup::lab_half()?;
    let kernels = kernels(asked)?;
    let qemu = Qemu::find()?;
    let programs = programs()?;
    let work = tempfile::tempdir_in(workspace::built("", "")?).context("make a folder to work in")?;
    println!("packing what the virtual machines hold …");
    let common = image::common(work.path())?;
    let by_name = asked.filter.is_empty();
    let rows = scenarios::chosen(all);
    let wanted = if by_name { scenarios::tests(&rows) } else { Vec::new() };
    let of_lab: Vec<&str> = wanted.iter().copied().filter(|test| scenarios::is_of_lab(test)).collect();
    let arguments = image::Arguments { tests: &of_lab, filter: &asked.filter };
    let mine = image::programs(work.path(), &programs, &arguments)?;
    let bare = image::bare(work.path(), &programs)?;
    let deadline = deadline.unwrap_or_else(|| Instant::now() + LIMIT).min(Instant::now() + LIMIT);
    let started = Instant::now();
    let Some(first) = kernels.first() else { bail!("no kernel") };
    let machine =
        Run { accelerator: Accelerator::Kvm, qemu: &qemu, kernel: first, image: &bare, work: work.path(), deadline };
    let machine = Run { accelerator: Accelerator::find(&machine)?, ..machine };
    println!("accelerator: {:?}", machine.accelerator);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let machines: Vec<_> = kernels
            .iter()
            .map(|kernel| {
                let (common, mine, bare, work) = (&common, &mine, &bare, work.path());
                scope.spawn(move || -> Result<Outcome> {
                    let modules = image::modules(work, kernel)?;
                    let image = image::join(work, &kernel.name, &[common, &modules, mine])?;
                    let machine = Run { kernel, ..machine };
                    let mut outcome = machine::run(&Run { image: &image, ..machine })?;
                    if by_name {
                        let image = image::join(work, &format!("{}-bare", kernel.name), &[bare, &modules])?;
                        let alone = machine::run(&Run { image: &image, ..machine })?;
                        outcome.tests.extend(alone.tests);
                        outcome.broken = outcome.broken.or(alone.broken);
                    }
                    Ok(outcome)
                })
            })
            .collect();
        let ended = machines.into_iter().map(|machine| machine.join().unwrap_or_else(|_| bail!("a thread panicked")));
        let outcome = |(kernel, ended): (&Kernel, Result<Outcome>)| {
            let broken = |error| Outcome { broken: Some(format!("{error:#}")), ..Outcome::default() };
            Outcome { name: kernel.name.clone(), ..ended.unwrap_or_else(broken) }
        };
        kernels.iter().zip(ended).map(outcome).collect()
    });
    let rows = if by_name { table::by_scenario(&rows, &outcomes) } else { table::by_test(&outcomes) };
    println!("\n{}", table::shown(&outcomes, &rows));
    println!("({} s)", started.elapsed().as_secs());
    for outcome in &outcomes {
        if let Some(why) = &outcome.broken {
            println!("\nLinux {}: {why}", outcome.name);
        }
        *tally += table::count(outcome, &wanted);
        if by_name && all {
            table::keep(&kept()?, outcome)?;
        }
    }
    Ok(())
}

/// Where the results of whole runs are kept.
fn kept() -> Result<PathBuf> {
    workspace::built("vm", "")
}

fn kernels(asked: &Asked) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    if let (Some(image), Some(modules)) = (&asked.kernel, &asked.modules) {
        kernels.push(Kernel::own(image, modules)?);
    } else if asked.kernels.is_empty() {
        for series in DEFAULT {
            kernels.push(kernel::debian(series)?);
        }
    }
    for series in &asked.kernels {
        kernels.push(kernel::debian(series)?);
    }
    Ok(kernels)
}

/// The programs under test, static, so that they run wherever there is a kernel.
struct Programs {
    folder: PathBuf,
    lab: PathBuf,
}

fn programs() -> Result<Programs> {
    println!("building imds-trace and the lab …");
    let folder = release::build(crate::demo::PROGRAMS)?;
    let lab = release::test_program("imds-trace-tests", "lab")?;
    Ok(Programs { folder, lab })
}

/// Where kernels and the emulator are kept unpacked: outside the checkout.
fn cache(name: &str) -> Result<PathBuf> {
    let folder = crate::toolchain::cache().context("find the home folder to keep kernels in")?.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Unpacks Debian packages into a folder, without installing anything.
fn unpack(packages: &[PathBuf], folder: &Path) -> Result<()> {
    for package in packages {
        workspace::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))?;
    }
    Ok(())
}
