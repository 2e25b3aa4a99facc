//! How does a test run the tracer as a service, under a real systemd, without the machine's own?
//!
//! systemd is started as the first process of namespaces of its own, on top of a copy-on-write view of this machine's files: what it
//! and its services write is gone with it. It shares the runner host's network, and the kernel.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::hierarchy;
use crate::children;
use crate::docker::next;
use crate::expect::wait_until;
use crate::host::RunnerHost;

/// What systemd calls the service.
pub const UNIT: &str = "imds-trace.service";

const UP: Duration = Duration::from_secs(30);

/// Words of systemctl that wait for a service at most.
const PATIENCE: &str = "40";

/// Makes the view and becomes its systemd. `$1`: a folder to do it in, `$2`: the program, `$3`: the unit, `$4`: a drop-in,
/// `$5`: a cgroup of version 2 for all of it.
///
/// Of this machine's units none is started: the targets that services ask for are empty, and there are no generators.
const BEGIN: &str = r#"
set -e
echo $$ > "$5/cgroup.procs"
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child --propagation private sh -ec '
    mount -t tmpfs -o mode=755 lab "$1"
    mkdir "$1/upper" "$1/work" "$1/root"
    mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" lab "$1/root"
    cp "$2" "$1/root/usr/bin/imds-trace"
    cd "$1/root"
    units=usr/lib/systemd/system
    cp "$3" $units/imds-trace.service
    rm -rf $units/*.wants $units/*.d etc/systemd/system usr/lib/systemd/system-generators etc/systemd/system-generators
    mkdir -p etc/systemd/system/imds-trace.service.d
    cp "$4" etc/systemd/system/imds-trace.service.d/lab.conf
    for target in lab sysinit basic; do
        printf "[Unit]\nDefaultDependencies=no\n" > etc/systemd/system/$target.target
    done
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 run run
    mount -t tmpfs tmp tmp
    mount --rbind /dev dev
    mkdir run/before
    pivot_root . run/before
    umount -l run/before
    exec env container=lab /lib/systemd/systemd --unit=lab.target --log-target=null
' sh "$1" "$2" "$3" "$4"
"#;

/// A systemd with the tracer's unit; dropping it kills both.
pub struct Services {
    unshare: Child,
    /// systemd, as seen from here.
    pid: u32,
    cgroup: PathBuf,
    dir: PathBuf,
}

impl Services {
    /// Starts systemd in the runner host's network. `drop_in` is what the test sets differently.
    pub fn start(host: &RunnerHost, program: &Path, drop_in: &str) -> Result<Services> {
        let name = format!("tracer-service-{}", next());
        let dir = host.dir().join(&name);
        std::fs::create_dir_all(dir.join("machine"))?;
        let conf = dir.join("lab.conf");
        // Without a journal, what is said goes to files.
        let said = "[Service]\nStandardOutput=file:/var/lib/said.stdout\nStandardError=file:/var/lib/said.stderr\n";
        std::fs::write(&conf, format!("{said}{drop_in}\n"))?;
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/dist").join(UNIT);
        let cgroup = hierarchy()?.join(format!("imdslab-{}-{name}", std::process::id()));
        std::fs::create_dir(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        let mut command = host.runner().command("sh");
        command.args(["-c", BEGIN, "sh"]).arg(dir.join("machine")).arg(program).arg(unit).arg(conf).arg(&cgroup);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(dir.join("systemd.txt"))?);
        let unshare = children::spawn(command).context("start systemd")?;
        let mut services = Services { unshare, pid: 0, cgroup, dir };
        let up = wait_until("systemd to be up", UP, || {
            let child = services.first_child()?;
            services.pid = child;
            services.systemctl(&["is-active", "lab.target"]).ok().map(drop)
        });
        match up {
            Ok(()) => Ok(services),
            Err(late) => bail!(
                "{late}; it said: {}",
                std::fs::read_to_string(services.dir.join("systemd.txt")).unwrap_or_default().trim()
            ),
        }
    }

    fn first_child(&self) -> Option<u32> {
        let pid = self.unshare.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// `systemctl` with these words; what it says.
    pub fn systemctl(&self, words: &[&str]) -> Result<String> {
        let mut command = children::command("timeout");
        command.args([PATIENCE, "nsenter", "--all", "--target", &self.pid.to_string(), "systemctl"]).args(words);
        children::output(command)
    }

    /// A property of the tracer's service, e.g. `StatusText`.
    pub fn property(&self, name: &str) -> Result<String> {
        Ok(self.systemctl(&["show", "--value", "--property", name, UNIT])?.trim().to_owned())
    }

    /// The tracer's process, as seen from here.
    pub fn tracer(&self) -> Result<u32> {
        let inside = self.property("MainPID")?;
        let file = format!("{}/cgroup.procs", self.cgroup.join("system.slice").join(UNIT).display());
        let pids = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        let is_it = |pid: &&str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().last() == Some(&inside))
        };
        let pid = pids.lines().find(is_it).context("the service has no main process")?;
        pid.parse().context("read a pid")
    }

    /// A file as the service sees it, from its root on.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{path}", self.pid))
    }

    /// What the tracer said on stderr.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.file("var/lib/said.stderr")).unwrap_or_default()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // `--kill-child` ends systemd, and the kernel everything below it.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = wait_until("the service's cgroups to be empty", Duration::from_secs(10), || {
            remove_below(&self.cgroup).ok()
        });
    }
}

/// Removes cgroups from the lowest up.
fn remove_below(cgroup: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_below(&entry.path())?;
    }
    std::fs::remove_dir(cgroup)
}
