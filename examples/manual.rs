//! Writes what belongs to an installed program besides the binary, from the same grammar: `manual DIRECTORY` makes
//! `DIRECTORY/man/man1/kickvm*.1` and completions for bash, zsh and fish. `make install` runs it.

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use kickvm::cli;
use std::fs;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: manual DIRECTORY");
        std::process::exit(125);
    };
    let mut command = cli::Cli::command();
    let pages = directory.join("man/man1");
    fs::create_dir_all(&pages)?;
    // Subcommands have no version of their own, which their pages would lack.
    let versioned = command.clone().propagate_version(true);
    clap_mangen::generate_to(versioned, &pages)?;
    for (shell, place) in [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Zsh, "zsh/site-functions"),
        (Shell::Fish, "fish/vendor_completions.d"),
    ] {
        let place = directory.join(place);
        fs::create_dir_all(&place)?;
        generate_to(shell, &mut command, "kickvm", &place)?;
    }
    // bash-completion looks for a file named after the command.
    let bash = directory.join("bash-completion/completions");
    fs::rename(bash.join("kickvm.bash"), bash.join("kickvm"))
}
