//! Solution of exercise 10a: a virtqueue with a loop.

/// A descriptor: whether there is a next one, and its number.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub has_next: bool,
    pub next: u16,
}

/// Returns the numbers of the descriptors of a chain, or `None` for a chain that no correct driver makes.
pub fn chain(table: &[Descriptor], head: u16) -> Option<Vec<u16>> {
    let (mut numbers, mut number) = (Vec::new(), head);
    while numbers.len() < table.len() {
        let descriptor = table.get(usize::from(number))?;
        numbers.push(number);
        if !descriptor.has_next {
            return Some(numbers);
        }
        number = descriptor.next;
    }
    None
}
