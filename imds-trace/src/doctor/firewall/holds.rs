//! Does something hold, as far as is known?

/// Does it?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// Certainly not.
    No,
    /// It cannot be known here.
    Maybe,
    /// Certainly.
    Yes,
}
