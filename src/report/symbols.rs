//! Names of kernel addresses, from a `System.map`.

use std::io::Read;
use std::path::Path;

use crate::boot;
use crate::boot::input_file::InputFile;

/// The functions of one kernel, in the order of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols(Vec<(u64, String)>);

/// The largest file that is read. The `System.map` of a distribution's kernel has about 6 MiB.
const MAX_BYTES: u64 = 256 << 20;

impl Symbols {
    /// Reads a `System.map`, or the output of nm(1).
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has no line with a function.
    pub fn read(path: &Path) -> Result<Self, boot::Error> {
        let mut input = InputFile::open(path, "--symbols")?;
        if input.len > MAX_BYTES {
            return Err(input.unusable("it is too large for a System.map"));
        }
        let mut text = Vec::new();
        input.file.read_to_end(&mut text).map_err(|error| input.unreadable(error))?;
        match Self::parse(&String::from_utf8_lossy(&text)) {
            Self(symbols) if symbols.is_empty() => {
                Err(input.unusable("it has no lines such as 'ffffffff81000000 T _text'"))
            }
            symbols => Ok(symbols),
        }
    }

    fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?;
            // Code only: an instruction pointer is never in data.
            matches!(kind, "T" | "t" | "W" | "w").then_some((address, words.next()?.to_owned()))
        };
        let mut symbols: Vec<_> = text.lines().filter_map(symbol).collect();
        symbols.sort();
        Self(symbols)
    }

    /// Returns the name of the function at `address`, with the offset from its start.
    pub fn name(&self, address: u64) -> Option<String> {
        /// Longer than any function.
        const MAX_LEN: u64 = 1 << 20;
        let at = self.0.partition_point(|(start, _)| *start <= address).checked_sub(1)?;
        let (start, name) = &self.0[at];
        (address - start < MAX_LEN).then(|| format!("{name}+{:#x}", address - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_after_the_function_before_it() {
        let symbols = Symbols::parse(
            "0000000000000000 D __per_cpu_start\nffffffff81000100 t second\nffffffff81000000 T first\nrubbish\n\
             ffffffff82000000 D data\n",
        );
        assert_eq!(symbols.name(0xffff_ffff_8100_00ff).as_deref(), Some("first+0xff"));
        assert_eq!(symbols.name(0xffff_ffff_8100_0100).as_deref(), Some("second+0x0"));
        assert_eq!(symbols.name(0xffff_ffff_8200_0000), None, "too far");
        assert_eq!(symbols.name(0x1000), None);
    }
}
