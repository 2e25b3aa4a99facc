//! Is a line of JSON as the schema says that is kept in `docs/schema`?
//!
//! Held against it closed: a field that the schema does not name is an error here, though programs must pass over one. So neither the
//! schema nor the tests can fall behind what is written.

use std::path::PathBuf;
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow, bail};
use jsonschema::Validator;
use serde_json::{Map, Value};

use crate::kept;

/// Of `--output json`, in `docs/schema`.
pub const OUTPUT: &str = "output.json";
/// Of `doctor --output json`.
pub const DOCTOR: &str = "doctor.json";

/// Types of lines that `doctor` writes.
const OF_DOCTOR: [&str; 2] = ["check", "summary"];

/// Where a schema is kept.
pub fn file(name: &str) -> PathBuf {
    kept::tests().join("../docs/schema").join(name)
}

/// The types of lines that `--output json` may have.
pub fn types() -> Result<Vec<String>> {
    let schema = read(OUTPUT)?;
    let lines = schema["oneOf"].as_array().context("a schema of several lines")?;
    lines.iter().map(|line| Ok(line["properties"]["type"]["const"].as_str().context("a type")?.to_owned())).collect()
}

/// Fails unless a line of `--output json`, or one of `doctor`, is as its schema says.
pub fn expect_valid(line: &Value) -> Result<()> {
    static SCHEMAS: LazyLock<Result<[Validator; 2]>> = LazyLock::new(|| Ok([closed(OUTPUT)?, closed(DOCTOR)?]));
    let [output, doctor] = SCHEMAS.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    let schema = if OF_DOCTOR.iter().any(|kind| line["type"] == *kind) { doctor } else { output };
    let wrong: Vec<String> =
        schema.iter_errors(line).map(|error| format!("{}: {error}", error.instance_path())).collect();
    if wrong.is_empty() { Ok(()) } else { bail!("not as docs/schema says: {}\n{line}", wrong.join("\n")) }
}

/// As it was when the tests were built: they also run where no sources are, in virtual machines.
fn read(name: &str) -> Result<Value> {
    let text = match name {
        DOCTOR => include_str!("../../../docs/schema/doctor.json"),
        _ => include_str!("../../../docs/schema/output.json"),
    };
    serde_json::from_str(text).with_context(|| name.to_owned())
}

fn closed(name: &str) -> Result<Validator> {
    let mut schema = read(name)?;
    close(&mut schema, true);
    jsonschema::options().should_validate_formats(true).build(&schema).map_err(|error| anyhow!("{name}: {error}"))
}

/// Lets no field be there that the schema does not name. `is_whole`: is this all that is said of a value? Not so the parts of it that a
/// reference or a choice adds: what one of them names the others do not know.
fn close(schema: &mut Value, is_whole: bool) {
    let Value::Object(keywords) = schema else { return };
    for (keyword, value) in keywords.iter_mut() {
        match keyword.as_str() {
            "properties" => each(value, true),
            "$defs" => each(value, false),
            "items" | "additionalProperties" => close(value, true),
            "oneOf" | "anyOf" | "allOf" => {
                value.as_array_mut().into_iter().flatten().for_each(|part| close(part, false));
            }
            _ => {}
        }
    }
    if is_whole {
        keywords.insert("unevaluatedProperties".to_owned(), Value::Bool(false));
    }
}

fn each(schemas: &mut Value, is_whole: bool) {
    let named = schemas.as_object_mut().into_iter().flat_map(Map::iter_mut);
    named.for_each(|(_, schema)| close(schema, is_whole));
}
