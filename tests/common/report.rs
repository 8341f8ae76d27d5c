//! The file of `--report`.

use serde_json::Value;
use std::fs;
use std::path::Path;

/// Reads a file of `--report`, and checks that `resources/report.schema.json` describes it.
#[track_caller]
pub fn read_report(path: &Path) -> Value {
    let schema: Value = serde_json::from_str(include_str!("../../resources/report.schema.json")).unwrap();
    let text = fs::read_to_string(path).unwrap();
    let value = serde_json::from_str(&text).unwrap();
    let errors: Vec<_> =
        jsonschema::validator_for(&schema).unwrap().iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {text}");
    value
}
