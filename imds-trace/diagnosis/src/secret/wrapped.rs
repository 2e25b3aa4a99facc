//! Where are secrets that are cut into pieces: wrapped over lines, or split into words of a command line?
//!
//! Pieces are joined that nothing but white space, quotes and the like parts. Joined they must look like a secret, and each for itself
//! must not read as words do. So a piece that happens to read as a word stays, and names that look random and stand beside a secret go.

use std::ops::Range;

use super::MASK;
use super::formats;
use super::shape::{MIN_SECRET, is_token_char, mixture, reads_as_words};

/// Further characters behind a whole token's that may be its own.
const MAX_BEHIND: usize = 512;

/// What may be the first half of a secret has this many characters, and twice as many if none of them is a digit.
const MIN_HALF: usize = 8;
/// A piece with fewer characters may be seen: so may seven characters of any secret.
const MAX_SHORT: usize = 8;

/// A piece: where it stands in its argument, and in the text that its chain is when joined.
#[derive(Clone, Debug)]
struct Piece {
    argument: usize,
    range: Range<usize>,
    joined: Range<usize>,
}

/// Pieces that nothing of weight parts.
#[derive(Debug, Default)]
struct Chain {
    pieces: Vec<Piece>,
    joined: Vec<u8>,
    /// Something follows that is not known.
    goes_on: bool,
}

/// Puts [`MASK`] in the place of every piece of a secret. `cut`: more arguments follow, which are not known.
pub fn mask<S: AsRef<str>>(arguments: &[S], cut: bool) -> Vec<String> {
    let mut cuts: Vec<Vec<Range<usize>>> = vec![Vec::new(); arguments.len()];
    for chain in chains(arguments, cut) {
        for piece in chain.split_tokens().into_iter().chain(chain.wrapped()) {
            cuts[piece.argument].push(piece.range);
        }
    }
    let masked = arguments.iter().zip(cuts).map(|(argument, mut cuts)| {
        let argument = argument.as_ref();
        cuts.sort_by_key(|cut| (cut.start, cut.end));
        let (mut out, mut done) = (String::with_capacity(argument.len()), 0);
        for cut in cuts {
            if cut.start >= done {
                out.push_str(&argument[done..cut.start]);
                out.push_str(MASK);
            }
            done = done.max(cut.end);
        }
        out.push_str(&argument[done..]);
        out
    });
    masked.collect()
}

/// The chains of two pieces and more, and the last one if it goes on.
fn chains<S: AsRef<str>>(arguments: &[S], cut: bool) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut chain = Chain::default();
    for (argument, text) in arguments.iter().enumerate() {
        let text = text.as_ref();
        let mut at = 0;
        while at < text.len() {
            let begin = at + text[at..].find(is_token_char).unwrap_or(text.len() - at);
            let gap = &text[at..begin];
            if !gap.chars().all(|c| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ',')) {
                chains.push(std::mem::take(&mut chain));
            }
            // A line's end as JSON and shells write it.
            let is_escape = gap.ends_with('\\') && text[begin..].starts_with(['n', 'r', 't']);
            let begin = begin + usize::from(is_escape);
            let end = begin + text[begin..].find(|c| !is_token_char(c)).unwrap_or(text.len() - begin);
            // Base64 has `=` at its end only; elsewhere a name stands before it.
            let sign = text[begin..end].find('=').map_or(end, |sign| begin + sign);
            let behind = sign + text[sign..end].bytes().take_while(|byte| *byte == b'=').count();
            chain.add(argument, begin..behind, &text[begin..behind]);
            if sign < behind {
                chains.push(std::mem::take(&mut chain));
            }
            at = behind;
        }
    }
    chain.goes_on = cut;
    chains.push(chain);
    chains.retain(|chain| chain.pieces.len() > 1 || (chain.goes_on && !chain.pieces.is_empty()));
    chains
}

impl Chain {
    fn add(&mut self, argument: usize, range: Range<usize>, text: &str) {
        if text.is_empty() {
            return;
        }
        let start = self.joined.len();
        self.joined.extend_from_slice(text.as_bytes());
        self.pieces.push(Piece { argument, range, joined: start..self.joined.len() });
    }

    fn text(&self, piece: &Piece) -> &[u8] {
        &self.joined[piece.joined.clone()]
    }

    /// The pieces of tokens that say what they are, as whole as their format wants, and not in one piece.
    fn split_tokens(&self) -> Vec<Piece> {
        let mut found = Vec::new();
        for (mark, format) in formats::marks(&self.joined) {
            let Some(start) = mark.checked_sub(format.before) else { continue };
            let behind = mark + format.mark.len();
            let most = self.joined.len().min(behind + format.length + MAX_BEHIND);
            let fitting = format.fitting(&self.joined[behind..most]);
            if fitting < format.length {
                continue;
            }
            let first = self.pieces.partition_point(|piece| piece.joined.end <= start);
            if self.pieces[first].joined.start < start && self.joined[start - 1].is_ascii_alphanumeric() {
                continue;
            }
            let whole = behind + format.length;
            let is_touched = |piece: &&Piece| piece.joined.start < whole;
            let mut pieces: Vec<Piece> = self.pieces[first..].iter().take_while(is_touched).cloned().collect();
            let words = pieces.iter().filter(|piece| {
                reads_as_words(&self.joined[piece.joined.start.max(behind).min(piece.joined.end)..piece.joined.end])
            });
            let in_words: usize =
                words.map(|piece| piece.joined.end - piece.joined.start.max(behind).min(piece.joined.end)).sum();
            if pieces.len() < 2 || in_words * 2 > format.length {
                continue;
            }
            // The mark says what it was.
            let shown = if pieces[0].joined.end >= behind { behind - pieces[0].joined.start } else { 0 };
            if shown > 0 && format.before == 0 {
                pieces[0].range.start += shown;
                pieces[0].joined.start += shown;
            }
            let further = self.pieces[first + pieces.len()..].iter();
            pieces.extend(
                further.take_while(|piece| piece.joined.start < behind + fitting && self.is_opaque(piece)).cloned(),
            );
            found.extend(pieces.into_iter().filter(|piece| !piece.range.is_empty()));
        }
        found
    }

    /// The pieces that together look like base64 of a secret's length.
    fn wrapped(&self) -> Vec<Piece> {
        let mut found = Vec::new();
        let mut rest = &self.pieces[..];
        let mut before = None;
        while !rest.is_empty() {
            let mut length = 0;
            while let Some(piece) = rest.get(length) {
                // A line of the width of the one before it, whatever it reads as.
                let is_line = length > 0 && rest[length - 1].joined.len() == piece.joined.len();
                let fits = self.is_opaque(piece) || (is_line && is_base64(self.text(piece)));
                if !fits {
                    break;
                }
                length += 1;
            }
            let (stretch, further) = rest.split_at(length);
            if let [first, .., last] | [first @ last] = stretch {
                let joined = &self.joined[first.joined.start..last.joined.end];
                let has_digit = joined.iter().any(u8::is_ascii_digit);
                let least = match further {
                    // The first half of a secret, of which the second is not known, must be masked by what it shows itself.
                    [] if self.goes_on => {
                        if has_digit {
                            MIN_HALF
                        } else {
                            MIN_HALF * 2
                        }
                    }
                    _ => MIN_SECRET,
                };
                // A few characters beside it, which read as a word of two or three letters as often as not, may be the rest of it.
                let short = [before, further.first()].into_iter().flatten().map(|piece| piece.joined.len());
                let reaches = joined.len() + short.filter(|length| *length < MAX_SHORT).sum::<usize>();
                let is_nearly = has_digit && joined.len() > MIN_SECRET - MAX_SHORT && reaches >= MIN_SECRET;
                if (joined.len() >= least || is_nearly) && is_random(joined) {
                    found.extend(stretch.iter().cloned());
                }
            }
            before = stretch.last().or(further.first());
            rest = if length == 0 { &further[1..] } else { further };
        }
        found
    }

    /// May it be a piece of base64, and does not read as words or an option do?
    fn is_opaque(&self, piece: &Piece) -> bool {
        let text = self.text(piece);
        let is_option = text.starts_with(b"-") && {
            let (_, changes, pairs) = mixture(text);
            text.len() < 8 || changes * 10 < pairs * 4
        };
        is_base64(text) && !is_option && (text.ends_with(b"=") || !reads_as_words(text))
    }
}

/// Small and capital letters that change as those of base64 do. Digits are rare in names: with many of them fewer changes are enough.
fn is_random(text: &[u8]) -> bool {
    let (mixed, changes, pairs) = mixture(text);
    let digits = text.iter().filter(|byte| byte.is_ascii_digit()).count();
    mixed && (changes * 20 >= pairs * 7 || (digits * 20 >= text.len() * 3 && changes * 4 >= pairs))
}

fn is_base64(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'_' | b'-'))
}
