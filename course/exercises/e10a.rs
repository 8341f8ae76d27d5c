//! Exercise 10a: a virtqueue with a loop.
//!
//! A driver writes the descriptor table, and a hostile one lets a descriptor point back to an earlier one. The device
//! must not follow this chain forever, and must not panic for a descriptor that is not in the table.

/// A descriptor: whether there is a next one, and its number.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub has_next: bool,
    pub next: u16,
}

/// Returns the numbers of the descriptors of a chain, or `None` for a chain that no correct driver makes.
pub fn chain(table: &[Descriptor], head: u16) -> Option<Vec<u16>> {
    let mut numbers = vec![head];
    let mut descriptor = table[usize::from(head)];
    // TODO: how long can a chain be?
    while descriptor.has_next {
        numbers.push(descriptor.next);
        descriptor = table[usize::from(descriptor.next)];
    }
    Some(numbers)
}
