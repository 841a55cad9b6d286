//! The lease of fresh messages: one row for all messages of a claim, and the record of those that are settled.

use std::sync::{Arc, Mutex};

use super::codec::{Reader, put_number};

use event_transport::sync::lock;

/// The fresh messages that one claim leased to a member.
#[derive(Debug)]
pub(super) struct Lease {
    /// The id of its row.
    pub(super) id: i64,
    pub(super) member: i64,
    /// Positions in ascending order.
    seqs: Box<[i64]>,
    settled: Mutex<Settled>,
}

#[derive(Clone, Debug)]
struct Settled {
    bits: Vec<u64>,
    left: usize,
}

impl Settled {
    fn set(&mut self, index: usize) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.left -= 1;
        }
    }

    fn has(&self, index: usize) -> bool {
        self.bits[index / 64] & (1 << (index % 64)) != 0
    }
}

impl Lease {
    pub(super) fn new(id: i64, member: i64, seqs: Vec<i64>) -> Arc<Self> {
        let settled = Settled { bits: vec![0; seqs.len().div_ceil(64)], left: seqs.len() };
        Arc::new(Self { id, member, seqs: seqs.into(), settled: Mutex::new(settled) })
    }

    /// The encoded positions that are still pending once the messages at `indexes` are settled; `None` if none are.
    pub(super) fn without(&self, indexes: &[usize]) -> Option<Vec<u8>> {
        let mut settled = lock(&self.settled).clone();
        indexes.iter().for_each(|index| settled.set(*index));
        (settled.left > 0).then(|| {
            encode((0..self.seqs.len()).filter(|index| !settled.has(*index)).map(|index| self.seqs[index]))
        })
    }

    /// Marks the messages at `indexes` as settled.
    pub(super) fn settle(&self, indexes: &[usize]) {
        let mut settled = lock(&self.settled);
        indexes.iter().for_each(|index| settled.set(*index));
    }
}

/// Encodes ascending positions as runs: the gap before each run and its length.
pub(super) fn encode(seqs: impl Iterator<Item = i64>) -> Vec<u8> {
    encode_after(0, seqs)
}

/// Encodes further ascending positions, to be appended to encoded positions of which the last is before `end`.
pub(super) fn encode_after(mut end: i64, seqs: impl Iterator<Item = i64>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut run: Option<(i64, i64)> = None;
    let mut write = |(first, next): (i64, i64)| {
        put_number(&mut out, (first - end) as u64);
        put_number(&mut out, (next - first) as u64);
        end = next;
    };
    for seq in seqs {
        match &mut run {
            Some((_, next)) if *next == seq => *next += 1,
            _ => {
                if let Some(run) = run.replace((seq, seq + 1)) {
                    write(run);
                }
            }
        }
    }
    if let Some(run) = run {
        write(run);
    }
    out
}

/// Decodes the positions that [`encode`] wrote; `None` for invalid bytes.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<i64>> {
    let mut reader = Reader::new(bytes.to_vec().into());
    let mut seqs = Vec::new();
    let mut end = 0i64;
    while !reader.is_at_end() {
        let first = end.checked_add_unsigned(reader.number()?)?;
        let length = reader.number()?;
        // No lease has so long a run: the bytes are damaged, and memory for them must not be allocated.
        if length > 1 << 20 {
            return None;
        }
        end = first.checked_add_unsigned(length)?;
        seqs.extend(first..end);
    }
    Some(seqs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn positions_come_back(seqs in proptest::collection::btree_set(1i64..400, 0..200)) {
            let seqs: Vec<i64> = seqs.into_iter().collect();
            prop_assert_eq!(decode(&encode(seqs.iter().copied())), Some(seqs));
        }

        #[test]
        fn what_is_settled_is_not_pending(
            seqs in proptest::collection::btree_set(1i64..10_000, 1..200),
            settle in proptest::collection::vec(0usize..200, 0..300),
            cut in 0usize..300,
        ) {
            let seqs: Vec<i64> = seqs.into_iter().collect();
            let settle: Vec<usize> = settle.into_iter().map(|index| index % seqs.len()).collect();
            let lease = Lease::new(1, 1, seqs.clone());
            let (before, after) = settle.split_at(cut.min(settle.len()));
            lease.settle(before);
            let left: BTreeSet<i64> =
                seqs.iter().enumerate().filter(|(index, _)| !settle.contains(index)).map(|(_, seq)| *seq).collect();
            let pending = lease.without(after).map(|bytes| decode(&bytes).unwrap()).unwrap_or_default();
            prop_assert_eq!(pending, left.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn positions_can_be_appended(seqs in proptest::collection::btree_set(1i64..400, 1..200), cut in 0usize..200) {
            let seqs: Vec<i64> = seqs.into_iter().collect();
            let (before, after) = seqs.split_at(cut.min(seqs.len() - 1));
            let mut bytes = encode(before.iter().copied());
            let end = before.last().map_or(0, |last| last + 1);
            bytes.extend(encode_after(end, after.iter().copied()));
            prop_assert_eq!(decode(&bytes), Some(seqs));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let _ = decode(&bytes);
        }
    }
}
