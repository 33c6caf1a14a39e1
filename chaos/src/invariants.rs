//! The checkers, one file each. Each takes what was observed and fails with what it forbids; none
//! of them observes or acts.

pub mod epochs;
pub mod intact;
pub mod one_instance;
pub mod writes;
