//! Is what the program says of each recording what it said when somebody looked at it, and is it said with care?

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use diagnosis::config::{OutputSpec, Replay, Telling};
use diagnosis::finding::{Confidence, Finding, Severity};
use diagnosis::input::Input;
use diagnosis::pipeline::Host;
use diagnosis::recording::Reader;
use diagnosis::replay::replay;
use imds_trace_replay_tests::kept::{self, TOLD};
use imds_trace_replay_tests::scenario::conclude;
use libtest_mimic::{Failed, Trial};

/// Set: what is said now becomes what is expected. `cargo xtask bless` sets it.
const BLESS: &str = "IMDS_TRACE_BLESS";
/// Losses from every second observation to every twentieth.
const EVERY: std::ops::RangeInclusive<usize> = 2..=20;

/// Two for each recording, and one about all.
pub fn trials() -> Result<Vec<Trial>> {
    let mut trials = vec![
        Trial::test("every_file_beside_a_recording_is_one_of_its_own", every_file_is_used),
        Trial::test(
            "there_are_recordings",
            || if kept::recordings()?.is_empty() { Err("none".into()) } else { Ok(()) },
        ),
    ];
    for (name, path) in kept::recordings()? {
        let (told, thinned) = (path.clone(), path);
        let stem = name.clone();
        trials.push(Trial::test(format!("recordings::{name}"), move || Ok(is_told_as_before(&told, &stem)?)));
        let claim = format!("recordings::{name}::what_is_missing_accuses_nobody");
        trials.push(Trial::test(claim, move || Ok(what_is_missing_accuses_nobody(&thinned)?)));
    }
    Ok(trials)
}

fn every_file_is_used() -> Result<(), Failed> {
    let expected: BTreeSet<String> = kept::recordings()?
        .into_iter()
        .flat_map(|(name, _)| ["jsonl", TOLD[0].1, TOLD[1].1].map(|ending| format!("{name}.{ending}")))
        .collect();
    let found: BTreeSet<String> = std::fs::read_dir(kept::recordings_folder())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    if found == expected {
        return Ok(());
    }
    let (more, less) = (found.difference(&expected), expected.difference(&found));
    Err(format!(
        "nobody reads {:?}; `cargo xtask bless` makes {:?}",
        more.collect::<Vec<_>>(),
        less.collect::<Vec<_>>()
    )
    .into())
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Says the program of a recording or a capture what stands in the files beside it that are called `name`?
pub fn is_told_as_before(recording: &Path, name: &str) -> Result<()> {
    let folder = Folder(std::env::temp_dir().join(format!("imds-trace-replay-{}-{name}", std::process::id())));
    std::fs::create_dir(&folder.0).context("make a folder")?;
    let output = |(kind, ending): (&str, &str)| OutputSpec { kind: kind.to_owned(), path: Some(folder.0.join(ending)) };
    if std::env::var_os(BLESS).is_some() {
        let output = |(kind, ending): (&str, &str)| {
            let path = Some(recording.with_file_name(format!("{name}.{ending}")));
            OutputSpec { kind: kind.to_owned(), path }
        };
        let telling = Telling { outputs: TOLD.map(output).to_vec(), ..Telling::default() };
        replay(Replay { telling, files: vec![recording.to_owned()], ..Replay::default() })?;
        return Ok(());
    }
    let telling = Telling { outputs: TOLD.map(output).to_vec(), ..Telling::default() };
    replay(Replay { telling, files: vec![recording.to_owned()], ..Replay::default() })?;
    for (_, ending) in TOLD {
        let path = recording.with_file_name(format!("{name}.{ending}"));
        let before = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let now = std::fs::read_to_string(folder.0.join(ending))?;
        let mut lines = before.lines().zip(now.lines()).zip(1..);
        if let Some(((before, now), line)) = lines.find(|((before, now), _)| before != now) {
            bail!("{name}.{ending} line {line}: was\n{before}\nand is\n{now}\nIf that is right: cargo xtask bless");
        }
        if before != now {
            bail!(
                "{name}.{ending} has {} bytes and had {}; if that is right: cargo xtask bless",
                now.len(),
                before.len()
            );
        }
    }
    Ok(())
}

/// What is accused: rule and subject.
type Accused = BTreeSet<(&'static str, String)>;

fn errors(findings: &[Finding], of: impl Fn(&Finding) -> bool) -> Accused {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error && of(finding));
    errors.map(|finding| (finding.rule, format!("{:?}", finding.who.subject()))).collect()
}

/// The ring buffer may be full: then observations are missing. What is left must not make an error certain that was none.
fn what_is_missing_accuses_nobody(recording: &Path) -> Result<()> {
    let reader = Reader::new(BufReader::new(File::open(recording)?))?;
    let host = Host {
        netns: reader.header.netns,
        pid_namespace: reader.header.pid_namespace,
        instance: reader.header.instance.clone(),
    };
    let inputs: Vec<Input> = reader.collect::<Result<_, _>>()?;
    let whole = errors(&conclude(host.clone(), &inputs, false)?.report.findings, |_| true);
    let mut wrong = BTreeSet::new();
    // The kernel half counts what it could not send; somebody who cuts a recording does not.
    for (every, counted) in EVERY.flat_map(|every| [(every, true), (every, false)]) {
        for offset in 0..every {
            let mut number = 0;
            let kept: Vec<Input> = inputs
                .iter()
                .filter_map(|input| {
                    let observed = matches!(input, Input::Observation(_));
                    number += usize::from(observed);
                    let lost = counted.then_some(Input::Lost { at: input.at(), ring_buffer: 1, unreadable: 0 });
                    if observed && number % every == offset { lost } else { Some(input.clone()) }
                })
                .collect();
            let findings = conclude(host.clone(), &kept, false)?.report.findings;
            for accused in
                errors(&findings, |finding| finding.says.confidence == Confidence::Certain).difference(&whole)
            {
                let is_it = |finding: &&Finding| (finding.rule, format!("{:?}", finding.who.subject())) == *accused;
                let why = findings.iter().find(is_it).map_or("", |finding| finding.says.summary.as_str());
                wrong.insert(format!(
                    "{} about {}, without number {offset} of every {every} (told: {counted}): {why}",
                    accused.0, accused.1
                ));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} new errors, certain:\n{}", wrong.len(), wrong.into_iter().collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}
