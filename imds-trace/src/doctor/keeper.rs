//! Does a container engine hold a listening socket only to keep its port for a container?
//!
//! Docker without its proxies, and Podman by conmon, listen on published ports so that nobody else does, and take no connection:
//! what comes there is meant to be redirected to the container before. A connection that is not gets no answer.

use std::path::Path;

/// Processes that keep ports, by the kernel's name for them.
const KEEPERS: [&str; 2] = ["dockerd", "conmon"];
/// A process that takes connections at such a socket, which it got of the engine.
const PROXY: &str = "docker-proxy";

/// The engine's process that keeps the port of a socket with this number, if one does.
pub fn of(inode: u64) -> Option<&'static str> {
    among(Path::new("/proc"), inode)
}

fn among(processes: &Path, inode: u64) -> Option<&'static str> {
    let link = format!("socket:[{inode}]");
    let holds = |process: &Path| {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|held| held.as_os_str() == link.as_str())
    };
    let mut keeper = None;
    for process in std::fs::read_dir(processes).ok()?.flatten() {
        let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let name = comm.trim_end();
        if name == PROXY && holds(&process.path()) {
            return None;
        }
        if let Some(known) = KEEPERS.into_iter().find(|known| *known == name)
            && keeper.is_none()
            && holds(&process.path())
        {
            keeper = Some(known);
        }
    }
    keeper
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_port_that_an_engine_keeps_is_not_taken_for_one_that_is_served() {
        let proc = std::env::temp_dir().join(format!("imds-trace-keeper-{}", std::process::id()));
        let process = |pid: &str, comm: &str, inodes: &[u64]| {
            std::fs::create_dir_all(proc.join(pid).join("fd")).expect("a folder");
            std::fs::write(proc.join(pid).join("comm"), format!("{comm}\n")).expect("a file");
            for inode in inodes {
                symlink(format!("socket:[{inode}]"), proc.join(pid).join("fd").join(inode.to_string()))
                    .expect("a link");
            }
        };
        process("100", "dockerd", &[7, 8]);
        process("101", "docker-proxy", &[8]);
        process("102", "conmon", &[9]);
        process("103", "python3", &[10]);
        let of = [7, 8, 9, 10, 11].map(|inode| among(&proc, inode));
        std::fs::remove_dir_all(&proc).expect("they are there");
        assert_eq!(of, [Some("dockerd"), None, Some("conmon"), None, None]);
    }
}
