//! The output of a program as its chapter of the course states it.

use std::path::Path;

/// Returns the lines after `$ make chapter N=…` in the page of `chapter`.
pub fn transcript(chapter: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src").join(chapter).with_extension("md");
    let text = std::fs::read_to_string(page).unwrap();
    let command = format!("```console\n$ make chapter N={}\n", &chapter[..2]);
    let (_, rest) = text.split_once(&command).unwrap_or_else(|| panic!("{chapter} has no {command}"));
    rest[..rest.find("```").unwrap()].to_owned()
}
