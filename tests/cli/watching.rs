//! Does `watch` say what it lacks, before it touches anything?

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use imds_trace_tests::{Namespace, children, tracer};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Outcome;
use crate::program::{Folder, Ran, finish, run};

crate::tests![not_being_root_is_one_sentence_that_names_the_capabilities];

/// What only root can try.
pub const TESTS_OF_ROOT: &[crate::Test] = &[
    ("an_interface_that_is_not_there_is_one_sentence", an_interface_that_is_not_there_is_one_sentence),
    ("files_that_cannot_be_made_are_one_sentence", files_that_cannot_be_made_are_one_sentence),
    (
        "a_place_where_no_recording_can_be_is_refused_before_anything_is_attached",
        a_place_where_no_recording_can_be_is_refused_before_anything_is_attached,
    ),
    ("a_hostile_interface_name_reaches_no_terminal_raw", a_hostile_interface_name_reaches_no_terminal_raw),
];

fn not_being_root_is_one_sentence_that_names_the_capabilities() -> Outcome {
    let folder = Folder::new()?;
    // Where the program was built, nobody else may be able to go.
    let copy = folder.path().join("imds-trace");
    std::fs::copy(tracer::program()?, &copy)?;
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    for words in [&["watch", "--for", "1s"][..], &["run", "--", "echo", "it ran"], &["probe", "web"]] {
        let ran = if nix::unistd::geteuid().is_root() {
            let mut nobody = children::command("setpriv");
            nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]).arg(&copy);
            nobody.args(words);
            finish_quietly(nobody)?
        } else {
            run(words)?
        };
        ran.expect_sentence(&[words[0], "CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "root"])?;
    }
    Ok(())
}

fn finish_quietly(mut command: std::process::Command) -> Result<Ran> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command)
}

/// Runs `watch` in a network namespace of its own, in which there is nothing but what `ip` is told to make.
fn watch(name: &str, links: &[&str], words: &[&str]) -> Result<Ran> {
    let namespace = Namespace::create(&format!("imdslab-{}-{name}", std::process::id()))?;
    for link in links {
        namespace.run("ip", &["link", "add", "name", link, "type", "bridge"])?;
    }
    let mut command = namespace.command(tracer::program()?);
    command.args(["watch", "--docker-host", "unix:///no/such/engine.sock"]).args(words);
    finish_quietly(command)
}

fn an_interface_that_is_not_there_is_one_sentence() -> Outcome {
    watch("interface", &[], &["--interface", "nosuch0"])?.expect_sentence(&["--interface", "nosuch0"])?;
    Ok(())
}

fn files_that_cannot_be_made_are_one_sentence() -> Outcome {
    for (option, path) in
        [("--record", "/no/such/folder/x"), ("--output", "/no/such/folder/y"), ("--ready-file", "/no/such/z")]
    {
        let value = if option == "--output" { format!("json={path}") } else { path.to_owned() };
        let ran = watch("files", &["br0"], &["--for", "1s", option, &value])?;
        ran.expect_code(2)?;
        let wrong: Vec<&str> = ran.stderr.lines().filter(|line| line.contains(path)).collect();
        if wrong.len() != 1 || !wrong[0].contains(option) {
            return Err(format!("not one sentence about {option}: {ran:?}").into());
        }
    }
    Ok(())
}

/// A file system of our own; dropping it takes it away.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf, options: &str, flags: MsFlags) -> Result<Self> {
        std::fs::create_dir(&path)?;
        mount(Some("tmpfs"), &path, Some("tmpfs"), flags, Some(options)).context("mount a tmpfs")?;
        Ok(Self(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn a_place_where_no_recording_can_be_is_refused_before_anything_is_attached() -> Outcome {
    let folder = Folder::new()?;
    let at = |name: &str| folder.path().join(name);
    let full = Disk::new(at("full"), "size=4k", MsFlags::empty())?;
    // It takes what it can.
    let _ = std::fs::write(full.0.join("all"), [0; 8192]);
    let nothing_more = Disk::new(at("no-inodes"), "nr_inodes=1", MsFlags::empty())?;
    let read_only = Disk::new(at("read-only"), "", MsFlags::MS_RDONLY)?;
    std::fs::write(at("file"), "")?;
    let ready = at("ready");
    for (path, why) in [
        (full.0.join("x.jsonl"), "No space left"),
        (nothing_more.0.join("x.jsonl"), "No space left"),
        (read_only.0.join("x.jsonl"), "Read-only file system"),
        (at("missing/x.jsonl"), "No such file"),
        (at("file/x.jsonl"), "Not a directory"),
        (folder.path().to_owned(), "it is a folder"),
        (at(&format!("{}.jsonl", "x".repeat(230))), "too long"),
    ] {
        let (path, ready) = (path.display().to_string(), ready.display().to_string());
        // With -v what is attached would be told on stderr.
        let options = ["--for", "1s", "-v", "--record", &path, "--record-rotate", "64KiB", "--ready-file", &ready];
        watch("places", &["br0"], &options)?.expect_sentence(&["--record", &path, why])?;
        if Path::new(&ready).exists() {
            return Err(format!("{path}: it began").into());
        }
    }
    Ok(())
}

fn a_hostile_interface_name_reaches_no_terminal_raw() -> Outcome {
    let ran = watch("hostile", &["br\u{1b}[31mevil"], &["--for", "100ms", "-v", "--interface", "br*"])?;
    ran.expect_code(0)?;
    if !ran.stderr.contains("evil") || ran.stderr.contains('\u{1b}') || ran.stdout.contains('\u{1b}') {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}
