//! How is JSON read in which somebody put a set with a million elements? With no more of them than tell that there are too many. Pure.

use std::fmt::{self, Formatter};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Elements of a set or map that are looked at; of one with more nothing is decided.
pub const MAX_ELEMENTS: usize = 65_536;

/// The JSON with no more elements of a set than tell that there are too many: each is an allocation, and whoever owns a container's
/// namespace may put a million there.
pub fn bounded(json: &str) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let whole = Bounded { most: usize::MAX }.deserialize(&mut reader)?;
    reader.end().map(|()| whole)
}

/// Reads a value; of a list only so many, and of each `elem` below it few.
struct Bounded {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Bounded {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded {
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
        while values.len() < self.most {
            match list.next_element_seed(Bounded { most: usize::MAX })? {
                Some(value) => values.push(value),
                None => return Ok(values.into()),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let most = if key == "elem" { MAX_ELEMENTS + 1 } else { usize::MAX };
            values.insert(key, map.next_value_seed(Bounded { most })?);
        }
        Ok(values.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_list_of_elements_only_so_many_are_kept_and_of_others_all() {
        let many = vec!["1"; 3 * MAX_ELEMENTS].join(",");
        let json = format!(
            r#"{{"nftables":[{{"set":{{"elem":[{many}],"flags":[{many}]}}}},{{"rule":{{"elem":{{"val":null}}}}}}]}}"#
        );
        let read = bounded(&json).expect("it is JSON");
        let set = &read["nftables"][0]["set"];
        assert_eq!(set["elem"].as_array().map(Vec::len), Some(MAX_ELEMENTS + 1));
        assert_eq!(set["flags"].as_array().map(Vec::len), Some(3 * MAX_ELEMENTS));
        assert_eq!(read["nftables"][1], serde_json::json!({"rule": {"elem": {"val": null}}}));
        for text in ["{", "[1] x", "", "[1,]"] {
            assert!(bounded(text).is_err(), "{text}");
        }
    }
}
