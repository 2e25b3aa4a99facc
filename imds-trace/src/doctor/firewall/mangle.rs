//! What does a statement of nft make of a packet or its mark? Pure.

use serde_json::Value;

use super::mark::Marking;
use super::rules::{Changed, MUCH};

/// What a statement changes of a packet that has to do with its arriving.
pub fn changed(key: &Value, value: &Value) -> Option<Changed> {
    match (key["payload"]["field"].as_str(), key["ct"]["key"].as_str()) {
        (Some("ttl" | "hoplimit"), _) if value.as_u64().is_some_and(|value| value >= MUCH) => Some(Changed::MoreTtl),
        (Some("ttl" | "hoplimit"), _) => Some(Changed::Ttl),
        (Some("saddr" | "daddr" | "sport" | "dport"), _) => Some(Changed::Ends),
        (_, Some("zone")) => Some(Changed::Zone),
        _ => None,
    }
}

/// What a mark becomes: a number, another mark, or `mark & a ^ b` as `and`, `or` and `xor` are written.
pub fn marking(packet: bool, value: &Value) -> Marking {
    let any = if packet { Marking::AnyPacket } else { Marking::AnyConnection };
    let constant = |value, mask| if packet { Marking::Packet(value, mask) } else { Marking::Connection(value, mask) };
    let is_mark = |value: &Value, field: &str| value[field]["key"] == "mark";
    let (own, other) = if packet { ("meta", "ct") } else { ("ct", "meta") };
    if let Some(value) = value.as_u64() {
        return u32::try_from(value).map_or(any, |value| constant(value, u32::MAX));
    }
    if is_mark(value, other) {
        return if packet { Marking::Restore(u32::MAX, u32::MAX) } else { Marking::Save(u32::MAX, u32::MAX) };
    }
    /// `(mark & kept) ^ flipped`
    fn changed(value: &Value, own: &str, depth: u8) -> Option<(u32, u32)> {
        if value[own]["key"] == "mark" {
            return Some((u32::MAX, 0));
        }
        let (operation, sides) = value.as_object()?.iter().next()?;
        let ((kept, flipped), by) = (changed(sides.get(0)?, own, depth.checked_sub(1)?)?, sides.get(1)?.as_u64()?);
        let by = u32::try_from(by).ok()?;
        match operation.as_str() {
            "&" => Some((kept & by, flipped & by)),
            "|" => Some((kept & !by, flipped & !by | by)),
            "^" => Some((kept, flipped ^ by)),
            _ => None,
        }
    }
    changed(value, own, 8).map_or(any, |(kept, flipped)| constant(flipped, !kept))
}
