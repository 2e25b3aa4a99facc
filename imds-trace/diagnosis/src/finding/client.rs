//! Which requests are one client's? Those of one process, and of the steps of one script; where nothing tells processes apart, those of
//! one container that follow each other closely.
//!
//! Refuses to take two programs for one client because the same supervisor started both.

use std::time::Duration;

use crate::identity::{Attribution, Process, Subject};
use crate::net::Timestamp;

/// Shells that a step of a script may be below: subshells and pipes are shells below shells.
const MAX_SHELLS: usize = 3;
/// Names of shells.
const SHELLS: [&str; 9] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "busybox"];
/// Processes that start others which have nothing to do with each other, by the beginnings of their names.
const STARTERS: [&str; 17] = [
    "systemd",
    "init",
    "containerd",
    "docker",
    "runc",
    "crun",
    "conmon",
    "crio",
    "podman",
    "tini",
    "dumb-init",
    "catatonit",
    "supervisor",
    "s6-",
    "runsv",
    "cron",
    "kubelet",
];
/// Those of them that put a process into a container: two that they put there may be two steps of a script outside it.
const RUNTIMES: [&str; 6] = ["containerd", "docker", "runc", "crun", "conmon", "podman"];
/// Steps of a script follow each other within this time.
pub(super) const NEXT_STEP: Duration = Duration::from_secs(60);
/// Where only the container is known, a request follows a token request within the time that that one took, or this.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);

/// A task that waits less for an answer and does something else meanwhile has not given up: the least patient client seen is Go v2,
/// which waits 250 ms for a connection.
const GIVES_UP_AFTER: Duration = Duration::from_millis(250);

/// Under what a request is remembered and looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// One process, by its number.
    Process(u32),
    /// What is below one process, a shell or what called it.
    Below(u32),
    /// A container, or an address.
    Place(Subject),
}

/// What ties two requests to one client, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tie {
    /// The same process made both.
    Process,
    /// A shell is above both, or made one of them and is above the other.
    Shell,
    /// So is another program.
    Caller,
    /// Only that they come from one container or address.
    Place,
}

/// Where to look for a request that belongs to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sought {
    pub key: Key,
    pub tie: Tie,
    /// What is found there is below the process that looks: a script's last command may run in the shell's own process.
    below: bool,
}

/// Who made a request, as far as it counts here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Maker {
    /// Process and thread.
    task: Option<(u32, u32)>,
    started: Option<Timestamp>,
    /// Is it known what is above it?
    placed: bool,
    /// Was it put into its container from outside?
    entered: bool,
    /// What it calls itself.
    comm: Option<Comm>,
}

/// A process's name as the kernel keeps it.
type Comm = [u8; 16];

fn comm(name: &str) -> Comm {
    let mut comm = Comm::default();
    comm.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
    comm
}

impl Maker {
    pub(super) fn of(who: &Attribution) -> Self {
        let process = who.process.as_ref();
        let parent = process.and_then(|process| process.ancestors.first());
        Self {
            task: process.map(|process| (process.pid, process.tid)),
            started: process.and_then(|process| process.started),
            placed: parent.is_some(),
            entered: parent.is_some_and(|parent| RUNTIMES.iter().any(|name| parent.comm.starts_with(name))),
            comm: process.map(|process| comm(&process.comm)),
        }
    }

    /// Is no process known?
    pub(super) fn is_nobody(&self) -> bool {
        self.task.is_none()
    }

    /// Is it a process of which nobody knows what is above it?
    pub(super) fn is_adrift(&self) -> bool {
        self.task.is_some() && !self.placed
    }
}

/// The processes above one that may be one client with it: the shells, and what called them.
fn above(process: &Process) -> Vec<(u32, Tie)> {
    let mut found = Vec::new();
    for ancestor in process.ancestors.iter().take(MAX_SHELLS + 1) {
        let is_starter = ancestor.pid <= 1 || STARTERS.iter().any(|starter| ancestor.comm.starts_with(starter));
        match (is_shell(&ancestor.comm), is_starter) {
            (true, false) => found.push((ancestor.pid, Tie::Shell)),
            (false, false) => {
                found.push((ancestor.pid, Tie::Caller));
                break;
            }
            (_, true) => break,
        }
    }
    found
}

fn is_shell(comm: &str) -> bool {
    // A login shell has a dash before its name.
    SHELLS.contains(&comm.strip_prefix('-').unwrap_or(comm))
}

/// Under what a request of this client is remembered, and by what it is tied to what else is there.
pub(super) fn keys(who: &Attribution) -> Vec<(Key, Tie)> {
    let mut keys = Vec::new();
    if let Some(process) = &who.process {
        keys.push((Key::Process(process.pid), Tie::Process));
        keys.extend(above(process).into_iter().map(|(pid, tie)| (Key::Below(pid), tie)));
    }
    keys.push((Key::Place(who.subject()), Tie::Place));
    keys
}

/// Where to look for other requests of the client that made one, the strongest ties first.
pub(super) fn sought(who: &Attribution) -> Vec<Sought> {
    let found = |(key, tie)| Sought { key, tie, below: false };
    let mut sought: Vec<Sought> = keys(who).into_iter().map(found).collect();
    if let Some(process) = &who.process {
        // What it was above the other one is remembered there.
        sought.push(Sought { key: Key::Below(process.pid), tie: Tie::Shell, below: true });
        sought.extend(above(process).into_iter().map(|(pid, tie)| found((Key::Process(pid), tie))));
    }
    sought.sort_by_key(|sought| sought.tie);
    sought
}

/// A request, and whose it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub maker: Maker,
    pub asked: Timestamp,
    /// When its client had its answer, or ended its side; `None` if that was not seen.
    pub over: Option<Timestamp>,
    /// When all of it was over; where its end was not seen, when it had been quiet for long.
    pub closed: Option<Timestamp>,
}

/// Is `later` what the client of `made` did next? Gives whether that is sure. `tie` is the weakest one between them.
pub(super) fn goes_on(made: &Made, later: &Maker, asked: Timestamp, tie: Tie, found: &Sought) -> Option<bool> {
    let started_after = |over| later.started.map(|started| started >= over);
    let over = match (made.over.or(made.closed.filter(|closed| *closed <= asked)), tie) {
        (Some(over), _) if over <= asked => over,
        // A task that goes on, and was not seen closing its connection; one that closed it later was still waiting.
        (None, Tie::Process) if made.maker.task == later.task => {
            return (asked.since(made.asked) >= GIVES_UP_AFTER).then_some(false);
        }
        _ => return None,
    };
    let gap = asked.since(over);
    // Two programs of one shell may have nothing to do with each other.
    let is_same_program = made.maker.comm == later.comm;
    match tie {
        // A number that was given to another process since.
        Tie::Process if made.maker.started != later.started => None,
        // One that lives long asks for many.
        Tie::Process => Some(gap < NEXT_STEP),
        Tie::Shell | Tie::Caller if gap >= NEXT_STEP => None,
        Tie::Shell | Tie::Caller => match started_after(over) {
            _ if found.below => Some(tie == Tie::Shell && is_same_program),
            // What was there before the other one was over is no next step: both were started side by side.
            Some(false) => None,
            Some(true) => Some(tie == Tie::Shell && is_same_program),
            None => Some(false),
        },
        Tie::Place => {
            let patience = over.since(made.asked).max(LEAST_PATIENCE);
            let is_unknown = made.maker.task.is_none() || later.task.is_none();
            let follows = made.maker.entered && later.entered && started_after(over) != Some(false);
            (gap <= patience && (is_unknown || follows)).then_some(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker(pid: u32, name: &str, started: u64) -> Maker {
        let started = Some(Timestamp(started));
        Maker { task: Some((pid, pid)), started, placed: true, entered: false, comm: Some(comm(name)) }
    }

    fn made(maker: Maker) -> Made {
        let over = Some(Timestamp(2_000_000_000));
        Made { maker, asked: Timestamp(1_000_000_000), over, closed: over }
    }

    #[test]
    fn two_programs_of_one_shell_are_one_client_perhaps() {
        let found = Sought { key: Key::Below(7), tie: Tie::Shell, below: false };
        let asked = Timestamp(3_000_000_000);
        let goes_on =
            |comm| goes_on(&made(maker(8, "curl", 0)), &maker(9, comm, 2_500_000_000), asked, Tie::Shell, &found);
        assert_eq!(goes_on("curl"), Some(true));
        assert_eq!(goes_on("legacy-agent"), Some(false));
    }

    #[test]
    fn a_process_that_asks_minutes_later_may_have_gone_on() {
        let found = Sought { key: Key::Process(8), tie: Tie::Process, below: false };
        let daemon = maker(8, "daemon", 0);
        let asked =
            |seconds: u64| goes_on(&made(daemon), &daemon, Timestamp(seconds * 1_000_000_000), Tie::Process, &found);
        assert_eq!(asked(3), Some(true));
        assert_eq!(asked(600), Some(false));
    }
}
