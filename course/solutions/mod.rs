pub mod e01a;
pub mod e01b;
pub mod e02a;
pub mod e02b;
pub mod e03a;
pub mod e03b;
pub mod e04a;
pub mod e04b;
