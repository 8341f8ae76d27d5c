//! kickvm
