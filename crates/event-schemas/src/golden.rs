//! Generates the files under `schemas/` from the code, and checks the folder against it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use event_client::codec::Codec;
use event_client::envelope::{STRUCTURED_JSON, STRUCTURED_MSGPACK};
use event_client::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::catalog::{Entry, catalog};
use crate::envelope;

/// Returns every file of `schemas/`, by its path in that folder.
///
/// # Errors
/// When a sample cannot be encoded.
pub fn generate() -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::from([("envelope.v1.schema.json".to_owned(), pretty(&envelope::schema()))]);
    for entry in catalog() {
        let mut schema = serde_json::to_value((entry.schema)())
            .map_err(|cause| Error::new(ErrorKind::Encode, "a schema does not encode").because(cause))?;
        if let Some(object) = schema.as_object_mut() {
            object.insert("title".into(), entry.subject.into());
        }
        files.insert(path(&entry, "schema.json"), pretty(&schema));
        let sample: Value = serde_json::from_slice(&(entry.encode)(Codec::Json)?)
            .map_err(|cause| Error::new(ErrorKind::Encode, "a sample is not JSON").because(cause))?;
        files.insert(path(&entry, "sample.json"), pretty(&sample));
        files.insert(path(&entry, "sample.msgpack"), (entry.encode)(Codec::MsgPack)?);
    }
    Ok(files)
}

/// A difference between `schemas/` and the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// The code generates this file, and it does not exist.
    Missing(String),
    /// The file differs from the generated one.
    Changed(String),
    /// The code does not generate this file.
    Unknown(String),
    /// The current code does not decode this golden sample, or decodes another value; the text contains the
    /// reason.
    Undecodable(String, String),
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(file) => write!(f, "{file}: missing; run `backbone schema gen`"),
            Self::Changed(file) => write!(
                f,
                "{file}: differs from the code; if every old reader still understands it run `backbone schema gen`, else make a new version"
            ),
            Self::Unknown(file) => {
                write!(f, "{file}: no event in the code; versions in use may not be dropped")
            }
            Self::Undecodable(file, why) => {
                write!(f, "{file}: the code no longer reads this golden sample: {why}")
            }
        }
    }
}

/// Compares a `schemas/` folder with the code; the result is empty when they agree.
///
/// # Errors
/// When the folder cannot be read.
pub fn check(folder: &Path) -> Result<Vec<Drift>> {
    let wanted = generate()?;
    let mut found = BTreeMap::new();
    read(folder, "", &mut found).map_err(|cause| {
        Error::new(ErrorKind::NotFound, "cannot read the folder")
            .with("folder", folder.display())
            .because(cause)
    })?;
    let mut drift = Vec::new();
    for (file, bytes) in &wanted {
        match found.get(file) {
            None => drift.push(Drift::Missing(file.clone())),
            Some(have) if have != bytes => drift.push(Drift::Changed(file.clone())),
            Some(_) => {}
        }
    }
    drift.extend(found.keys().filter(|file| !wanted.contains_key(*file)).cloned().map(Drift::Unknown));
    for entry in catalog() {
        for (kind, content_type) in [("sample.json", STRUCTURED_JSON), ("sample.msgpack", STRUCTURED_MSGPACK)]
        {
            let file = path(&entry, kind);
            let Some(bytes) = found.get(&file) else { continue };
            match (entry.verify)(content_type, bytes) {
                Ok(true) => {}
                Ok(false) => drift.push(Drift::Undecodable(file, "it decodes to another value".into())),
                Err(error) => drift.push(Drift::Undecodable(file, error.to_string())),
            }
        }
    }
    Ok(drift)
}

fn read(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            read(&entry.path(), &format!("{name}/"), found)?;
        } else if !name.ends_with(".md") {
            found.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(())
}

fn path(entry: &Entry, kind: &str) -> String {
    let (topic, rest) = entry.subject.split_once('.').unwrap_or((entry.subject, ""));
    format!("{topic}/{rest}.{kind}")
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(&sorted(value)).expect("a JSON value always encodes");
    text.push(b'\n');
    text
}

/// Sorts the keys, because a feature of serde_json decides whether its maps are sorted.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            Value::Object(sorted.into_iter().map(|(key, value)| (key.clone(), self::sorted(value))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(sorted).collect()),
        value => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas")
    }

    #[test]
    fn the_repository_s_schemas_are_what_the_code_makes() {
        let drift = check(&repository()).unwrap();
        assert!(drift.is_empty(), "{}", drift.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn drift_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        for (file, bytes) in generate().unwrap() {
            let path = folder.path().join(&file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        assert_eq!(check(folder.path()).unwrap(), []);
        std::fs::write(folder.path().join("orders/placed.v2.sample.json"), b"{}").unwrap();
        std::fs::remove_file(folder.path().join("orders/paid.v1.schema.json")).unwrap();
        std::fs::write(folder.path().join("orders/lost.v1.schema.json"), b"{}").unwrap();
        let drift = check(folder.path()).unwrap();
        assert!(drift.contains(&Drift::Changed("orders/placed.v2.sample.json".into())), "{drift:?}");
        assert!(drift.contains(&Drift::Missing("orders/paid.v1.schema.json".into())), "{drift:?}");
        assert!(drift.contains(&Drift::Unknown("orders/lost.v1.schema.json".into())), "{drift:?}");
        assert!(drift.iter().any(|drift| matches!(drift, Drift::Undecodable(..))), "{drift:?}");
    }

    #[test]
    fn an_old_version_is_read_as_the_new_one() {
        use crate::orders::OrderPlaced;
        use event_client::{Event, envelope::Envelope, message::Message, subject::Subject};
        let body = std::fs::read(repository().join("orders/placed.v1.sample.json")).unwrap();
        let message = Message::new(Subject::new("orders.placed.v1").unwrap(), STRUCTURED_JSON, body);
        let order = OrderPlaced::decode(1, &Envelope::read(&message).unwrap()).unwrap();
        assert_eq!((order.cents, order.currency.as_str()), (4_200, "EUR"));
    }
}
