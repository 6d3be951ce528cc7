//! The calls that have not returned: which, and since when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Calls that are noted at once: more than a bridge that serves has threads. Others go unnoted.
const SEATS: usize = 128;

/// The bits of a seat that say which function it is.
const FUNCTION: u64 = 0xff;

/// The bits that they take; what is above them says since when.
const SHIFT: u32 = 8;

/// Threads that have called a module so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    // Where a thread looks for a seat first: it finds its own there, nearly always.
    static FIRST: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// A place for one call: 0 while it is free, else the function's number, from 1, and the
/// microseconds from the beginning to the call. Each has a cache line of its own, so that no
/// thread waits for what another notes.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Seat(AtomicU64);

impl Seat {
    /// The call has returned.
    pub(super) fn leave(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The seats of all calls.
#[derive(Debug)]
pub(super) struct UnderWay {
    beginning: Instant,
    seats: [Seat; SEATS],
}

impl Default for UnderWay {
    fn default() -> Self {
        Self {
            beginning: Instant::now(),
            seats: std::array::from_fn(|_| Seat::default()),
        }
    }
}

impl UnderWay {
    /// Notes a call of the function at that place; none where too many are noted already.
    pub(super) fn enter(&self, place: usize, begun: Instant) -> Option<&Seat> {
        let since = microseconds(begun.saturating_duration_since(self.beginning));
        let function = u64::try_from(place).map_or(FUNCTION, |place| place.saturating_add(1));
        let word = (since << SHIFT) | function.min(FUNCTION);
        let first = FIRST.with(|first| *first);
        (0..SEATS).find_map(|step| {
            let seat = self.seats.get(first.wrapping_add(step) % SEATS)?;
            let free = seat
                .0
                .compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
            free.is_ok().then_some(seat)
        })
    }

    /// How long the oldest call of each function has been under way, by the function's place.
    pub(super) fn oldest(&self) -> BTreeMap<usize, Duration> {
        let now = microseconds(self.beginning.elapsed());
        let mut oldest = BTreeMap::new();
        for seat in &self.seats {
            let word = seat.0.load(Ordering::Relaxed);
            let function = usize::try_from(word & FUNCTION).unwrap_or_default();
            let Some(place) = function.checked_sub(1) else {
                continue;
            };
            let age = Duration::from_micros(now.saturating_sub(word >> SHIFT));
            let known: &mut Duration = oldest.entry(place).or_default();
            *known = age.max(*known);
        }
        oldest
    }
}

/// As a number; what lasts longer than this program could is cut.
fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_under_way_until_it_returns_and_the_oldest_of_a_function_counts() {
        let calls = UnderWay::default();
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(5));
        let (old, new) = (calls.enter(3, begun), calls.enter(3, Instant::now()));
        let other = calls.enter(0, Instant::now());
        let oldest = calls.oldest();
        assert_eq!(oldest.keys().copied().collect::<Vec<_>>(), [0, 3]);
        assert!(oldest[&3] >= Duration::from_millis(5), "{oldest:?}");
        old.unwrap().leave();
        other.unwrap().leave();
        assert_eq!(calls.oldest().into_keys().collect::<Vec<_>>(), [3]);
        new.unwrap().leave();
        assert!(calls.oldest().is_empty());
    }

    #[test]
    fn where_every_seat_is_taken_a_call_goes_unnoted() {
        let calls = UnderWay::default();
        let taken: Vec<_> = (0..SEATS)
            .map(|_| calls.enter(1, Instant::now()).unwrap())
            .collect();
        assert!(calls.enter(2, Instant::now()).is_none());
        taken[7].leave();
        assert!(calls.enter(2, Instant::now()).is_some());
        assert_eq!(calls.oldest().into_keys().collect::<Vec<_>>(), [1, 2]);
    }
}
