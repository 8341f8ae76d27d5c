//! The kernel command line of `exec`: the parameters by which the kernel starts kickvm as init, and the user's text,
//! which must not put them out of effect.

use super::job::{INIT_PATH, LIBRARIES_PATH, LINKER_PATH};
use crate::boot::Error;

/// The first process of the guest, and the number of serial ports of the driver, whose default may be 1.
const OWN: [(&str, &str); 2] = [
    ("rdinit", "kickvm is the first process of the guest; give the command after the options instead"),
    ("8250.nr_uarts", "the channel to the guest needs two serial ports"),
];

/// The command line with kickvm's parameters before `text`. A dynamically linked kickvm is started by its linker.
///
/// # Errors
///
/// The kernel would ignore one of these parameters because of `text`, or a part of `text`.
pub fn complete(text: &str, dynamic: bool) -> Result<String, Error> {
    let words = words(text).ok_or_else(|| refuse("\"", "the quote is not closed, so what follows is one parameter"))?;
    for word in words {
        // The kernel does not distinguish '-' from '_' in names (kernel/params.c).
        let name = word.split('=').next().unwrap_or_default().replace('-', "_");
        if word == "--" {
            return Err(refuse("--", "the kernel passes what follows to its first process, which is kickvm"));
        }
        if let Some((own, why)) = OWN.iter().find(|(own, _)| *own == name) {
            return Err(refuse(own, why));
        }
    }
    // The kernel passes what follows the dashes to the first process.
    Ok(match dynamic {
        false => format!("8250.nr_uarts=2 rdinit={INIT_PATH} {text}"),
        true => format!("8250.nr_uarts=2 rdinit={LINKER_PATH} {text} -- --library-path {LIBRARIES_PATH} {INIT_PATH}"),
    })
}

fn refuse(parameter: &str, why: &str) -> Error {
    Error::Parameter { parameter: parameter.to_owned(), why: why.to_owned() }
}

/// The words of `text`, between which there is white space outside quotes, without quotes around them (lib/cmdline.c).
/// `None` if a quote is not closed.
fn words(text: &str) -> Option<Vec<&str>> {
    let mut quoted = false;
    let words = text.split(|c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    });
    let words = words.map(|word| word.trim_matches('"')).collect();
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_parameters_are_in_effect_whatever_the_text_is() {
        assert_eq!(
            complete("a \"b c\" d=\"e  f\"", false).unwrap(),
            "8250.nr_uarts=2 rdinit=/.kickvm/init a \"b c\" d=\"e  f\""
        );
        assert!(complete("a", true).unwrap().ends_with(" a -- --library-path /.kickvm/lib /.kickvm/init"));
        for (text, parameter) in [
            ("a -- b", "--"),
            ("--", "--"),
            ("a \"--\"", "--"),
            ("a=\"b c", "\""),
            ("x\trdinit=/sbin/init", "rdinit"),
            ("\"rdinit=/x y\"", "rdinit"),
            ("8250.nr-uarts=0", "8250.nr_uarts"),
        ] {
            let Err(Error::Parameter { parameter: found, .. }) = complete(text, false) else { panic!("{text}") };
            assert_eq!(found, parameter, "{text}");
        }
        assert!(complete("dyndbg=\"file a.c +p; -- b\" a--b c=--", false).is_ok());
    }
}
