//! What does a file of a recording say, and is it what was written? Gives the inputs of a seal's lines when the seal fits.
//!
//! Lines whose seal does not fit are left out whole: which of them was changed cannot be told. Lines behind the last seal of a file
//! that was not closed are given as they are, for they are what its writer said last.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use serde::Deserialize;

use super::seal::{self, Chain};
use super::write::MAX_UNSEALED;
use super::{Error, Header, MAX_LINE, SEALED_SINCE, VERSION};
use crate::input::Input;

/// Reads one file.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: u64,
    /// The first line.
    pub header: Header,
    chain: Chain,
    /// Inputs that a seal has let through, and what is wrong, in order.
    ready: VecDeque<Result<Input, Error>>,
    /// Inputs in the file up to the last seal that fits, by its own count.
    counted: u64,
    repeated: bool,
    over: bool,
    why_unverified: Option<&'static str>,
}

/// Only the version, which every later format keeps.
#[derive(Deserialize)]
struct Versioned {
    recording: u32,
}

/// A line that repeats.
#[derive(Deserialize)]
struct Again {
    again: Input,
}

/// A seal or an end, without its digest.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sealed {
    Seal { inputs: u64 },
    End { inputs: u64 },
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let Some(Line::Whole(text)) = read_line(&mut input, 1)? else {
            return Err(Error::NotARecording("it has no whole line".into()));
        };
        let wrong = |error: serde_json::Error| Error::NotARecording(error.to_string());
        let version: Versioned = serde_json::from_slice(&text).map_err(wrong)?;
        if version.recording > VERSION {
            return Err(Error::TooNew(version.recording));
        }
        let header = serde_json::from_slice(&text).map_err(wrong)?;
        let mut reader = Self {
            input,
            line: 1,
            header,
            chain: Chain::default(),
            ready: VecDeque::new(),
            counted: 0,
            repeated: true,
            over: false,
            why_unverified: None,
        };
        if version.recording < SEALED_SINCE {
            reader.why_unverified = Some("it is of an old format");
            return Ok(reader);
        }
        // The header has a seal of its own: nothing else can be believed if it was changed.
        reader.chain.absorb(&text);
        match read_line(&mut reader.input, 2)? {
            Some(Line::Whole(seal)) if seal::is_one(&seal) && reader.chain.fits(&seal) => reader.line = 2,
            Some(_) => return Err(Error::NotARecording("its header is not as it was written".into())),
            None => return Err(Error::NotARecording("it ends behind its header".into())),
        }
        Ok(reader)
    }

    /// Are lines given that repeat what the file before this one says? They are unless this is said.
    pub fn skip_repeated(&mut self) {
        self.repeated = false;
    }

    /// Why it cannot be told whether this is what was written; `None` if it can.
    pub fn why_unverified(&self) -> Option<&'static str> {
        self.why_unverified
    }

    fn next_line(&mut self) -> Result<Option<Line>, Error> {
        let read = read_line(&mut self.input, self.line + 1)?;
        if read.is_some() {
            self.line += 1;
        }
        Ok(read)
    }

    /// A line of a file without seals.
    fn read_unsealed(&mut self) -> Option<Result<Input, Error>> {
        match self.next_line() {
            Ok(None) => None,
            Ok(Some(Line::Cut)) => Some(Err(Error::CutShort { line: self.line })),
            Ok(Some(Line::Whole(text))) => Some(parse(&text, self.line).map(|(input, _)| input)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Reads up to the next seal.
    fn read_sealed(&mut self) -> Result<(), Error> {
        let first = self.line + 1;
        let mut lines: Vec<Vec<u8>> = Vec::new();
        loop {
            let text = match self.next_line()? {
                Some(Line::Whole(text)) => text,
                cut => {
                    self.over = true;
                    self.give_unsealed(lines, first, cut.is_some());
                    return Ok(());
                }
            };
            if !seal::is_one(&text) {
                self.chain.absorb(&text);
                lines.push(text);
                // A writer seals sooner: the seals were taken out.
                if lines.len() as u64 > 8 * MAX_UNSEALED {
                    self.broken(first, "no seal of theirs is there");
                    self.chain = Chain::default();
                    return Ok(());
                }
                continue;
            }
            let fits = self.chain.fits(&text);
            let sealed = seal::body(&text).and_then(|body| serde_json::from_slice::<Sealed>(&body).ok());
            match (fits, sealed) {
                (true, Some(sealed)) => self.give_sealed(&lines, first, &sealed)?,
                (true, None) => self.broken(first, "their seal is not one of this format"),
                (false, _) => {
                    let damaged = lines.iter().zip(first..).find(|(text, line)| parse(text, *line).is_err());
                    let which = damaged.map(|(_, line)| format!(" (line {line} is damaged)")).unwrap_or_default();
                    self.broken(first, &format!("they are not as they were written, their seal does not fit{which}"));
                    if text.starts_with(b"{\"end\":") {
                        self.expect_nothing_more()?;
                    }
                }
            }
            return Ok(());
        }
    }

    /// A seal fits: so these are what was written, and what cannot be read is of a newer program.
    fn give_sealed(&mut self, lines: &[Vec<u8>], first: u64, sealed: &Sealed) -> Result<(), Error> {
        for (text, line) in lines.iter().zip(first..) {
            let (input, again) = parse(text, line)?;
            if !again || self.repeated {
                self.ready.push_back(Ok(input));
            }
        }
        match sealed {
            Sealed::Seal { inputs } => self.counted = *inputs,
            Sealed::End { inputs } => {
                self.counted = *inputs;
                self.expect_nothing_more()?;
            }
        }
        Ok(())
    }

    fn expect_nothing_more(&mut self) -> Result<(), Error> {
        self.over = true;
        let first = self.line + 1;
        if self.next_line()?.is_some() {
            while self.next_line()?.is_some() {}
            self.broken(first, "they stand behind the end of the recording");
        }
        Ok(())
    }

    /// The end of a file that was not closed: what is whole of it.
    fn give_unsealed(&mut self, lines: Vec<Vec<u8>>, first: u64, cut: bool) {
        for (text, line) in lines.iter().zip(first..) {
            match parse(text, line) {
                Ok((input, again)) if !again || self.repeated => self.ready.push_back(Ok(input)),
                Ok(_) => {}
                Err(_) => {
                    let why = "they are damaged, and no seal of theirs is there".to_owned();
                    self.ready.push_back(Err(Error::Broken { first: line, last: self.line, why }));
                    break;
                }
            }
        }
        let line = self.line;
        self.ready.push_back(Err(if cut { Error::CutShort { line } } else { Error::NotClosed { line } }));
    }

    fn broken(&mut self, first: u64, why: &str) {
        self.ready.push_back(Err(Error::Broken { first, last: self.line, why: why.to_owned() }));
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Input, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.why_unverified.is_some() {
            return self.read_unsealed();
        }
        while self.ready.is_empty() && !self.over {
            if let Err(error) = self.read_sealed() {
                self.over = true;
                self.ready.push_back(Err(error));
            }
        }
        self.ready.pop_front()
    }
}

/// The input in a line, and whether it only repeats.
fn parse(text: &[u8], line: u64) -> Result<(Input, bool), Error> {
    let wrong = |error: serde_json::Error| Error::Unreadable { line, why: error.to_string() };
    if text.starts_with(b"{\"again\":") {
        return serde_json::from_slice(text).map(|Again { again }| (again, true)).map_err(wrong);
    }
    serde_json::from_slice(text).map(|input| (input, false)).map_err(wrong)
}

enum Line {
    Whole(Vec<u8>),
    Cut,
}

fn read_line(input: &mut impl BufRead, line: u64) -> Result<Option<Line>, Error> {
    let mut text = Vec::new();
    let read = match io::Read::take(&mut *input, MAX_LINE).read_until(b'\n', &mut text) {
        Ok(read) => read,
        // A compressed file that ends in the middle: what came out before is whole.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok((!text.is_empty()).then_some(Line::Cut));
        }
        Err(error) => return Err(Error::Io { line, error }),
    };
    Ok(match (read, text.last()) {
        (0, _) => None,
        (_, Some(b'\n')) => Some(Line::Whole(text)),
        _ if read as u64 == MAX_LINE => {
            return Err(Error::Unreadable { line, why: format!("longer than {MAX_LINE} bytes") });
        }
        _ => Some(Line::Cut),
    })
}
