//! Does the tracer conclude what really happened?

crate::tests![];
