//! In which order are the frames of several captures read? By their times: those that were rotated are one capture, and those that
//! were taken side by side are read side by side.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::path::PathBuf;

use super::file::{Described, Error, File, Frame};
use super::format::{self, Format};
use super::linktype;
use crate::net::Timestamp;
use crate::progress::Counted;
use crate::unpack::Input;

/// Files that are kept open from the beginning; of more, each is opened again when its time has come.
const MAX_OPEN: usize = 64;

/// A capture to be read.
pub struct Source {
    /// As it was given.
    pub name: String,
    /// Where it is.
    pub from: From,
}

/// Where a capture is read from.
pub enum From {
    /// Something that can be read once.
    Stream(Input),
    /// A file.
    File(PathBuf),
}

/// Why one of them cannot be read further.
#[derive(Debug)]
pub struct Failed {
    /// As it was given.
    pub name: String,
    /// Why.
    pub error: Error,
    /// When the last frame before that was seen; `None` if there is none.
    pub after: Option<Timestamp>,
    /// Others that were given beside it and cannot be told either.
    pub also: Vec<String>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Error::Unread(unread) => write!(f, "{}: {}", self.name, unread.told(&self.name)),
            error => write!(f, "{}: {error}", self.name),
        }
    }
}

impl Failed {
    /// The sentence about one of which a part can be told, or that others are told beside.
    pub fn missing(&self) -> String {
        match self.after {
            Some(_) => format!("{self}; what came after it is missing"),
            None => format!("{self}; nothing of it can be told"),
        }
    }
}

impl std::error::Error for Failed {}

/// One of them.
struct Feed {
    name: String,
    /// To open it again.
    path: Option<PathBuf>,
    /// When its first frame was seen.
    start: Timestamp,
    /// Open, and its next frame if that was read already.
    open: Option<(File, Option<Frame>)>,
    /// Frames that were told.
    frames: u64,
    /// When the last of them was seen.
    last: Option<Timestamp>,
    /// Its interfaces, when it is not open.
    described: Vec<Described>,
}

/// A frame that was read as something.
struct Head<T> {
    at: Timestamp,
    feed: usize,
    what: T,
}

impl<T> Ord for Head<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.feed).cmp(&(other.at, other.feed))
    }
}

impl<T> PartialOrd for Head<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Head<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Head<T> {}

/// All of them. `T` is what of a frame is of interest.
pub struct Sources<T> {
    /// In the order in which they begin.
    feeds: Vec<Feed>,
    /// Those before this one have begun.
    begun: usize,
    heads: BinaryHeap<Reverse<Head<T>>>,
    failures: Vec<Failed>,
}

/// Reads a frame of a file of this name, with these interfaces.
pub type Parse<'a, T> = dyn FnMut(&str, &[Described], &Frame) -> Option<T> + 'a;

impl<T> Sources<T> {
    /// Opens them. One that is nothing that can be read is an error; one of several that ends too soon is told of at the end.
    pub fn open(given: Vec<Source>) -> Result<Self, Failed> {
        let stays_open = given.len() <= MAX_OPEN;
        let alone = given.len() == 1;
        let (mut feeds, mut failures, mut spoilt) = (Vec::new(), Vec::new(), Vec::new());
        for Source { name, from } in given {
            let (input, path) = match from {
                From::Stream(input) => (Ok(input), None),
                From::File(path) => (open_file(&path), Some(path)),
            };
            match input.and_then(begin) {
                Ok((file, first)) => {
                    let start = first.as_ref().map(|frame| frame.at).unwrap_or_default();
                    let open = Some((file, first));
                    let mut feed = Feed { name, path, start, open, frames: 0, last: None, described: Vec::new() };
                    if !stays_open && feed.path.is_some() {
                        feed.close();
                    }
                    feeds.push(feed);
                }
                Err(error) => {
                    let others = if !alone && error.leaves_the_others() { &mut failures } else { &mut spoilt };
                    others.push(Failed { name, error, after: None, also: Vec::new() });
                }
            }
        }
        let mut spoilt = spoilt.into_iter();
        if let Some(first) = spoilt.next() {
            return Err(Failed { also: spoilt.map(|failed| failed.name).collect(), ..first });
        }
        if feeds.is_empty()
            && let Some(first) = failures.pop()
        {
            return Err(first);
        }
        feeds.sort_by_key(|feed| feed.start);
        Ok(Self { feeds, begun: 0, heads: BinaryHeap::new(), failures })
    }

    /// When the first frame was seen.
    pub fn started(&self) -> Timestamp {
        self.feeds.first().map(|feed| feed.start).unwrap_or_default()
    }

    /// The interfaces described so far.
    pub fn interfaces(&self) -> impl Iterator<Item = &Described> {
        self.feeds.iter().flat_map(|feed| match &feed.open {
            Some((file, _)) => file.interfaces(),
            None => &feed.described,
        })
    }

    /// How many frames were read so far.
    pub fn frames(&self) -> u64 {
        self.feeds.iter().map(|feed| feed.frames).sum()
    }

    /// Those of which not everything could be read so far, and why.
    pub fn failures(&mut self) -> Vec<Failed> {
        std::mem::take(&mut self.failures)
    }

    /// The next frame of interest.
    pub fn next(&mut self, parse: &mut Parse<'_, T>) -> Option<T> {
        while let Some(feed) = self.feeds.get(self.begun) {
            if self.heads.peek().is_some_and(|Reverse(head)| head.at < feed.start) {
                break;
            }
            self.begun += 1;
            self.advance(self.begun - 1, parse);
        }
        let Reverse(head) = self.heads.pop()?;
        self.advance(head.feed, parse);
        Some(head.what)
    }

    /// Reads one of them up to its next frame of interest.
    fn advance(&mut self, index: usize, parse: &mut Parse<'_, T>) {
        let Some(feed) = self.feeds.get_mut(index) else { return };
        match feed.next(parse) {
            Ok(Some((at, what))) => self.heads.push(Reverse(Head { at, feed: index, what })),
            Ok(None) => feed.close(),
            Err(error) => {
                self.failures.push(Failed { name: feed.name.clone(), error, after: feed.last, also: Vec::new() });
                feed.close();
            }
        }
    }
}

impl Feed {
    fn next<T>(&mut self, parse: &mut Parse<'_, T>) -> Result<Option<(Timestamp, T)>, Error> {
        if self.open.is_none()
            && self.frames == 0
            && let Some(path) = &self.path
        {
            self.open = Some(open_file(path).and_then(begin)?);
        }
        let Some((file, first)) = &mut self.open else { return Ok(None) };
        loop {
            let frame = match first.take() {
                Some(first) => Some(first),
                None => file.next_frame()?,
            };
            let Some(frame) = frame else { return Ok(None) };
            self.frames += 1;
            self.last = Some(frame.at);
            if let Some(what) = parse(&self.name, file.interfaces(), &frame) {
                return Ok(Some((frame.at, what)));
            }
        }
    }

    fn close(&mut self) {
        if let Some((file, _)) = self.open.take() {
            self.described = file.interfaces().to_vec();
        }
    }
}

fn open_file(path: &std::path::Path) -> Result<Input, Error> {
    let file = std::fs::File::open(path).map_err(|error| Error::Open(error.to_string()))?;
    Ok(Box::new(std::io::BufReader::new(Counted(file))))
}

/// Reads up to the first frame. A capture without any is one all the same.
fn begin(input: Input) -> Result<(File, Option<Frame>), Error> {
    let input = match format::open(input).map_err(|error| Error::Open(error.to_string()))? {
        Format::Capture(input) => input,
        Format::Unread(unread) => return Err(Error::Unread(unread)),
        Format::Nothing(nothing) => return Err(Error::Nothing(nothing)),
        Format::Other(_) => return Err(Error::NoCapture),
    };
    let mut file = File::new(input)?;
    let first = file.next_frame()?;
    match file.interfaces() {
        [interface, ..] if file.interfaces().iter().all(|interface| !linktype::is_read(interface.link)) => {
            Err(Error::Foreign(interface.link))
        }
        _ => Ok((file, first)),
    }
}
