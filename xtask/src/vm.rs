//! Does it work on other kernels? The lab's tests, built once, run in a virtual machine for each, and make a table.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    arch::Arch,
    release::{self, Together},
    setup,
    tally::Tally,
    workspace,
};
use kernel::Kernel;
use machine::{Accelerator, Qemu, Run};

mod image;
mod kernel;
mod machine;
mod scenarios;
mod table;

/// What CI runs: the long-term kernels that Debian 12 has for cloud machines.
pub const DEFAULT: &[&str] = &["6.1", "6.12"];

/// Machines of a kernel that have not ended by then hang. Under software emulation all rows take some twelve minutes.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Where in the repository the table is kept.
const PAGE: &str = "docs/kernels.md";

#[derive(Args)]
pub struct Asked {
    /// Series of Debian's cloud kernels, e.g. 5.10, 6.12 or 6.12:arm64 (fetched, unpacked, never installed)
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// A kernel of your own (bzImage)
    #[arg(long, value_name = "VMLINUZ", requires = "modules")]
    kernel: Option<PathBuf>,
    /// Its modules: the folder lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Write the table of each kernel's last whole run into docs/kernels.md; without KERNEL, run nothing before
    #[arg(long, conflicts_with = "filter")]
    page: bool,
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
    let only_writes = asked.page && asked.kernels.is_empty() && asked.kernel.is_none();
    if !only_writes {
        run(&asked, Together::Lab, true, None, &mut tally)?;
    }
    if asked.page {
        table::write(&workspace::root().join(PAGE), &kept()?)?;
    }
    if only_writes {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(ExitCode::from(u8::from(tally.failed > 0)))
}

/// The part of CI: the default kernels and scenarios.
pub fn part(together: Together, deadline: Option<Instant>, tally: &mut Tally) -> Result<()> {
    let asked = Asked { kernels: Vec::new(), kernel: None, modules: None, page: false, filter: Vec::new() };
    run(&asked, together, false, deadline, tally)
}

/// With `all`, every row of the table, and its results are kept.
fn run(asked: &Asked, together: Together, all: bool, deadline: Option<Instant>, tally: &mut Tally) -> Result<()> {
    if !workspace::is_root() {
        bail!("unpacking kernels and the machine's programs takes root");
    }
    setup::lab_half()?;
    let kernels = kernels(asked)?;
    let work = tempfile::tempdir_in(workspace::built("", "")?).context("make a folder to work in")?;
    let by_name = asked.filter.is_empty();
    let rows = scenarios::chosen(all);
    let wanted = if by_name { scenarios::tests(&rows) } else { Vec::new() };
    let of_lab: Vec<&str> = wanted.iter().copied().filter(|test| scenarios::is_of_lab(test)).collect();
    let arguments = image::Arguments { tests: &of_lab, filter: &asked.filter };
    let mut kinds = BTreeMap::new();
    for kernel in &kernels {
        if let Entry::Vacant(place) = kinds.entry(kernel.arch) {
            place.insert(Kind::prepare(kernel, together, work.path(), &arguments)?);
        }
    }
    let started = Instant::now();
    let on = |kernel: &Kernel| -> Result<Outcome> {
        let Kind { qemu, accelerator, common, programs, bare } = &kinds[&kernel.arch];
        let modules = image::modules(work.path(), kernel)?;
        let image = image::join(work.path(), &kernel.name, &[common, &modules, programs])?;
        let deadline = deadline.unwrap_or_else(in_time).min(in_time());
        let machine = Run { accelerator: *accelerator, qemu, kernel, image: &image, work: work.path(), deadline };
        let mut outcome = machine::run(&machine)?;
        if by_name {
            let image = image::join(work.path(), &format!("{}-bare", kernel.name), &[bare, &modules])?;
            let alone = machine::run(&Run { image: &image, ..machine })?;
            outcome.tests.extend(alone.tests);
            outcome.broken = outcome.broken.or(alone.broken);
        }
        Ok(outcome)
    };
    let outcomes = on_each(&kernels, on);
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

/// What comes of each kernel. As many at once as there are processors: emulated, a machine that must share one is so slow that its
/// tests wait in vain.
fn on_each(kernels: &[Kernel], on: impl Fn(&Kernel) -> Result<Outcome> + Sync) -> Vec<Outcome> {
    let (on, at_once) = (&on, thread::available_parallelism().map_or(1, usize::from));
    let outcome = |kernel: &Kernel, ended: thread::Result<Result<Outcome>>| {
        let broken = |error| Outcome { broken: Some(format!("{error:#}")), ..Outcome::default() };
        let ended = ended.unwrap_or_else(|_| bail!("a thread panicked"));
        Outcome { name: kernel.name.clone(), ..ended.unwrap_or_else(broken) }
    };
    let few = |few: &[Kernel]| -> Vec<Outcome> {
        thread::scope(|scope| {
            let machines: Vec<_> = few.iter().map(|kernel| scope.spawn(move || on(kernel))).collect();
            few.iter().zip(machines).map(|(kernel, machine)| outcome(kernel, machine.join())).collect()
        })
    };
    kernels.chunks(at_once).flat_map(few).collect()
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
    arch: Arch,
    folder: PathBuf,
    lab: PathBuf,
}

impl Programs {
    fn build(together: Together, arch: Arch) -> Result<Self> {
        println!("building imds-trace and the lab for {} …", arch.rust());
        let folder = release::build(together, arch)?;
        let lab = release::lab(together, arch)?;
        Ok(Self { arch, folder, lab })
    }
}

/// What machines of one processor have in common.
struct Kind {
    qemu: Qemu,
    accelerator: Accelerator,
    common: PathBuf,
    programs: PathBuf,
    bare: PathBuf,
}

impl Kind {
    /// For a kernel, with which what accelerates it is found out.
    fn prepare(kernel: &Kernel, together: Together, work: &Path, arguments: &image::Arguments<'_>) -> Result<Self> {
        let qemu = Qemu::find(kernel.arch)?;
        let programs = Programs::build(together, kernel.arch)?;
        println!("packing what the virtual machines hold …");
        let source = image::Source::find(kernel.arch)?;
        let common = image::common(work, &source)?;
        let bare = image::bare(work, &programs, &source)?;
        let programs = image::programs(work, &programs, arguments)?;
        let accelerator = Accelerator::Kvm;
        let machine = Run { accelerator, qemu: &qemu, kernel, image: &bare, work, deadline: in_time() };
        let accelerator = Accelerator::find(&machine)?;
        println!("{}: {accelerator:?}", kernel.arch.rust());
        Ok(Self { qemu, accelerator, common, programs, bare })
    }
}

/// When a machine that begins now is taken for hanging.
fn in_time() -> Instant {
    Instant::now() + LIMIT
}
