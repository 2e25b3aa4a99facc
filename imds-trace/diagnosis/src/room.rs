//! When does a table give back what it has grown to in a storm?

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};

/// A table with room for fewer entries keeps it.
const LEAST: usize = 1024;
/// An order may hold so many times what it is the order of: what is gone leaves it only at its ends.
const SLACK: usize = 4;
/// A table of which less than this part is used is made smaller, to twice what it holds: so each entry is moved once more at most.
const USED: usize = 8;

/// How much room to keep of this, where so many entries are; `None` if all of it.
fn room_to_keep(entries: usize, room: usize) -> Option<usize> {
    (room > LEAST && entries < room / USED).then_some(2 * entries)
}

/// Makes a table smaller that is mostly empty.
pub fn give_back<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    if let Some(room) = room_to_keep(table.len(), table.capacity()) {
        table.shrink_to(room);
    }
}

/// Are these too many, where `count` are there?
pub fn is_slack(many: usize, count: usize) -> bool {
    many > SLACK * count.max(LEAST)
}

/// Takes out of an order what is not there any more, once that is most of it, and makes it smaller. `count`: how many are there.
pub fn tidy<T>(order: &mut VecDeque<T>, count: usize, is_there: impl FnMut(&T) -> bool) {
    if is_slack(order.len(), count) {
        order.retain(is_there);
    }
    if let Some(room) = room_to_keep(order.len(), order.capacity()) {
        order.shrink_to(room);
    }
}

/// Makes a heap smaller that is mostly empty.
pub fn give_back_heap<T: Ord>(heap: &mut BinaryHeap<T>) {
    if let Some(room) = room_to_keep(heap.len(), heap.capacity()) {
        heap.shrink_to(room);
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

    #[test]
    fn an_order_of_what_is_gone_is_short_and_small_again() {
        let mut order: VecDeque<u32> = (0..100_000).collect();
        for count in (0..100_000).rev() {
            tidy(&mut order, count, |n| (*n as usize) < count);
            assert!(order.len() >= count);
        }
        assert!(order.is_empty() || order.len() <= SLACK * LEAST, "{}", order.len());
        assert!(order.capacity() <= SLACK * LEAST * USED, "{}", order.capacity());
    }
}
