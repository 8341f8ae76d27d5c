//! The user that the command runs as, from the guest's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

use std::fs;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

/// Where a user without a directory is at home.
const NO_HOME: &str = "/";
const DEFAULT_SHELL: &str = "/bin/sh";

/// A user, with what login(1) puts into the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user ID.
    pub uid: u32,
    /// The primary and the supplementary groups.
    pub groups: Vec<u32>,
    /// The name; a user without one has its number.
    pub name: String,
    /// The home directory.
    pub home: String,
    /// The login shell.
    pub shell: String,
}

impl User {
    /// Finds the user `text`: `NAME` or `UID`, with `:GID` for another group and no supplementary ones.
    ///
    /// # Errors
    ///
    /// The name is unknown. The error is a message for the user.
    pub fn find(text: &str) -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(text, &read("/etc/passwd"), &read("/etc/group"))
    }

    fn parse(text: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (name, own_group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        // The largest number is no user (setresuid(2)).
        let number: Option<u32> = name.parse().ok().filter(|uid| *uid != u32::MAX);
        let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let entry = entries.find_map(|fields| match fields[..] {
            [entry, _, uid, gid, _, home, shell] => {
                let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
                let is_user = entry == name || number == Some(uid);
                is_user.then(|| (entry.to_owned(), uid, gid, home.to_owned(), shell.to_owned()))
            }
            _ => None,
        });
        let unknown = || format!("no user '{name}' in /etc/passwd of the guest; a number needs no entry");
        let (name, uid, gid, home, shell) = match (entry, number) {
            (Some(entry), _) => entry,
            (None, Some(uid)) => (name.to_owned(), uid, uid, NO_HOME.to_owned(), DEFAULT_SHELL.to_owned()),
            (None, None) => return Err(unknown()),
        };
        let gid_of = |fields: &[&str]| fields.get(2).and_then(|gid| gid.parse().ok());
        let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let groups = match own_group {
            Some(own) => {
                let named = || groups().find(|fields| fields[0] == own).and_then(|fields| gid_of(&fields));
                let gid = own.parse().ok().or_else(named);
                vec![
                    gid.ok_or_else(|| format!("no group '{own}' in /etc/group of the guest; a number needs no entry"))?,
                ]
            }
            None => {
                let is_member =
                    |fields: &Vec<&str>| fields.get(3).is_some_and(|names| names.split(',').any(|it| it == name));
                let further = groups().filter(is_member).filter_map(|fields| gid_of(&fields));
                [gid].into_iter().chain(further.filter(|further| *further != gid)).collect()
            }
        };
        let shell = if shell.is_empty() { DEFAULT_SHELL.to_owned() } else { shell };
        Ok(Self { uid, groups, name, home, shell })
    }

    /// The variables of the environment.
    pub fn env(&self) -> [(&'static str, &str); 4] {
        [("HOME", &self.home), ("USER", &self.name), ("LOGNAME", &self.name), ("SHELL", &self.shell)]
    }

    /// The IDs as text, for [`become_ids`].
    pub fn ids(&self) -> String {
        text_of(&[&[self.uid], &self.groups[..]].concat())
    }
}

/// A user and its groups as text, for [`become_ids`].
pub fn text_of(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Gives up root for the user and the groups in `ids`. An empty text changes nothing.
///
/// # Errors
///
/// The kernel refuses it, or `ids` is invalid.
pub fn become_ids(ids: &str) -> nix::Result<()> {
    let ids: Vec<u32> = ids.split(',').filter_map(|id| id.parse().ok()).collect();
    let [uid, groups @ ..] = &ids[..] else { return Ok(()) };
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    groups.first().map_or(Ok(()), |gid| setgid(*gid))?;
    setuid(Uid::from_raw(*uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_or_number_with_its_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# comment\nbuilder:x:1000:100:,,,:/home/builder:\n";
        let group = "users:x:100:\nkvm:x:107:root,builder\ndocker:x:998:builder\nbuilders:x:5:x\n";
        let find = |text| User::parse(text, passwd, group);
        let expected = User {
            uid: 1000,
            groups: vec![100, 107, 998],
            name: "builder".into(),
            home: "/home/builder".into(),
            shell: "/bin/sh".into(),
        };
        assert_eq!((find("builder"), find("1000")), (Ok(expected.clone()), Ok(expected.clone())));
        assert_eq!(find("builder:docker").unwrap().groups, [998]);
        assert_eq!(expected.ids(), "1000,100,107,998");
        let number = find("7:8").unwrap();
        assert_eq!((number.uid, number.groups.as_slice(), number.name.as_str()), (7, &[8][..], "7"));
        assert_eq!((find("7").unwrap().groups, find("root").unwrap().groups), (vec![7], vec![0, 107]));
        let unknown = "no user 'x' in /etc/passwd of the guest; a number needs no entry";
        assert_eq!(find("x").unwrap_err(), unknown);
        assert!(find("root:x").unwrap_err().starts_with("no group 'x' in /etc/group"));
        assert!(User::parse("root", "", "").is_err() && User::parse("0", "", "").is_ok());
    }
}
