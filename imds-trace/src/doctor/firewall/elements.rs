//! How is JSON read in which somebody put a set with a million elements? Without them: that there are too many is counted before. Pure.

use std::fmt::{self, Formatter};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Elements of a set or map that are looked at; of one with more nothing is decided.
const MAX_ELEMENTS: usize = 65_536;

/// What is counted.
#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    set: Option<Set>,
    map: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    // Of no size, so counting them takes no memory.
    elem: Option<Vec<IgnoredAny>>,
}

impl Object {
    fn has_too_many(&self) -> bool {
        let mut sets = [&self.set, &self.map].into_iter().flatten().flat_map(|set| &set.elem);
        sets.any(|elements| elements.len() > MAX_ELEMENTS)
    }
}

/// What nft says, where a set of more elements than are looked at has `null` for them: each is some allocations, and whoever owns a
/// container's namespace may put a million there.
pub fn bounded(json: &str) -> Result<Value, serde_json::Error> {
    let counted: Counted = serde_json::from_str(json)?;
    let too_many: Vec<bool> = counted.nftables.iter().map(Object::has_too_many).collect();
    let mut reader = serde_json::Deserializer::from_str(json);
    let whole = Bounded { too_many: &too_many, without: false }.deserialize(&mut reader)?;
    reader.end().map(|()| whole)
}

/// Reads a value.
struct Bounded<'a> {
    /// Which objects of the list below have a set with too many elements.
    too_many: &'a [bool],
    /// Is it in such an object?
    without: bool,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        loop {
            let without = self.without || self.too_many.get(values.len()).copied().unwrap_or_default();
            match list.next_element_seed(Bounded { too_many: &[], without })? {
                Some(value) => values.push(value),
                None => return Ok(values.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = if self.without && key == "elem" {
                map.next_value::<IgnoredAny>()?;
                Value::Null
            } else {
                let too_many = if key == "nftables" { self.too_many } else { &[] };
                map.next_value_seed(Bounded { too_many, without: self.without })?
            };
            values.insert(key, value);
        }
        Ok(values.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_set_with_too_many_elements_none_is_kept_and_of_others_all() {
        let list = |many: usize| vec!["1"; many].join(",");
        let json = |many: usize| {
            let (elements, flags) = (list(many), list(3));
            format!(
                r#"{{"nftables":[{{"metainfo":{{}}}},{{"set":{{"elem":[{elements}],"flags":[{flags}]}}}},{{"set":{{"elem":[2]}}}},{{"rule":{{"elem":{{"val":null}}}}}}]}}"#
            )
        };
        let read = bounded(&json(MAX_ELEMENTS + 1)).expect("it is JSON");
        assert_eq!(read["nftables"][1]["set"].get("elem"), Some(&Value::Null));
        assert_eq!(read["nftables"][1]["set"]["flags"].as_array().map(Vec::len), Some(3));
        assert_eq!(read["nftables"][2], serde_json::json!({"set": {"elem": [2]}}));
        assert_eq!(read["nftables"][3], serde_json::json!({"rule": {"elem": {"val": null}}}));
        let read = bounded(&json(MAX_ELEMENTS)).expect("it is JSON");
        assert_eq!(read["nftables"][1]["set"]["elem"].as_array().map(Vec::len), Some(MAX_ELEMENTS));
        for text in ["{", "[1] x", "", "[1,]"] {
            assert!(bounded(text).is_err(), "{text}");
        }
    }
}
