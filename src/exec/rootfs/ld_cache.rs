//! `/etc/ld.so.cache`: the paths of this host's libraries, as ldconfig(8) writes them for the dynamic linker (glibc,
//! sysdeps/generic/dl-cache.h).

use std::collections::HashMap;
use std::path::PathBuf;

/// The path of the cache, on the host and in a guest that gets libraries.
pub const PATH: &str = "/etc/ld.so.cache";

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Sizes of `struct cache_file_new` and `struct file_entry_new`.
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// `FLAG_X8664_LIB64 | FLAG_ELF_LIBC6`: the flags of a library for x86-64.
const X86_64: u32 = 0x0303;

/// The paths of all libraries for x86-64 in `cache`, by name. If a name has several, the first is taken, as the dynamic
/// linker does.
pub fn parse(cache: &[u8]) -> HashMap<String, PathBuf> {
    let mut found = HashMap::new();
    // An entry table of the old format may precede the new one.
    let Some(start) = cache.windows(MAGIC.len()).position(|window| window == MAGIC) else { return found };
    let cache = &cache[start..];
    let word = |at: usize| cache.get(at..at + 4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
    let text = |at: usize| {
        let bytes = cache.get(at..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    };
    for n in 0..word(MAGIC.len()).unwrap_or(0) as usize {
        let at = HEADER + n * ENTRY;
        let (Some(flags), Some(key), Some(value)) = (word(at), word(at + 4), word(at + 8)) else { break };
        // An entry with a mask of processor features (`hwcap`) is left out: the guest may not have them.
        let plain = word(at + 16) == Some(0) && word(at + 20) == Some(0);
        if let (X86_64, true, Some(name), Some(path)) = (flags, plain, text(key as usize), text(value as usize)) {
            found.entry(name.to_owned()).or_insert_with(|| path.into());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_for_this_machine_are_found_and_broken_ones_are_no_panic() {
        let strings = b"libc.so.6\0/lib/libc.so.6\0/lib32/libc.so.6\0";
        let mut cache = [MAGIC, &3u32.to_le_bytes(), &strings.len().to_le_bytes()[..4], &[0; 20]].concat();
        let base = u32::try_from(HEADER + 3 * ENTRY).unwrap();
        for (flags, value) in [(3u32, 25), (X86_64, 10), (X86_64, 10_000)] {
            cache.extend([flags.to_le_bytes(), base.to_le_bytes(), (base + value).to_le_bytes(), [0; 4]].concat());
            cache.extend([0; 8]);
        }
        cache.extend(strings);
        let expected = HashMap::from([("libc.so.6".to_owned(), PathBuf::from("/lib/libc.so.6"))]);
        assert_eq!(parse(&[b"old format", &cache[..]].concat()), expected);
        (0..cache.len()).for_each(|len| drop(parse(&cache[..len])));
    }
}
