//! Standard input of every kind, and the user's terminal: raw while the guest uses it, and restored afterwards.

mod input;
mod keys;
mod restore;
