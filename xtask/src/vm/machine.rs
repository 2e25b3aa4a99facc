//! How does a virtual machine run, and what did its tests say? QEMU, with KVM where that works.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Outcome, kernel::Kernel};
use crate::{
    arch::Arch,
    debian::{self, Apt},
    toolchain, workspace,
};

/// Processors and memory of a machine: the engine's files and its containers all lie in memory.
const SIZE: [&str; 4] = ["-smp", "2", "-m", "2G"];

/// What a kernel prints when it is beyond help, or stuck.
const BEYOND_HELP: [&str; 6] = [
    "Kernel panic",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "detected stalls on CPUs",
    "general protection fault",
];

/// No AppArmor: an engine would ask for a program that loads profiles.
const COMMAND_LINE: &str = "panic=-1 oops=panic quiet cryptomgr.notests apparmor=0";

/// With KVM, a bare machine has done all it does in five seconds.
const FIRST_WORD: Duration = Duration::from_secs(15);

/// Lines of its log that are shown of a machine that broke.
const SHOWN: usize = 40;

/// The emulator of a processor.
pub struct Qemu {
    arch: Arch,
    program: PathBuf,
    /// Where its files are, and its libraries, if it is not installed.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The one that is installed; else Debian's, fetched and unpacked beside the system: installing it can remove other packages.
    pub fn find(arch: Arch) -> Result<Self> {
        let name = format!("qemu-system-{}", arch.rust());
        if let Some(program) = toolchain::on_path(&name) {
            return Ok(Self { arch, program, unpacked: None });
        }
        let package = match arch {
            Arch::X86_64 => "qemu-system-x86",
            Arch::Aarch64 => "qemu-system-arm",
        };
        let folder = debian::cache("qemu")?.join(package);
        if !folder.is_dir() {
            Apt::Own.unpack_whole(&[package], &folder)?;
        }
        let program = folder.join("usr/bin").join(&name);
        if !program.is_file() {
            bail!("{name} is not in the packages that were fetched: install it");
        }
        Ok(Self { arch, program, unpacked: Some(folder) })
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.program);
        if let Some(folder) = &self.unpacked {
            command.env("LD_LIBRARY_PATH", folder.join("usr/lib").join(Arch::own()?.gnu()));
            for files in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(folder.join(files));
            }
        }
        Ok(command)
    }

    /// The machine it is, and where its kernel and its tests say what they say: on two lines.
    fn machine(&self, log: &Path) -> Vec<String> {
        let log = format!("file:{}", log.display());
        let words: &[&str] = match self.arch {
            // The microvm machine hangs at random.
            Arch::X86_64 => &["-M", "pc", "-cpu", "max", "-serial", &log, "-serial", "stdio"],
            // It has one serial line of its own. Signed pointers are half the work of emulating it, unless they are signed badly.
            Arch::Aarch64 => &[
                "-M",
                "virt",
                "-cpu",
                "max,pauth-impdef=on",
                "-serial",
                &log,
                "-device",
                "pci-serial,chardev=tests",
                "-chardev",
                "stdio,id=tests,signal=off",
            ],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// What the kernel is told: where to say what it says, and, for the first process, where that does.
    fn lines(&self) -> &'static str {
        match self.arch {
            Arch::X86_64 => "console=ttyS0 TESTS=/dev/ttyS1",
            Arch::Aarch64 => "console=ttyAMA0 TESTS=/dev/ttyS0",
        }
    }
}

/// A machine to run.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub accelerator: Accelerator,
    pub qemu: &'a Qemu,
    pub kernel: &'a Kernel,
    /// What it holds in memory.
    pub image: &'a Path,
    /// Where its log goes.
    pub work: &'a Path,
    /// When it is ended if it has not.
    pub deadline: Instant,
}

/// What stands in for a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The machine's own, shared by the kernel.
    Kvm,
    /// Software: ten to thirty times slower.
    Emulated,
}

impl Accelerator {
    /// What works here. That `/dev/kvm` is there says little: a machine with it can abort at once, stop in its first second, or hang.
    /// So this one is run with it, and must say something soon.
    pub fn find(trial: &Run<'_>) -> Result<Self> {
        let until = (Instant::now() + FIRST_WORD).min(trial.deadline);
        let kvm = Run { accelerator: Self::Kvm, deadline: until, ..*trial };
        let own = trial.kernel.arch == Arch::own()?;
        let works = own && Path::new("/dev/kvm").exists() && !run(&kvm)?.release.is_empty();
        Ok(if works { Self::Kvm } else { Self::Emulated })
    }

    fn words(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulated => "tcg,thread=multi",
        }
    }
}

/// Runs it to its end, showing what its tests print.
pub fn run(asked: &Run<'_>) -> Result<Outcome> {
    let log = asked.work.join(format!("{}.log", asked.kernel.name));
    File::create(&log)?;
    let errors = asked.work.join(format!("{}.qemu", asked.kernel.name));
    let mut qemu = asked.qemu.command()?;
    // No network, no disk: nothing of this machine is within its reach.
    qemu.args(["-accel", asked.accelerator.words(), "-nodefaults", "-no-user-config", "-no-reboot"]).args(SIZE);
    qemu.args(["-display", "none", "-monitor", "none", "-nic", "none"]).args(asked.qemu.machine(&log));
    qemu.arg("-kernel").arg(&asked.kernel.image).arg("-initrd").arg(asked.image);
    qemu.arg("-append").arg(format!("{} {COMMAND_LINE}", asked.qemu.lines()));
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
    let mut child = qemu.spawn().with_context(|| format!("run {}", workspace::shown(&qemu)))?;
    let mut outcome = Outcome::default();
    let mut result = None;
    let ended = listen(&mut child, asked, &log, |line| {
        println!("{}: {line}", asked.kernel.name);
        if let Some(release) = line.strip_prefix("kernel ") {
            outcome.release = release.to_owned();
        } else if let Some(code) = line.strip_prefix("result ") {
            result = code.parse::<i32>().ok();
        }
        note(line, &mut outcome.tests);
    });
    let _ = child.kill();
    let _ = child.wait();
    let text = read(&log);
    let why = match (ended, result) {
        (Some(why), _) => Some(why),
        (None, Some(0)) => None,
        (None, Some(code)) if outcome.tests.values().any(|passed| !passed) && code == 101 => None,
        (None, Some(code)) => Some(format!("the tests ended with exit code {code}")),
        (None, None) => Some(format!("the machine ended without a result {}", read(&errors).trim())),
    };
    let tail: Vec<&str> = text.lines().rev().take(SHOWN).collect();
    outcome.broken = why.map(|why| {
        let log: Vec<&str> = tail.into_iter().rev().collect();
        format!("{why}; the end of its log:\n{}", log.join("\n"))
    });
    Ok(outcome)
}

/// Shows what it prints and notes what passed, until it ends, or must be ended: then it says why.
fn listen(child: &mut Child, asked: &Run<'_>, log: &Path, mut each: impl FnMut(&str)) -> Option<String> {
    let lines = workspace::read_lines(child);
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => each(String::from_utf8_lossy(&line).trim_end()),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let text = read(log);
        if let Some(line) = text.lines().find(|line| BEYOND_HELP.iter().any(|words| line.contains(words))) {
            return Some(format!("the kernel said: {line}"));
        }
        if Instant::now() > asked.deadline {
            return Some("it did not end in time and was ended".to_owned());
        }
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// `test NAME … ok`: libtest-mimic pads the name. A test may print words of its own before the last.
fn note(line: &str, tests: &mut BTreeMap<String, bool>) {
    let Some((name, rest)) =
        line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ").or(rest.split_once("... ")))
    else {
        return;
    };
    let passed = match rest.rsplit(' ').next() {
        Some("ok") => true,
        Some("FAILED") => false,
        _ => return,
    };
    tests.insert(name.trim().to_owned(), passed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_came_to_is_read() {
        let mut tests = BTreeMap::new();
        for line in [
            "test kit::a         ... ok",
            "test kit::b ... FAILED",
            "running 2 tests",
            "test result: ok. 1 passed; 0 failed",
        ] {
            note(line, &mut tests);
        }
        assert_eq!(tests, BTreeMap::from([("kit::a".to_owned(), true), ("kit::b".to_owned(), false)]));
    }
}
