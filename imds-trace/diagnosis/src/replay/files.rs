//! Which files are meant, which belong together, and is one of them missing?

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use wildmatch::WildMatch;

use crate::capture::{self, Format, Nothing};
use crate::net::BootTime;
use crate::printable::{printable, shell_word};
use crate::progress::Counted;
use crate::recording::{self, Header, Previous, Reader, digest_of};
use crate::unpack::Input;

/// Bytes of a name in a sentence.
const MAX_SHOWN: usize = 256;
/// Files in a command that is to be typed at most.
const MAX_TYPED: usize = 8;
/// Characters of a pattern.
const WILD: [char; 2] = ['*', '?'];

/// A file that is meant.
pub struct Given {
    /// As it was given.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What is in it, if it can be read only once.
    pub stream: Option<Input>,
    /// Is it a capture, as its first bytes say?
    pub is_capture: bool,
    /// Why there is nothing in it, if so.
    pub nothing: Option<Nothing>,
}

/// The files that are meant. One whose format is known, and not read, is an error.
pub fn given(paths: &[PathBuf]) -> anyhow::Result<Vec<Given>> {
    named(paths)?.into_iter().map(look).collect()
}

/// Looks at a file's first bytes.
fn look(path: PathBuf) -> anyhow::Result<Given> {
    let name = path.display().to_string();
    let is_stdin = name == "-";
    // A pipe can be read only once.
    let once = is_stdin || !fs::metadata(&path).with_context(|| name.clone())?.is_file();
    let input: Input = if is_stdin {
        Box::new(Counted(io::stdin()))
    } else {
        Box::new(io::BufReader::new(File::open(&path).with_context(|| name.clone())?))
    };
    let format = capture::open(input).with_context(|| name.clone())?;
    let (is_capture, stream, nothing) = match format {
        Format::Capture(input) => (true, Some(input), None),
        Format::Other(input) => (false, Some(input), None),
        Format::Nothing(nothing) => (false, None, Some(nothing)),
        Format::Unread(unread) => bail!("{name}: {}", unread.told(&name)),
    };
    Ok(Given { name, path, stream: stream.filter(|_| once), is_capture, nothing })
}

/// Are they all captures, or empty? An error says which one is not, and what to type instead.
pub fn are_captures(given: &[Given]) -> anyhow::Result<()> {
    let (mut captures, mut recordings) = (Vec::new(), Vec::new());
    let mut damaged = None;
    for file in given.iter().filter(|file| file.nothing.is_none()) {
        if file.is_capture {
            captures.push(file.name.as_str());
        } else if let Some(why) = why_no_recording(file) {
            damaged = damaged.or(Some((file.name.as_str(), why)));
        } else {
            recordings.push(file.name.as_str());
        }
    }
    if let Some((name, why)) = damaged {
        bail!("{name}: {why}{}", to_type([&captures, &recordings]));
    }
    if let ([capture, ..], [recording, ..]) = (&captures[..], &recordings[..]) {
        let type_this = to_type([&captures, &recordings]);
        bail!("{capture} is a capture, and {recording} is a recording: each kind is told by itself{type_this}");
    }
    Ok(())
}

/// Why a file is no recording; `None` if it is one, or can be read only once.
fn why_no_recording(file: &Given) -> Option<recording::Error> {
    if file.stream.is_some() {
        return None;
    }
    let input = File::open(&file.path).and_then(recording::open);
    input.map_err(|error| recording::Error::Io { line: 1, error }).and_then(Reader::new).err()
}

/// What to type to be told what others say of which one or more spoil it; nothing if there are no others.
pub fn without(spoilt: &[&str], names: &[String]) -> String {
    let others: Vec<&str> = names.iter().map(String::as_str).filter(|name| !spoilt.contains(name)).collect();
    to_type([&others, &[]])
}

/// What to type to be told of these files and, apart, of those.
fn to_type(kinds: [&[&str]; 2]) -> String {
    let kinds = kinds.iter().filter(|names| !names.is_empty());
    let commands = kinds.map(|names| match names {
        names if names.len() > MAX_TYPED => {
            format!("imds-trace replay {} ... (all {} of them)", shell_word(names[0]), names.len())
        }
        names => {
            let names: Vec<String> = names.iter().map(|name| shell_word(name)).collect();
            format!("imds-trace replay {}", names.join(" "))
        }
    });
    let commands: Vec<String> = commands.collect();
    if commands.is_empty() {
        String::new()
    } else {
        format!("; with the same options type  {}", commands.join("  and  "))
    }
}

/// How many bytes they have, if all are files that end.
pub fn bytes(given: &[Given]) -> Option<u64> {
    let length = |file: &Given| fs::metadata(&file.path).ok().filter(fs::Metadata::is_file).map(|about| about.len());
    given.iter().map(length).sum()
}

/// A file, opened as far as its header.
pub struct Source {
    /// As it was given.
    pub name: String,
    /// What it says.
    pub reader: Reader<Box<dyn BufRead>>,
    /// What is missing before it, if it goes on from a file that is not there, or not that one any more.
    pub missing: Option<String>,
    path: Option<PathBuf>,
}

impl Source {
    /// Its first line.
    pub fn header(&self) -> &Header {
        &self.reader.header
    }

    /// What somebody may want to know who wants to know more.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(why) = self.reader.why_unverified() {
            notes.push(format!("{}: {why}, not chained: it cannot be verified", self.name));
        }
        if let Some(previous) = self.header().chain.previous.as_ref().filter(|_| self.missing.is_none()) {
            notes.push(format!("{}: goes on from {} (SHA-256 {})", self.name, previous.file, previous.digest));
        }
        notes
    }

    fn wall(&self) -> i128 {
        i128::from(self.header().boot_time.0) + i128::from(self.header().at.0)
    }

    /// Are both of one run?
    fn is_of_one_run(&self, other: &Self) -> bool {
        let key = |source: &Self| {
            let header = source.header();
            header.chain.run.map(|run| (run, header.chain.boot.clone(), header.boot_time.0))
        };
        key(self).is_some() && key(self) == key(other)
    }
}

/// The files of one run, in the order of their time; never empty.
pub struct Run {
    /// The files.
    pub sources: Vec<Source>,
}

impl Run {
    /// The first file's header.
    pub fn header(&self) -> &Header {
        self.sources[0].header()
    }

    /// What makes wall-clock time of its times.
    pub fn boot_time(&self) -> BootTime {
        self.header().boot_time
    }
}

/// The runs of one host, in the order in which they began; never empty.
pub struct Host {
    /// Its instance's id, or what its first file is called.
    pub name: String,
    /// The runs.
    pub runs: Vec<Run>,
}

impl Host {
    fn of(run: Run) -> Self {
        let file = &run.sources[0].name;
        let stem = Path::new(file).file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
        let name = run.header().instance.as_deref().or(stem).unwrap_or(file).to_owned();
        Self { name, runs: vec![run] }
    }

    /// Can a run that began later be of this host? What is the same address, process or interface on two is not the same.
    fn has(&self, run: &Run) -> bool {
        let differ = |one: &Option<String>, other: &Option<String>| one.is_some() && other.is_some() && one != other;
        self.runs.iter().all(|earlier| {
            let (one, other) = (earlier.header(), run.header());
            // A host that was started again had ended its earlier run by then.
            let last = earlier.sources.last().map_or(0, Source::wall);
            let overlap = differ(&one.chain.boot, &other.chain.boot) && i128::from(other.boot_time.0) < last;
            !differ(&one.instance, &other.instance) && !overlap
        })
    }

    /// Does something say that a run is of this host?
    fn knows(&self, run: &Run) -> bool {
        let same = |one: &Option<String>, other: &Option<String>| one.is_some() && one == other;
        self.runs.iter().any(|earlier| {
            let (one, other) = (earlier.header(), run.header());
            same(&one.instance, &other.instance) || same(&one.chain.boot, &other.chain.boot)
        })
    }
}

/// The hosts that these files are of, in the order in which their first runs began.
pub fn hosts(given: Vec<Given>) -> anyhow::Result<Vec<Host>> {
    let mut hosts: Vec<Host> = Vec::new();
    for run in runs(given)? {
        let known = hosts.iter().position(|host| host.has(&run) && host.knows(&run));
        match known.or_else(|| hosts.iter().position(|host| host.has(&run))) {
            Some(number) => hosts[number].runs.push(run),
            None => hosts.push(Host::of(run)),
        }
    }
    for number in 0..hosts.len() {
        let (before, rest) = hosts.split_at_mut(number);
        let host = &mut rest[0];
        chain(&mut host.runs);
        // Files in several folders may be called the same.
        if before.iter().any(|other| other.name == host.name) {
            host.name = host.runs[0].sources[0].name.clone();
        }
    }
    Ok(hosts)
}

/// The runs in these files, in the order in which they began.
fn runs(given: Vec<Given>) -> anyhow::Result<Vec<Run>> {
    let names: Vec<String> = given.iter().map(|file| file.name.clone()).collect();
    let mut sources = given.into_iter().map(|file| open(file, &names)).collect::<anyhow::Result<Vec<Source>>>()?;
    sources.sort_by_key(|source| (source.wall(), source.header().chain.number));
    let mut runs: Vec<Run> = Vec::new();
    for source in sources {
        let twins = runs.iter().map(|run| has_twin(run, &source)).collect::<anyhow::Result<Vec<bool>>>()?;
        if twins.contains(&true) {
            continue;
        }
        match runs.iter_mut().find(|run| run.sources[0].is_of_one_run(&source)) {
            Some(run) => run.sources.push(source),
            None => runs.push(Run { sources: vec![source] }),
        }
    }
    Ok(runs)
}

/// Is a file given that says the same, under whatever name? Then it is told once. Two that have one place in a run, and differ, are an error:
/// nobody knows which of them is right.
fn has_twin(run: &Run, source: &Source) -> anyhow::Result<bool> {
    for other in &run.sources {
        let (one, two) = (other.header(), source.header());
        let (Some(first), Some(second)) = (&other.path, &source.path) else { continue };
        if one.boot_time != two.boot_time || one.at != two.at || one.chain.number != two.chain.number {
            continue;
        }
        let digest = |path: &Path| digest_of(path).with_context(|| path.display().to_string());
        if digest(first)? == digest(second)? {
            crate::say!("imds-trace: {} is a copy of {}: it is told once", shown(&source.name), shown(&other.name));
            return Ok(true);
        }
        if other.is_of_one_run(source) {
            bail!(
                "{} and {} are both file {} of one run, and differ: give one of them",
                other.name,
                source.name,
                one.chain.number
            );
        }
    }
    Ok(false)
}

fn shown(name: &str) -> String {
    printable(name, MAX_SHOWN)
}

/// Looks whether each file goes on from the one before it.
fn chain(runs: &mut [Run]) {
    let mut earlier: Vec<PathBuf> = Vec::new();
    for run in runs {
        let mut last: Option<(u64, PathBuf)> = None;
        for (number, source) in run.sources.iter_mut().enumerate() {
            let before = source.reader.header.chain.previous.clone();
            let goes_on = before.and_then(|before| match &last {
                // Whatever they are called now.
                Some(last) => Some(follows(source, &before, last)),
                None => missing(&source.name, &before, &earlier),
            });
            last = source.path.clone().map(|path| (source.header().chain.number, path));
            match goes_on {
                Some(Err(why)) => source.missing = Some(why),
                Some(Ok(())) if number > 0 => source.reader.skip_repeated(),
                Some(Ok(())) | None => {}
            }
            earlier.extend(source.path.clone());
        }
    }
}

/// Why a file of a run does not go on from the one given before it, if it does not.
fn follows(source: &Source, before: &Previous, (number, path): &(u64, PathBuf)) -> Result<(), String> {
    let name = &source.name;
    match digest_of(path) {
        Ok(digest) if digest == before.digest => Ok(()),
        Ok(_) if number + 1 == source.header().chain.number => {
            Err(format!("{name}: the file before it, {}, is not as it was when it was rotated", path.display()))
        }
        Ok(_) => Err(format!("{name}: the file before it, {}, is missing", before.file)),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Why a file does not go on from the one that it names, which should be the last of its chain among those before it. `None` if no
/// other of its chain was given: that older ones were deleted, or are not asked for, is nothing wrong.
fn missing(name: &str, before: &Previous, earlier: &[PathBuf]) -> Option<Result<(), String>> {
    let stem = before.file.split('.').next().unwrap_or_default();
    let file_name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let last = earlier.iter().rev().find(|path| file_name(path).starts_with(stem))?;
    Some(match digest_of(last) {
        Ok(digest) if digest == before.digest => Ok(()),
        Ok(_) if file_name(last) == before.file => {
            Err(format!("{name}: the file before it, {}, is not as it was when it was rotated", before.file))
        }
        Ok(_) => Err(format!("{name}: the file before it, {}, is missing", before.file)),
        Err(error) => Err(format!("{}: {error}", last.display())),
    })
}

/// The files that are meant, each once.
fn named(given: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut seen = BTreeSet::new();
    for path in given {
        if path.as_os_str() == "-" && given.len() > 1 {
            bail!("replay -: stdin is one recording or capture, and comes alone");
        }
        for path in matching(path)? {
            // The same file by two names would say everything twice.
            if seen.insert(fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// The files that a pattern stands for; itself, if it is none.
fn matching(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.contains(WILD));
    let Some(pattern) = name.filter(|_| !path.exists()) else { return Ok(vec![path.to_owned()]) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let pattern = WildMatch::new(pattern);
    let mut found = Vec::new();
    let listed = fs::read_dir(folder.unwrap_or(Path::new("."))).with_context(|| path.display().to_string())?;
    for entry in listed {
        let name = entry.with_context(|| path.display().to_string())?.file_name();
        let is_hidden = name.to_string_lossy().starts_with('.');
        if !is_hidden && pattern.matches(&name.to_string_lossy()) {
            found.push(folder.map_or_else(|| PathBuf::from(&name), |folder| folder.join(&name)));
        }
    }
    if found.is_empty() {
        bail!("{}: no file has such a name", path.display());
    }
    found.sort();
    Ok(found)
}

/// Opens one file, if it is not open already, and reads its header.
fn open(given: Given, names: &[String]) -> anyhow::Result<Source> {
    let Given { name, path, stream, .. } = given;
    let is_once = stream.is_some();
    let input = match stream {
        Some(input) => recording::open(input),
        None => File::open(&path).and_then(|file| recording::open(Counted(file))),
    };
    let input = input.with_context(|| name.clone())?;
    let reader = Reader::new(input).map_err(|error| anyhow!("{name}: {error}{}", without(&[name.as_str()], names)))?;
    Ok(Source { name, reader, missing: None, path: (!is_once).then_some(path) })
}
