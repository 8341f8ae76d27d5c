//! `kickvm exec` on real Linux. The guest's files are the ones that a test adds.

/// Makes two tests of each function, one with the stock kernel and one with ours. The function takes an
/// [`Exec`](run::Exec).
macro_rules! on_both_kernels {
    ($($name:ident),* $(,)?) => {
        on_kernel!(stock, Stock, $($name),*);
        on_kernel!(ours, BzImage, $($name),*);
    };
}

/// Makes a test of each function, in a module.
macro_rules! on_kernel {
    ($module:ident, $kernel:ident, $($name:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let exec = $crate::exec::run::Exec::new($crate::support::assets::Kernel::$kernel);
                    let possible = exec.as_ref().map(drop).map_err(|missing| format!("{missing} is not set"));
                    let name = concat!(module_path!(), "::", stringify!($name));
                    if $crate::common::can_run(name, possible) {
                        super::$name(exec.expect("it can run"));
                    }
                }
            )*
        }
    };
}

mod caller;
mod ends;
mod environment;
mod files;
mod kernels;
mod matrix;
mod reports;
mod results;
pub mod run;
mod runners;
mod shares;
mod signals;
mod streams;
mod terminal;
mod verdicts;
