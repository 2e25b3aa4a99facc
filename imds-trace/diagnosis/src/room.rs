//! When does a table give back what it has grown to in a storm?

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

/// A table with room for fewer entries keeps it.
pub const LEAST: usize = 1024;
/// An order may hold so many times what it is the order of: what is gone leaves it only at its ends.
pub const SLACK: usize = 4;
/// A table of which less than this part is used is made smaller, to twice what it holds: so each entry is moved once more at most.
const USED: usize = 8;

/// Makes a table smaller that is mostly empty.
pub fn give_back<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    if table.capacity() > LEAST && table.len() < table.capacity() / USED {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_full_once_is_small_again() {
        let mut table: HashMap<u32, u32> = (0..100_000).map(|n| (n, n)).collect();
        for n in 0..100_000 {
            table.remove(&n);
            give_back(&mut table);
        }
        assert!(table.capacity() <= LEAST, "{}", table.capacity());
    }
}
