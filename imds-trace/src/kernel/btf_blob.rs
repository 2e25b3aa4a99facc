//! Which types does BTF describe? Read where they lie: a kernel describes a hundred thousand and more, and some dozens are asked for.
//!
//! The format is that of `Documentation/bpf/btf.rst`. Strings are taken to be there once, each from its own beginning, as pahole writes them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use memchr::memmem;
use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
/// Bytes of the header of version 1.
const HEADER: usize = 24;
/// Bytes of what all types begin with.
const TYPE: usize = 12;
/// Bytes of a member of a structure, and of a constant of an enumeration.
const MEMBER: usize = 12;
const CONSTANT: usize = 8;

/// Why bytes are no BTF.
#[derive(Debug, Error)]
pub enum Error {
    /// Not at its beginning.
    #[error("it does not begin as BTF does")]
    Header,
    /// Less is there than it says.
    #[error("it ends in the middle of type {0}")]
    Short(usize),
    /// A kind that is not known has an unknown length.
    #[error("type {0} is of the unknown kind {1}")]
    Kind(usize, u32),
}

/// Kinds of type, those that are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `T *`
    Pointer,
    /// `struct T`
    Struct,
    /// `union T`
    Union,
    /// `enum T`, with values of 32 bits.
    Enum,
    /// `typedef`
    Typedef,
    /// `const`, `volatile`, `restrict`, or a tag: another type, with something said of it.
    Qualifier,
    /// The parameters of a function.
    Prototype,
    /// Any other.
    Other,
}

/// One type.
#[derive(Clone, Copy, Debug)]
pub struct Type {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a structure; else the type that it leads to.
    pub size_or_type: u32,
    /// How many members, constants or parameters.
    pub count: usize,
    /// Are members' sizes in their offsets?
    has_bit_fields: bool,
    behind: usize,
}

/// A member of a structure.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Empty if it has none.
    pub name: &'a [u8],
    /// Its type.
    pub kind: u32,
    /// Where it begins.
    pub bits: u32,
}

/// All types of one blob.
pub struct Types {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Of each type, the first of which has the number 1: where its name stands among the strings, and where itself.
    names: Vec<u32>,
    places: Vec<u32>,
    /// Names that were asked for, and the types that have them.
    known: RefCell<HashMap<String, Vec<u32>>>,
}

impl Types {
    /// Goes over `bytes` once.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Error> {
        let number = |at: usize| word(&bytes, at).map(|number| number as usize).ok_or(Error::Header);
        let magic = bytes.get(..2).and_then(|magic| magic.try_into().ok()).map(u16::from_ne_bytes);
        if magic != Some(MAGIC) || number(4)? < HEADER {
            return Err(Error::Header);
        }
        let section = |offset: usize| -> Option<Range<usize>> {
            let begin = number(4).ok()?.checked_add(number(offset).ok()?)?;
            let end = begin.checked_add(number(offset + 4).ok()?)?;
            (end <= bytes.len()).then_some(begin..end)
        };
        let types = section(8).ok_or(Error::Header)?;
        let strings = section(16).ok_or(Error::Header)?;
        let (mut names, mut places) = (Vec::new(), Vec::new());
        let mut at = types.start;
        while at < types.end {
            let id = places.len() + 1;
            let (Some(name), Some(info)) = (word(&bytes, at), word(&bytes, at + 4)) else {
                return Err(Error::Short(id));
            };
            let count = (info & 0xffff) as usize;
            // Of INT, ARRAY, STRUCT and UNION, ENUM, FUNC_PROTO, VAR, DATASEC, DECL_TAG and ENUM64; the others have nothing more.
            let more = match info >> 24 & 0x1f {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 => count * MEMBER,
                6 => count * CONSTANT,
                13 => count * 8,
                15 | 19 => count * 12,
                2 | 7..=12 | 16 | 18 => 0,
                kind => return Err(Error::Kind(id, kind)),
            };
            names.push(name);
            places.push(u32::try_from(at).map_err(|_| Error::Short(id))?);
            at += TYPE + more;
            if at > types.end {
                return Err(Error::Short(id));
            }
        }
        Ok(Self { bytes, strings, names, places, known: RefCell::default() })
    }

    /// The type with this number; none for 0, which is `void`.
    pub fn get(&self, id: u32) -> Option<Type> {
        let at = *self.places.get(id.checked_sub(1)? as usize)? as usize;
        let info = word(&self.bytes, at + 4)?;
        let kind = match info >> 24 & 0x1f {
            2 => Kind::Pointer,
            4 => Kind::Struct,
            5 => Kind::Union,
            6 => Kind::Enum,
            8 => Kind::Typedef,
            9..=11 | 18 => Kind::Qualifier,
            13 => Kind::Prototype,
            _ => Kind::Other,
        };
        let size_or_type = word(&self.bytes, at + 8)?;
        let count = (info & 0xffff) as usize;
        Some(Type { kind, size_or_type, count, has_bit_fields: info >> 31 == 1, behind: at + TYPE })
    }

    /// All types of this name, in their order.
    pub fn named(&self, name: &str) -> Vec<Type> {
        let mut known = self.known.borrow_mut();
        let ids = known.entry(name.to_owned()).or_insert_with(|| self.ids_of(name).unwrap_or_default());
        ids.iter().filter_map(|id| self.get(*id)).collect()
    }

    fn ids_of(&self, name: &str) -> Option<Vec<u32>> {
        let whole = [b"\0", name.as_bytes(), b"\0"].concat();
        let before = memmem::find(self.bytes.get(self.strings.clone())?, &whole)?;
        let offset = u32::try_from(before + 1).ok()?;
        Some((1..).zip(&self.names).filter(|(_, name)| **name == offset).map(|(id, _)| id).collect())
    }

    /// Members of a structure or union.
    pub fn members(&self, of: Type) -> impl Iterator<Item = Member<'_>> {
        let count = if matches!(of.kind, Kind::Struct | Kind::Union) { of.count } else { 0 };
        (0..count).filter_map(move |number| {
            let at = of.behind + number * MEMBER;
            let offset = word(&self.bytes, at + 8)?;
            // The upper eight bits are the size, then.
            let bits = if of.has_bit_fields { offset & 0xff_ffff } else { offset };
            Some(Member { name: self.string(word(&self.bytes, at)?), kind: word(&self.bytes, at + 4)?, bits })
        })
    }

    /// Names and values of an enumeration.
    pub fn constants(&self, of: Type) -> impl Iterator<Item = (&[u8], u32)> {
        let count = if of.kind == Kind::Enum { of.count } else { 0 };
        (0..count).filter_map(move |number| {
            let at = of.behind + number * CONSTANT;
            Some((self.string(word(&self.bytes, at)?), word(&self.bytes, at + 4)?))
        })
    }

    fn string(&self, offset: u32) -> &[u8] {
        let rest = self.bytes.get(self.strings.clone()).and_then(|strings| strings.get(offset as usize..));
        rest.and_then(|rest| rest.split(|byte| *byte == 0).next()).unwrap_or_default()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of these types, with these strings behind the empty one.
    fn btf(types: &[u32], strings: &str) -> Vec<u8> {
        let length = types.len() as u32 * 4;
        let header = [u32::from(MAGIC) | 1 << 16, HEADER as u32, 0, length, length, strings.len() as u32 + 1];
        let words = header.iter().chain(types).flat_map(|word| word.to_ne_bytes());
        words.chain([0]).chain(strings.bytes()).collect()
    }

    const STRUCT: u32 = 4 << 24;
    const BIT_FIELDS: u32 = 1 << 31;

    #[test]
    fn a_bit_fields_size_is_no_part_of_where_it_is() {
        let strings = "pinfo\0hop_limit\0";
        let types = Types::new(btf(&[1, STRUCT | BIT_FIELDS | 1, 8, 7, 0, 9 << 24 | 17], strings)).expect("it is BTF");
        let found = types.named("pinfo").pop().expect("it is there");
        assert_eq!((found.kind, found.size_or_type), (Kind::Struct, 8));
        let member = types.members(found).next().expect("it has one");
        assert_eq!((member.name, member.bits), (&b"hop_limit"[..], 17));
        // A part of a name is none.
        assert!(types.named("info").is_empty() && types.named("pinf").is_empty() && types.named("").is_empty());
    }

    #[test]
    fn what_cannot_be_gone_over_is_an_error_with_the_types_number() {
        let error = |bytes| Types::new(bytes).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(error(btf(&[0, 31 << 24, 0], "")), "type 1 is of the unknown kind 31");
        assert_eq!(error(btf(&[1, 8 << 24, 0, 1, STRUCT | 2, 8], "a\0")), "it ends in the middle of type 2");
        assert_eq!(error(vec![0; 64]), "it does not begin as BTF does");
        assert_eq!(error(Vec::new()), "it does not begin as BTF does");
    }
}
