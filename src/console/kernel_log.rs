//! The kernel's own log, which has also what the console does not show.

use std::time::Instant;

use super::printk::{Origin, Part};

/// What a guest has sent of its kernel's log.
#[derive(Clone, Debug)]
pub struct KernelLog {
    /// The records of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg); `None` if the guest could not read them.
    pub records: Option<Vec<u8>>,
    /// Whether the console does not show all messages about faults that fail the run.
    pub hidden_on_console: bool,
}

/// Calls `take` with each message of the kernel in `records`, until `deadline`. Returns the number of records that the
/// kernel has overwritten, or `None` if there was no time for all.
pub(super) fn for_each_message(records: &[u8], deadline: Instant, mut take: impl FnMut(&Part<'_>)) -> Option<u64> {
    let (mut next, mut overwritten) = (0, 0u64);
    for line in records.split(|byte| *byte == b'\n') {
        if Instant::now() >= deadline {
            return None;
        }
        let line = String::from_utf8_lossy(line);
        // Lines that begin with a blank have further fields of the record.
        let Some((fields, text)) = line.split_once(';').filter(|_| line.starts_with(|c: char| c.is_ascii_digit()))
        else {
            continue;
        };
        let mut fields = fields.split(',');
        let mut number = || fields.next().and_then(|field| field.parse::<u64>().ok());
        let (Some(priority), Some(sequence), Some(time)) = (number(), number(), number()) else { continue };
        overwritten = overwritten.saturating_add(sequence.saturating_sub(next));
        next = sequence.saturating_add(1);
        let caller = fields.find_map(|field| field.strip_prefix("caller=")).unwrap_or("");
        // Syslog facilities other than 0 are of programs.
        if priority < 8 {
            take(&Part { text, origin: Origin::Kernel, caller, time });
        }
    }
    Some(overwritten)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_record_of_the_kernel_is_a_message() {
        let records =
            "6,7,1500000,-,caller=T1;BUG: x; y\n SUBSYSTEM=a;b\n14,8,1600000,-;of a program\n;x\n1,2\n4,10,2,c;z";
        let mut messages = Vec::new();
        let take = |part: &Part<'_>| messages.push((part.time, part.caller.to_owned(), part.text.to_owned()));
        assert_eq!(for_each_message(records.as_bytes(), later(), take), Some(8));
        assert_eq!(messages, [(1_500_000, "T1".into(), "BUG: x; y".into()), (2, String::new(), "z".into())]);
        for cut in 0..records.len() {
            for_each_message(&records.as_bytes()[..cut], later(), |_| {});
        }
    }
}
