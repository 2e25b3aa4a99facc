//! Which numbers look like chance, and come again with the same seed? So that what failed once can be tried again.

/// Xorshift, Marsaglia 2003. The seed is not 0.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`, or 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }
}
