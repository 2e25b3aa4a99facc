//! Does a byte of a secret come out anywhere? Thousands of random ones in all that containers choose, through the pipeline into every
//! output and a recording.
//!
//! Judged from outside: the formats are read from their table, and eight characters of a secret in a row are too many. What reads as
//! words may stay, whatever it was: the price of command lines that can be read.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use diagnosis::event::Event;
use diagnosis::identity::fact::{self, Ancestor, ContainerDetail, Fact, Said, Told};
use diagnosis::input::Input;
use diagnosis::net::{BootTime, Timestamp};
use diagnosis::observation::redact::{self, Marker, Message};
use diagnosis::observation::{Head, Observation};
use diagnosis::output::{OUTPUTS, Output};
use diagnosis::pipeline::{Host, Pipeline};
use diagnosis::recording::Writer;
use diagnosis::secret;
use imds_trace_replay_tests::load;
use imds_trace_replay_tests::random::Random;
use imds_trace_replay_tests::scenario::{END, HOST_NETNS, header, id_of};
use libtest_mimic::Trial;

/// Characters in a row that must not come out.
const TOO_MANY: usize = 8;
/// Secrets of each format.
const ROUNDS: usize = 7;
/// Bytes of a task's name.
const COMM: usize = 15;

const FORMATS: &str = include_str!("../../imds-trace/diagnosis/src/secret/formats.tsv");
/// Those that say nothing of what they are, by their lengths: a secret access key, a token of IMDS, a session token.
const UNMARKED: [usize; 3] = [40, 56, 356];
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// All of them.
pub fn trials() -> Vec<Trial> {
    vec![Trial::test("sweep::no_secret_comes_out_anywhere", || Ok(sweep()?))]
}

/// A secret: what stands before its mark, the mark, which may be shown, and what follows.
struct Secret {
    before: String,
    mark: String,
    behind: String,
}

impl Secret {
    fn whole(&self) -> String {
        format!("{}{}{}", self.before, self.mark, self.behind)
    }
}

/// A place where a secret can stand, and what is kept of it there.
#[derive(Clone, Copy, Debug)]
enum Place {
    Argument,
    Option,
    Script,
    Split,
    Folded,
    Path,
    Query,
    UserAgent,
    Header,
    Cookie,
    Exe,
    Label,
    LabelName,
    Comm,
    Ancestor,
}

const PLACES: [Place; 15] = [
    Place::Argument,
    Place::Option,
    Place::Script,
    Place::Split,
    Place::Folded,
    Place::Path,
    Place::Query,
    Place::UserAgent,
    Place::Header,
    Place::Cookie,
    Place::Exe,
    Place::Label,
    Place::LabelName,
    Place::Comm,
    Place::Ancestor,
];

fn sweep() -> Result<()> {
    let mut random = Random(0x5ec2_e700);
    let mut judge = Judge::default();
    let mut inputs = load::introduction();
    let mut number = 0;
    for secret in secrets(&mut random) {
        // Each secret in a few of the places; all formats meet all places.
        for _ in 0..2 {
            let place = PLACES[random.below(PLACES.len())];
            let mut exchange = load::exchange(number);
            if put(place, &secret, number, &mut exchange, &mut random, &mut judge) {
                inputs.extend(exchange);
                number += 1;
            }
        }
    }
    if number < 3_000 {
        bail!("only {number} secrets were tried");
    }
    inputs.extend(load::conclusion(number));
    let taken = Rc::new(RefCell::new(Vec::new()));
    let mut pipeline = Pipeline::new(Host { netns: HOST_NETNS, pid_namespace: None, instance: None });
    let recorded = record(&inputs)?;
    pipeline.tell_packets(true);
    let mut outputs = outputs();
    let keep = taken.clone();
    let mut tell = move |event: &Event| keep.borrow_mut().push(event.clone());
    for input in inputs {
        pipeline.push(input, &mut tell);
    }
    pipeline.finish(&mut tell);
    drop(tell);
    for event in taken.borrow().iter() {
        for (_, output, _) in &mut outputs {
            output.tell(event)?;
        }
    }
    let report = report(&taken.borrow())?;
    for (name, mut output, written) in outputs {
        output.report(Timestamp(1), &report)?;
        output.flush()?;
        drop(output);
        let written = written.borrow();
        // So that an output that tells nothing does not pass. An allow-list names who took credentials, and nobody did here.
        if written.len() < 1_000 && name != "allow" {
            bail!("{name}: {} bytes", written.len());
        }
        judge.look(name, &written)?;
    }
    judge.look("recording", &recorded)
}

/// What the reporter makes of it.
fn report(events: &[Event]) -> Result<diagnosis::event::Report> {
    let mut reporter = diagnosis::reporter::Reporter::open(&Default::default(), BootTime(0))?;
    events.iter().try_for_each(|event| reporter.take(event))?;
    Ok(reporter.conclude(Vec::new()).context("a report")?.1)
}

/// A recording without its seals: their digests hang on the run's key, and with a thousand of them one holds eight characters of a
/// hexadecimal secret by chance, one run in ten.
fn record(inputs: &[Input]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header())?;
    inputs.iter().try_for_each(|input| writer.write(input))?;
    writer.close(END, false)?;
    let seal = |line: &&[u8]| line.starts_with(b"{\"seal\":");
    let (seals, told): (Vec<&[u8]>, Vec<&[u8]>) = bytes.split_inclusive(|byte| *byte == b'\n').partition(seal);
    if seals.len() < 100 {
        bail!("{} seals: are they written otherwise now?", seals.len());
    }
    Ok(told.concat())
}

type Written = Rc<RefCell<Vec<u8>>>;

struct Sink(Written);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One of each kind.
fn outputs() -> Vec<(&'static str, Box<dyn Output>, Written)> {
    let open = |kind: &diagnosis::output::Kind| {
        let written = Written::default();
        (kind.name, (kind.open)(Box::new(Sink(written.clone())), BootTime(0)), written)
    };
    OUTPUTS.iter().map(open).collect()
}

/// A few of each format.
fn secrets(random: &mut Random) -> Vec<Secret> {
    let mut secrets = Vec::new();
    for row in FORMATS.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = row.split('\t').collect();
        let [before, mark, alphabet, length, ..] = columns[..] else { continue };
        let letters: Vec<u8> = letters(alphabet).into_iter().filter(u8::is_ascii_alphanumeric).collect();
        for _ in 0..ROUNDS {
            let (before, length) = (before.parse().unwrap_or(0), length.parse().unwrap_or(0));
            secrets.push(Secret {
                before: word(random, &letters, before),
                mark: mark.to_owned(),
                behind: word(random, &letters, length),
            });
        }
    }
    for length in UNMARKED {
        for _ in 0..40 * ROUNDS {
            let behind = word(random, BASE64, length);
            secrets.push(Secret { before: String::new(), mark: String::new(), behind });
        }
    }
    secrets
}

/// Puts a secret into what one exchange says, as what takes it in from outside would. `false` if it may come out there.
fn put(
    place: Place,
    secret: &Secret,
    number: u64,
    inputs: &mut Vec<Input>,
    random: &mut Random,
    judge: &mut Judge,
) -> bool {
    let whole = secret.whole();
    let behind = secret.behind.as_str();
    let (mut argv, mut lead, mut ua, mut path) =
        (None, String::new(), "app/1.0".to_owned(), "/latest/meta-data/".to_owned());
    let (mut exe, mut comm, mut ancestor) = (None, format!("job{number}"), "sh".to_owned());
    let mut label = None;
    // What of it is in one piece, and so could be read as words.
    let mut pieces = vec![behind.to_owned()];
    match place {
        Place::Argument => argv = Some(vec!["prog".to_owned(), whole, "tail".to_owned()]),
        Place::Option => argv = Some(vec!["prog".to_owned(), format!("--x={whole}")]),
        Place::Script => argv = Some(vec!["sh".to_owned(), "-c".to_owned(), format!("prog '{whole}' | tail")]),
        Place::Split if !secret.mark.contains(':') => {
            let (first, second) = whole.split_at(1 + random.below(whole.len() - 1));
            let in_first = behind.len().saturating_sub(second.len());
            pieces = vec![behind[..in_first].to_owned(), behind[in_first..].to_owned()];
            // An option may begin with a dash.
            if second.starts_with('-') {
                return false;
            }
            argv = Some(vec!["prog".to_owned(), first.to_owned(), second.to_owned(), "tail".to_owned()]);
        }
        Place::Folded if secret.mark.is_empty() => {
            let width = 8 + random.below(70);
            pieces = (0..behind.len())
                .step_by(width)
                .map(|at| behind[at..behind.len().min(at + width)].to_owned())
                .collect();
            argv = Some(vec!["sh".to_owned(), "-c".to_owned(), format!("echo '{}' | base64 -d", pieces.join("\n"))]);
        }
        Place::Split | Place::Folded => return false,
        Place::Path => path = format!("/latest/{whole}/x"),
        Place::Query => path = format!("/latest/?a=1&b={whole}&c=2"),
        Place::UserAgent => ua = format!("app/1.0 ({whole}) lang/x"),
        Place::Header => lead = format!("X-aws-ec2-metadata-token: {whole}\r\n"),
        Place::Cookie => lead = format!("Cookie: session={whole}\r\nX-Other: {whole}\r\n"),
        Place::Exe => exe = Some(fact::path(&format!("run\0{whole}\0opt\0"), false)),
        Place::Label => {
            label = Some((secret::mask("org.example.note"), secret::mask_value("org.example.note", &whole)))
        }
        Place::LabelName => label = Some((secret::mask(&whole), secret::mask_value(&whole, "1"))),
        // No more than these bytes are ever known of a name: what has no mark cannot be told from a name.
        Place::Comm | Place::Ancestor => {
            let cut = &whole[..whole.len().min(COMM)];
            let shown = cut.len().saturating_sub(secret.mark.len());
            if !secret.before.is_empty() || secret.mark.len() < 4 || shown < TOO_MANY {
                return false;
            }
            pieces = vec![behind[..shown].to_owned()];
            *(if matches!(place, Place::Comm) { &mut comm } else { &mut ancestor }) = fact::comm(cut);
        }
    }
    if pieces.iter().any(|piece| piece.len() >= TOO_MANY && reads_as_words(piece)) {
        return false;
    }
    judge.watch(&pieces, format!("{place:?}: {}", secret.whole()));
    let argv = argv.and_then(|argv| fact::command_line(&(argv.join("\0") + "\0"), false));
    let told = Told { argv, exe, cgroup: None, ancestors: vec![Ancestor { pid: 4_600, comm: ancestor }] };
    let pid = 100_000 + u32::try_from(number).unwrap_or(0);
    inputs.retain(|input| !matches!(input, Input::Fact(Fact { said: Said::Process(_), .. })));
    let request = format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: {ua}\r\n{lead}\r\n");
    for input in inputs.iter_mut() {
        match input {
            Input::Fact(Fact { said: Said::Connecting(task), .. }) => {
                (task.pid, task.tid, task.comm, task.told) = (pid, pid, comm.clone(), Arc::new(told.clone()));
            }
            Input::Observation(Observation { heads, .. }) => {
                for head in heads.iter_mut().filter(|head| matches!(head, Head::Request(_))) {
                    if let Some(Message::Whole { head: read, .. }) =
                        redact::message(request.as_bytes(), &Marker::default())
                    {
                        *head = read;
                    }
                }
            }
            _ => {}
        }
    }
    if let Some((name, value)) = label {
        let name = name.chars().take(200).collect::<String>();
        let container = ContainerDetail {
            id: id_of(load::CONTAINERS[0]),
            name: Some(load::CONTAINERS[0].to_owned()),
            labels: Arc::new([(name, value)].into_iter().collect()),
            netns: Some(HOST_NETNS),
            ..ContainerDetail::default()
        };
        inputs.insert(0, Input::Fact(Fact { at: load::begins(number), said: Said::Container(container) }));
    }
    true
}

/// Knows every eight characters of every secret, and where they were put.
#[derive(Default)]
struct Judge {
    parts: HashMap<[u8; TOO_MANY], Vec<usize>>,
    places: Vec<String>,
}

impl Judge {
    fn watch(&mut self, pieces: &[String], place: String) {
        self.places.push(place);
        // Eight digits alone stand in times, too.
        let tells = |part: &&[u8]| !part.iter().all(u8::is_ascii_digit);
        for part in pieces.iter().flat_map(|piece| piece.as_bytes().windows(TOO_MANY)).filter(tells) {
            let part = part.try_into().unwrap_or_default();
            self.parts.entry(part).or_default().push(self.places.len() - 1);
        }
    }

    /// Every byte of what was written.
    fn look(&self, name: &str, written: &[u8]) -> Result<()> {
        let mut found = BTreeMap::new();
        for (at, part) in written.windows(TOO_MANY).enumerate() {
            if let Some(places) = self.parts.get(part) {
                let around = &written[at.saturating_sub(40)..written.len().min(at + 40)];
                found.entry(places).or_insert_with(|| String::from_utf8_lossy(around).into_owned());
            }
        }
        if !found.is_empty() {
            let put = |places: &[usize]| {
                places.iter().map(|place| self.places[*place].as_str()).collect::<Vec<_>>().join(", ")
            };
            let first = found.iter().take(8).map(|(places, around)| format!("{} in {around:?}", put(places)));
            bail!("{name} tells of {} secrets: {:#?}", found.len(), first.collect::<Vec<_>>());
        }
        Ok(())
    }
}

/// `Release`, `build2`, `MAX_SIZE`: words of letters, small or capital, with digits behind.
fn reads_as_words(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).all(|word| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        let small = letters.chars().skip(1).all(|c| c.is_ascii_lowercase());
        (small && letters.chars().all(|c| c.is_ascii_alphabetic())) || letters.chars().all(|c| c.is_ascii_uppercase())
    })
}

/// The characters of a class as in a regular expression.
fn letters(class: &str) -> Vec<u8> {
    let (bytes, mut set, mut at) = (class.as_bytes(), Vec::new(), 0);
    while let Some(first) = bytes.get(at) {
        match (bytes.get(at + 1), bytes.get(at + 2)) {
            (Some(b'-'), Some(last)) => {
                set.extend(*first..=*last);
                at += 3;
            }
            _ => {
                set.push(*first);
                at += 1;
            }
        }
    }
    set
}

fn word(random: &mut Random, letters: &[u8], length: usize) -> String {
    (0..length).map(|_| char::from(letters[random.below(letters.len())])).collect()
}
