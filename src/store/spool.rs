//! outside
//! Locks that could not be committed in time, in a preallocated file beside the store.
