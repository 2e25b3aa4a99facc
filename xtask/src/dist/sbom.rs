//! What is in the program, for a machine to read? A software bill of materials in the form of CycloneDX 1.5.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    NAME, hex,
    parts::{Id, Part, Parts},
};

/// The list as JSON. The same parts give the same bytes.
pub fn sbom(parts: &Parts, date: Timestamp) -> Result<String> {
    let (program, itself) =
        parts.iter().find(|(id, _)| id.name == NAME).context("the program is not among its parts")?;
    let others = parts.iter().filter(|(id, _)| id.name != NAME);
    let components: Vec<Value> = others.map(|(id, part)| component(id, part, "library")).collect();
    let needs = |part: &Part| part.needs.iter().map(reference).collect::<Vec<_>>();
    let dependencies: Vec<Value> =
        parts.iter().map(|(id, part)| json!({ "ref": reference(id), "dependsOn": needs(part) })).collect();
    let all = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial(&format!("{components:?}{dependencies:?}{date}")),
        "version": 1,
        "metadata": { "timestamp": date.to_string(), "component": component(program, itself, "application") },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&all).context("write the bill of materials")? + "\n")
}

/// A package URL: <https://github.com/package-url/purl-spec>, in which `+` is written `%2B`.
fn reference(id: &Id) -> String {
    let kind = if id.is_crate { "cargo" } else { "generic" };
    format!("pkg:{kind}/{}@{}", id.name, id.version.replace('+', "%2B"))
}

fn component(id: &Id, part: &Part, kind: &str) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": reference(id),
        "name": id.name,
        "version": id.version,
        "purl": reference(id),
    });
    if let Some(license) = &part.license {
        component["licenses"] = json!([{ "expression": license }]);
    }
    if let Some(description) = &part.description {
        component["description"] = json!(description);
    }
    component
}

/// A UUID of version 8 (RFC 9562: made in one's own way), from the content.
fn serial(content: &str) -> String {
    let mut bytes = Sha256::digest(content)[..16].to_vec();
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let text = hex(&bytes);
    format!("urn:uuid:{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plus_in_a_version_does_not_stand_in_a_purl() {
        let id = Id { name: "zstd-sys".into(), version: "2.1.2+zstd.1.5.7".into(), is_crate: true };
        assert_eq!(reference(&id), "pkg:cargo/zstd-sys@2.1.2%2Bzstd.1.5.7");
    }
}
