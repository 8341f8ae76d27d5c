//! The faults that a user permits: `--allow`.

use regex_lite::Regex;

use super::kernel_fault::FaultClasses;

/// An entry of the list as the user writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Where the entry is, for messages: "FILE, line 3".
    pub place: String,
    /// The classes that it is for.
    pub classes: FaultClasses,
    /// A regular expression for the title or the first line of a report.
    pub expression: String,
}

impl Allowed {
    /// Parses a list from `file`. Each line has a regular expression, or a class, a colon, a blank and the expression.
    /// Empty lines, and those that begin with `#`, are comments.
    pub fn parse(file: &str, text: &str) -> Vec<Self> {
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).zip(1..);
        let entries = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        let parse = |(line, number): (&str, u32)| {
            let class = line.split_once(": ").and_then(|(name, rest)| Some((FaultClasses::named(name)?, rest.trim())));
            let (classes, expression) = class.unwrap_or((FaultClasses::ALL, line));
            Self { place: format!("{file}, line {number}"), classes, expression: expression.to_owned() }
        };
        entries.map(parse).collect()
    }
}

/// The compiled list.
#[derive(Debug, Default)]
pub(super) struct AllowList(Vec<(Allowed, Regex, bool)>); // and whether it has permitted a fault

impl AllowList {
    /// Compiles the entries.
    ///
    /// # Errors
    ///
    /// The message names the entry whose expression is not valid.
    pub fn new(entries: &[Allowed]) -> Result<Self, String> {
        let compile = |entry: &Allowed| match Regex::new(&entry.expression) {
            Ok(regex) => Ok((entry.clone(), regex, false)),
            Err(error) => Err(format!("cannot use the expression '{}' ({}): {error}", entry.expression, entry.place)),
        };
        entries.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an entry permits a fault whose first line is of `classes`, by one of these `texts`.
    pub fn permits(&mut self, classes: FaultClasses, texts: [&str; 2]) -> bool {
        let mut permitted = false;
        for (entry, regex, used) in &mut self.0 {
            if entry.classes.intersects(classes) && texts.iter().any(|text| regex.is_match(text)) {
                (*used, permitted) = (true, true);
            }
        }
        permitted
    }

    /// The entries that have permitted nothing.
    pub fn unused(&self) -> impl Iterator<Item = &Allowed> {
        self.0.iter().filter(|(.., used)| !used).map(|(entry, ..)| entry)
    }
}
