//! Would a firewall rule drop, reject or redirect IMDS traffic? Read by the firewall's own tools, which change nothing.

pub mod arp;
mod elements;
pub mod fate;
pub mod holds;
pub mod ipset;
pub mod iptables;
mod mangle;
pub mod mark;
pub mod nft;
pub mod owner;
pub mod rules;
mod shortened;
mod tables;
pub mod walk;
mod wording;

#[cfg(test)]
mod tests;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rules::Chain;

/// Where the tools are if `PATH` does not say: users' often lacks the second half.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// Bytes of rules that are read of one namespace at most; a host with ten thousand has about two million.
const MAX_SAID: u64 = 16 << 20;
/// What a tool may take; ten thousand rules take it a second. For a set with a million elements nft takes more than a minute.
const PATIENCE: Duration = Duration::from_secs(8);
/// Why there are no rules of a tool that took longer. Then no other one is asked about that namespace.
const TOO_LONG: &str = "they take longer than 8 s";
/// Tables of nftables that are asked for one by one; where there are more, all are at once.
const MANY_TABLES: usize = 16;
/// The files of the machine's first process: the host's, where its processes are visible.
const HOSTS: &str = "/proc/1/root";

/// The rules of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    /// All chains that could be read.
    pub chains: Vec<Chain>,
    /// What could not be read, and why, or what would be needed.
    unread: Vec<(&'static str, String)>,
    /// The tools that answered.
    pub read_by: Vec<&'static str>,
}

impl Firewall {
    /// A sentence without an end about all that could not be read; `None` if everything was.
    pub fn unread(&self) -> Option<String> {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for (tool, why) in &self.unread {
            match reasons.iter_mut().find(|(known, _)| known == why) {
                Some((_, tools)) => tools.push((*tool).to_owned()),
                None => reasons.push((why, vec![(*tool).to_owned()])),
            }
        }
        let parts = reasons.into_iter().map(|(why, tools)| format!("{} {why}", tools.join(", ")));
        (!self.unread.is_empty()).then(|| parts.collect::<Vec<_>>().join("; "))
    }

    /// Has a tool taken too long?
    fn gave_up(&self) -> bool {
        self.unread.iter().any(|(_, why)| why.contains(TOO_LONG))
    }

    /// Reads what `name`, a tool's saving half, says of the rules that `tool` shows.
    fn iptables(&mut self, name: &'static str, tool: &'static str, path: &Tool, theirs: &mut Vec<(String, String)>) {
        match run(path, &[]) {
            Ok(said) => {
                let incompatible = iptables::incompatible(&said);
                let chains = iptables::read(&said, tool).into_iter();
                for chain in chains.filter(|chain| !incompatible.contains(&chain.table)) {
                    if !name.contains("legacy") {
                        theirs.push((chain.family.clone(), chain.table.clone()));
                    }
                    self.chains.push(chain);
                }
                if !self.read_by.contains(&tool) {
                    self.read_by.push(tool);
                }
            }
            Err(why) => self.unread.push((name, format!("could not read the rules ({why})"))),
        }
    }
}

impl Firewall {
    /// Reads the tables that iptables did not tell of in its own words, which hold more.
    fn nft(&mut self, nft: &Tool, theirs: &[(String, String)]) {
        let mut read = || -> Result<(), String> {
            let tables = run(nft, &["-j", "list", "tables"]).map_err(could)?;
            let tables = nft::tables(&tables).map_err(understood)?;
            let others: Vec<_> = tables.into_iter().filter(|table| !theirs.contains(table)).collect();
            let lists: Vec<Vec<&str>> = match others.len() {
                0..=MANY_TABLES => others.iter().map(|(family, table)| vec!["list", "table", family, table]).collect(),
                _ => vec![vec!["list", "ruleset"]],
            };
            for list in lists {
                let listed = listed(nft, &list)?;
                let iptables_told =
                    |chain: &rules::Chain| theirs.contains(&(chain.family.clone(), chain.table.clone()));
                let chains = listed.into_iter().map(|listed| listed.chain);
                self.chains.extend(chains.filter(|chain| !iptables_told(chain)));
            }
            // Rules that ask a set are in iptables' tables if somebody added them with nft.
            if !theirs.is_empty() && !tables::no_sets() {
                for (family, table) in theirs {
                    shortened::complete(&mut self.chains, listed(nft, &["list", "table", family, table])?);
                }
            }
            Ok(())
        };
        match read() {
            Ok(()) => self.read_by.push("nftables"),
            Err(why) => self.unread.push(("nft", why)),
        }
    }
}

fn understood(error: serde_json::Error) -> String {
    format!("says what cannot be understood ({error})")
}

fn could(why: String) -> String {
    format!("could not read the rules ({why})")
}

/// What nft says when it is asked for a list.
fn listed(nft: &Tool, list: &[&str]) -> Result<Vec<nft::Listed>, String> {
    let with = |option| std::iter::once(option).chain(list.iter().copied()).collect::<Vec<_>>();
    let json = run(nft, &with("-j")).map_err(could)?;
    // Only the text says of every nft which tables are dormant. The elements of sets are in the JSON; a tool that cannot leave them out here is older than 2019.
    let worded = run(nft, &[&["-t"][..], &with("-a")].concat()).or_else(|_| run(nft, &with("-a"))).map_err(could)?;
    nft::listed(&json, &worded).map_err(understood)
}

/// Names of one family's tools: with the kernel's nf_tables, with its older tables, and where there is only one.
const SAVERS: [[(&str, &str); 3]; 2] = [
    [("iptables-nft-save", "iptables"), ("iptables-legacy-save", "iptables-legacy"), ("iptables-save", "iptables")],
    [
        ("ip6tables-nft-save", "ip6tables"),
        ("ip6tables-legacy-save", "ip6tables-legacy"),
        ("ip6tables-save", "ip6tables"),
    ],
];

/// Reads the rules of the calling thread's network namespace.
pub fn read() -> Firewall {
    let mut firewall = Firewall::default();
    let mut theirs = Vec::new();
    let nf_tables = nf_tables_is_there() && !tables::none();
    for savers in SAVERS {
        let [nft, legacy, either] = savers.map(|(name, _)| find(name));
        let old = legacy_tables(savers[0].1);
        let neither = nft.is_none() && legacy.is_none();
        if old && legacy.is_none() && either.is_none() {
            let why = "is not there to read rules that are: install the package iptables";
            firewall.unread.push((savers[2].0, why.into()));
        }
        let wanted = [nft.filter(|_| nf_tables), legacy.filter(|_| old), either.filter(|_| neither)];
        for ((name, tool), path) in savers.into_iter().zip(wanted) {
            if let Some(path) = path
                && !firewall.gave_up()
            {
                firewall.iptables(name, tool, &path, &mut theirs);
            }
        }
    }
    if firewall.gave_up() {
        return firewall;
    }
    match find("nft").filter(|_| nf_tables) {
        Some(nft) => firewall.nft(&nft, &theirs),
        None if nf_tables => firewall.unread.push(("nft", "is not there: install the package nftables".into())),
        None => {}
    }
    if ipset::wanted(&firewall.chains) {
        match find("ipset").map(|path| run(&path, &["save"])) {
            Some(Ok(said)) => ipset::resolve(&mut firewall.chains, &ipset::read(&said)),
            Some(Err(why)) => firewall.unread.push(("ipset", format!("could not read the sets ({why})"))),
            None => firewall.unread.push(("ipset", "is not there to read sets that rules name".into())),
        }
    }
    firewall
}

/// Is nf_tables in the kernel, now? Asking its tools would load it where it is not, and there are no rules then.
fn nf_tables_is_there() -> bool {
    if Path::new("/sys/module/nf_tables").exists() {
        return true;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let built_in = Path::new("/lib/modules").join(release.trim()).join("modules.builtin");
    std::fs::read_to_string(built_in).map_or(true, |list| list.contains("/nf_tables.ko"))
}

/// Has the kernel tables that only a legacy iptables can show? Also if we may not know.
fn legacy_tables(tool: &str) -> bool {
    let list = if tool == "iptables" { "ip_tables_names" } else { "ip6_tables_names" };
    match std::fs::read_to_string(Path::new("/proc/thread-self/net").join(list)) {
        Ok(names) => !names.trim().is_empty(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// A tool, and the root of the files that it is among.
#[derive(Clone, Debug)]
struct Tool {
    path: PathBuf,
    root: Option<&'static str>,
}

fn find(name: &str) -> Option<Tool> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let mut paths = folders.chain(FOLDERS.iter().map(PathBuf::from)).map(|folder| folder.join(name));
    let own = paths.find(|path| path.is_file()).map(|path| Tool { path, root: None });
    // In a container with the host's processes, of whose files it has few.
    let hosts = || {
        let mut paths = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
        let there = |path: &PathBuf| path.strip_prefix("/").is_ok_and(|path| Path::new(HOSTS).join(path).is_file());
        paths.find(there).map(|path| Tool { path, root: Some(HOSTS) })
    };
    own.or_else(hosts)
}

/// What a tool says; the error is what it complains of. Who owns a container's namespace decides how much there is to say.
fn run(tool: &Tool, words: &[&str]) -> Result<String, String> {
    log::debug!("running {} {}", tool.path.display(), words.join(" "));
    let mut command = Command::new(&tool.path);
    if let Some(root) = tool.root {
        // SAFETY: between fork and exec nothing is called but chroot(2) and chdir(2), which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::chroot(root)?;
                Ok(nix::unistd::chdir("/")?)
            });
        }
    }
    command.args(words).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (told, heard) = mpsc::channel();
    let (said, complained, in_time) = std::thread::scope(|scope| {
        // Both pipes at once: a tool that finds one full would wait.
        let complained = scope.spawn(|| bounded(stderr));
        let said = scope.spawn(move || {
            let said = bounded(stdout);
            let _ = told.send(());
            said
        });
        let in_time = heard.recv_timeout(PATIENCE).is_ok();
        if !in_time {
            let _ = child.kill();
        }
        (said.join().unwrap_or_default(), complained.join().unwrap_or_default(), in_time)
    });
    if !in_time {
        let _ = child.wait();
        return Err(TOO_LONG.to_owned());
    }
    if said.len() as u64 > MAX_SAID {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("they are more than {} MiB", MAX_SAID >> 20));
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        // iptables-nft-save says there which tables it cannot show in full.
        let incompatible = complained.lines().filter(|line| line.contains("incompatible"));
        return Ok(incompatible.fold(said, |said, line| said + "# " + line + "\n"));
    }
    let denied = ["permitted", "denied", "must be root"].iter().any(|word| complained.contains(word));
    match complained.lines().next() {
        _ if denied => Err("needs root".into()),
        Some(line) => Err(line.to_owned()),
        None => Err(status.to_string()),
    }
}

/// One byte more than may be, at most: that tells that there was more.
fn bounded(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.take(MAX_SAID + 1).read_to_end(&mut bytes);
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
