//! Points in time, handed in by the caller.

/// A point in time: nanoseconds since an epoch that the caller chooses.
///
/// It never leaves the process: messages carry seconds that remain or have passed, since the clocks of two hosts differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The epoch.
    pub const ZERO: Self = Self(0);
    /// The last point in time.
    pub const MAX: Self = Self(u64::MAX);

    /// The point `nanoseconds` after the epoch.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `seconds` after this one; before it if `seconds` is negative. Ends at the epoch and at [`Time::MAX`].
    pub fn after(self, seconds: f64) -> Self {
        let nanoseconds = (seconds.abs() * 1e9) as u64; // the cast saturates, and NaN is 0
        Self(if seconds < 0.0 {
            self.0.saturating_sub(nanoseconds)
        } else {
            self.0.saturating_add(nanoseconds)
        })
    }

    /// Seconds from `earlier` to this point; negative if `earlier` is later.
    pub fn since(self, earlier: Self) -> f64 {
        if self >= earlier { (self.0 - earlier.0) as f64 / 1e9 } else { -((earlier.0 - self.0) as f64) / 1e9 }
    }
}

/// A float that can be a key of an ordered map; ordered by `f64::total_cmp`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Real {}

impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Real {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_added_and_subtracted_within_their_bounds() {
        let one = Time::ZERO.after(1.0);
        assert_eq!(one, Time::from_nanos(1_000_000_000));
        assert_eq!((one.since(Time::ZERO), Time::ZERO.since(one)), (1.0, -1.0));
        assert_eq!((one.after(-9.0), one.after(f64::INFINITY)), (Time::ZERO, Time::MAX));
        assert_eq!(one.after(f64::NAN), one);
    }
}
