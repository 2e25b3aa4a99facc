//! Which bits of a mark are known, and what does a rule that sets some make of them? Pure.

use super::holds::Holds;

/// A mark of 32 bits, some of which are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    value: u32,
    known: u32,
}

/// A packet that nobody marked: what leaves a network namespace arrives in the next without a mark (`skb_scrub_packet`).
impl Default for Bits {
    fn default() -> Self {
        Self { value: 0, known: u32::MAX }
    }
}

/// What a rule makes of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marking {
    /// `(mark & !mask) ^ value`, as `--set-xmark value/mask`.
    Packet(u32, u32),
    /// The same of the connection's mark.
    Connection(u32, u32),
    /// The connection's takes the packet's: the packet's mask, the connection's mask.
    Save(u32, u32),
    /// The packet's takes the connection's: the packet's mask, the connection's mask.
    Restore(u32, u32),
    /// The packet's becomes something that is not known.
    AnyPacket,
    /// The connection's becomes something that is not known.
    AnyConnection,
}

impl Bits {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { value: 0, known: 0 };

    /// Is all of it known?
    pub fn is_known(self) -> bool {
        self.known == u32::MAX
    }

    /// The bits that are known, the others as 0.
    pub fn known_part(self) -> u32 {
        self.value
    }

    /// Are the bits under a mask these?
    pub fn are(self, value: u32, mask: u32) -> Holds {
        if (self.value ^ value) & mask & self.known != 0 || value & !mask != 0 {
            Holds::No
        } else if mask & !self.known == 0 {
            Holds::Yes
        } else {
            Holds::Maybe
        }
    }

    /// `(self & !mask) ^ (other & other_mask)`.
    fn taking(self, mask: u32, other: Self, other_mask: u32) -> Self {
        let value = (self.value & !mask) ^ (other.value & other_mask);
        let known = (self.known | mask) & (other.known | !other_mask);
        Self { value: value & known, known }
    }

    /// What is known if it is one of both.
    pub(super) fn or(self, other: Self) -> Self {
        let known = self.known & other.known & !(self.value ^ other.value);
        Self { value: self.value & known, known }
    }
}

impl Marking {
    /// What the packet's and the connection's marks are behind the rule; `sure`: it holds, certainly.
    pub fn apply(self, mark: &mut Bits, connmark: &mut Bits, sure: bool) {
        let constant = |value| Bits { value, known: u32::MAX };
        let (old_mark, old_connmark) = (*mark, *connmark);
        match self {
            Self::Packet(value, mask) => *mark = mark.taking(mask, constant(value), u32::MAX),
            Self::Connection(value, mask) => *connmark = connmark.taking(mask, constant(value), u32::MAX),
            Self::Save(packet, connection) => *connmark = connmark.taking(connection, *mark, packet),
            Self::Restore(packet, connection) => *mark = mark.taking(packet, *connmark, connection),
            Self::AnyPacket => *mark = Bits::UNKNOWN,
            Self::AnyConnection => *connmark = Bits::UNKNOWN,
        }
        if !sure {
            *mark = mark.or(old_mark);
            *connmark = connmark.or(old_connmark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_set_is_not_known_and_the_rest_is() {
        let (mut mark, mut connmark) = Default::default();
        assert_eq!(Bits::are(mark, 0, 0x4000), Holds::Yes);
        Marking::Packet(0x4000, 0x4000).apply(&mut mark, &mut connmark, false);
        assert_eq!((mark.are(0x4000, 0x4000), mark.are(0x8000, 0x8000)), (Holds::Maybe, Holds::No));
        Marking::Packet(0x4000, 0x4000).apply(&mut mark, &mut connmark, true);
        assert_eq!(mark.are(0x4000, 0x4000), Holds::Yes);
        Marking::Save(u32::MAX, u32::MAX).apply(&mut mark, &mut connmark, true);
        Marking::Packet(0, u32::MAX).apply(&mut mark, &mut connmark, true);
        assert_eq!(mark.are(0, u32::MAX), Holds::Yes);
        Marking::Restore(0xff00, 0xff00).apply(&mut mark, &mut connmark, true);
        assert_eq!(mark.are(0x4000, u32::MAX), Holds::Yes);
        Marking::AnyPacket.apply(&mut mark, &mut connmark, true);
        assert_eq!(mark.are(0, 1), Holds::Maybe);
    }
}
