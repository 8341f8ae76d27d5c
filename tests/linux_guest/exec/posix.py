"""Prints what system calls in the directory argv[1] return, one line each: the same in a share as on its host."""

import errno, fcntl, mmap, os, socket, stat, sys, tempfile

os.chdir(sys.argv[1])
os.umask(0o027)
LONG = "n" * 255
NOT_UTF8 = b"\xff\xfe \n'"


def check(name, call):
    try:
        result = call()
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(f"{name}: {result}")


def write(name, data=b"", flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o666):
    fd = os.open(name, flags, mode)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def read(name):
    with open(name, "rb") as file:
        return file.read()


def attributes(name):
    it = os.lstat(name)
    size = "" if stat.S_ISDIR(it.st_mode) else it.st_size
    return stat.filemode(it.st_mode), it.st_uid, it.st_gid, it.st_nlink, size


def then(*calls):
    """The results of calls, up to one that fails."""
    def run():
        results = []
        for call in calls:
            try:
                results.append(call())
            except OSError as error:
                return results + [errno.errorcode[error.errno]]
        return results
    return run


def opened(name, flags, use, mode=0o666):
    def run():
        fd = os.open(name, flags, mode)
        try:
            return use(fd)
        finally:
            os.close(fd)
    return run


def create_and_open():
    check("write", then(lambda: write("file", b"content"), lambda: read("file"), lambda: attributes("file")))
    check("exclusive", lambda: write("file", b"", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    check("append", then(lambda: write("file", b"+", os.O_WRONLY | os.O_APPEND), lambda: read("file")))
    check("truncate", then(lambda: os.truncate("file", 3), lambda: os.truncate("file", 5), lambda: read("file")))
    check("negative", lambda: os.truncate("file", -1))
    check("no such", lambda: read("missing"))
    check("directory read", opened(".", os.O_RDONLY, lambda fd: os.read(fd, 1)))
    check("directory written", lambda: write("."))
    check("not a directory", opened("file", os.O_RDONLY | os.O_DIRECTORY, str))
    check("below a file", lambda: read("file/x"))
    check("trailing slash", lambda: write("new/"))
    check("long", then(lambda: write(LONG, b"l"), lambda: read(LONG), lambda: os.unlink(LONG)))
    check("too long", lambda: write(LONG + "n"))
    check("bytes", then(lambda: write(NOT_UTF8, b"b"), lambda: NOT_UTF8 in os.listdir(b"."), lambda: os.unlink(NOT_UTF8)))
    check("read-only descriptor", opened("file", os.O_RDONLY, lambda fd: os.write(fd, b"x")))
    check("write-only descriptor", opened("file", os.O_WRONLY, lambda fd: os.read(fd, 1)))
    check("mode 000", then(lambda: write("none", b"n", mode=0), lambda: read("none"), lambda: os.unlink("none")))


def links_and_names():
    check("link", then(lambda: os.link("file", "hard"), lambda: os.stat("hard").st_nlink, lambda: os.path.samefile("file", "hard")))
    check("link exists", lambda: os.link("file", "hard"))
    check("link of a directory", lambda: os.link(".", "dirlink"))
    check("symlink", then(lambda: os.symlink("file", "soft"), lambda: os.readlink("soft"), lambda: read("soft"), lambda: attributes("soft")))
    check("link of a symlink", then(lambda: os.link("soft", "soft2", follow_symlinks=False), lambda: os.readlink("soft2")))
    check("loop", then(lambda: os.symlink("loop", "loop"), lambda: read("loop")))
    check("dangling", then(lambda: os.symlink("x/y", "dangling"), lambda: write("dangling")))
    check("no follow", opened("soft", os.O_RDONLY | os.O_NOFOLLOW, str))
    check("long target", then(lambda: os.symlink("t" * 4000, "target"), lambda: len(os.readlink("target"))))
    check("mkdir", then(lambda: os.mkdir("dir"), lambda: attributes("dir"), lambda: os.mkdir("dir")))
    check("rmdir", then(lambda: os.mkdir("dir/sub"), lambda: os.stat("dir").st_nlink, lambda: os.rmdir("dir")))
    check("rmdir of a file", lambda: os.rmdir("file"))
    check("unlink of a directory", lambda: os.unlink("dir"))
    check("rmdir .", lambda: os.rmdir("dir/."))
    check("rename", then(lambda: os.rename("hard", "dir/moved"), lambda: read("dir/moved"), lambda: os.stat("hard")))
    check("rename over", then(lambda: write("other", b"o"), lambda: os.rename("other", "dir/moved"), lambda: read("dir/moved")))
    check("rename into itself", lambda: os.rename("dir", "dir/sub/dir"))
    check("rename over a directory", lambda: os.rename("file", "dir"))
    check("rename over a full directory", then(lambda: os.mkdir("dir2"), lambda: os.rename("dir2", "dir")))
    check("rename over an empty directory", then(lambda: os.rename("dir2", "dir/sub"), lambda: sorted(os.listdir("dir"))))
    check("rename of nothing", lambda: os.rename("nothing", "x"))
    check("fifo", then(lambda: os.mkfifo("fifo"), lambda: attributes("fifo")))
    check("device", then(lambda: os.mknod("null", 0o600 | stat.S_IFCHR, os.makedev(1, 3)), lambda: os.stat("null").st_rdev))
    check("removed directory", removed_directory)
    check("socket", local_socket)


def removed_directory():
    os.mkdir("gone")
    fd = os.open("gone", os.O_RDONLY)
    os.rmdir("gone")
    return then(lambda: os.fstat(fd).st_nlink, lambda: os.listdir(fd), lambda: os.open("x", os.O_CREAT, dir_fd=fd))()


def local_socket():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("sock")
        server.listen()
        client.connect("sock")
        client.send(b"through")
        return attributes("sock")[0], server.accept()[0].recv(9)


def attributes_and_permissions():
    check("chmod", then(lambda: os.chmod("file", 0o6751), lambda: attributes("file")))
    check("write clears set-id", then(lambda: os.chmod("file", 0o6755), lambda: write("file", b"w", os.O_WRONLY), lambda: attributes("file")))
    check("chown", then(lambda: os.chown("file", 1234, 2345), lambda: attributes("file")))
    check("chown to oneself", lambda: os.chown("file", os.getuid(), os.getgid()))
    check("chown clears set-id", then(lambda: os.chmod("file", 0o6755), lambda: os.chown("file", os.getuid(), -1), lambda: attributes("file")))
    check("times", then(lambda: os.utime("file", ns=(1_000_000_001, 2_000_000_003)), lambda: (os.stat("file").st_atime_ns, os.stat("file").st_mtime_ns)))
    check("write sets the time", then(lambda: write("file", b"x"), lambda: os.stat("file").st_mtime > 1e9))
    check("set-group-ID directory", then(lambda: os.mkdir("sgid"), lambda: os.chmod("sgid", 0o2775), lambda: write("sgid/f"), lambda: os.mkdir("sgid/d"), lambda: attributes("sgid/d")[0]))
    check("no permission", then(lambda: os.mkdir("closed"), lambda: write("closed/f"), lambda: os.chmod("closed", 0), lambda: read("closed/f"), lambda: os.listdir("closed")))
    check("no permission to write", then(lambda: os.chmod("closed", 0o555), lambda: write("closed/new"), lambda: os.unlink("closed/new")))
    check("access", lambda: [os.access("file", how) for how in (os.R_OK, os.W_OK, os.X_OK)])
    name = "user.kick"
    check("attribute", then(lambda: os.setxattr("file", name, b"vm"), lambda: os.getxattr("file", name), lambda: os.listxattr("file"), lambda: os.setxattr("file", name, b"", os.XATTR_CREATE)))
    check("attribute removed", then(lambda: os.removexattr("file", name), lambda: os.getxattr("file", name)))
    check("attribute of a symlink", lambda: os.setxattr("soft", name, b"x", follow_symlinks=False))
    check("trusted attribute", then(lambda: os.setxattr("file", "trusted.kick", b"t"), lambda: os.getxattr("file", "trusted.kick")))
    check("name limit", lambda: os.statvfs(".").f_namemax)


def contents():
    rw = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    check("holes", opened("sparse", rw, lambda fd: (os.pwrite(fd, b"end", 5 << 30), os.fstat(fd).st_size, os.pread(fd, 9, (5 << 30) - 2), os.lseek(fd, 0, os.SEEK_DATA), os.fstat(fd).st_blocks < 64)))
    check("no data", opened("empty", rw, lambda fd: os.lseek(fd, 0, os.SEEK_DATA)))
    check("hole at the end", opened("file", os.O_RDONLY, lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)))
    check("fallocate", opened("space", rw, lambda fd: (os.posix_fallocate(fd, 4096, 8192), os.fstat(fd).st_size, os.fstat(fd).st_blocks > 0)))
    check("copy", opened("copy", rw, lambda to: opened("sparse", os.O_RDONLY, lambda fd: (os.copy_file_range(fd, to, 3, 5 << 30, 2), os.fstat(to).st_size))()))
    check("sendfile", opened("copy", rw, lambda to: opened("sparse", os.O_RDONLY, lambda fd: (os.sendfile(to, fd, 5 << 30, 9), os.pread(to, 9, 0)))()))
    check("vectors", opened("vectors", rw, lambda fd: (os.writev(fd, [b"ab", b"", b"cde"]), os.preadv(fd, [one := bytearray(2), two := bytearray(9)], 1), one, two)))
    check("megabytes", opened("large", rw, lambda fd: (os.write(fd, bytes(range(256)) * 12000), sum(os.pread(fd, 4 << 20, 1)))))
    check("sync", opened("large", os.O_RDWR | os.O_SYNC, lambda fd: (os.write(fd, b"s"), os.fsync(fd), os.fdatasync(fd))))
    check("mapping", mapping)
    check("temporary", temporary)
    check("without a name", opened(".", os.O_TMPFILE | os.O_RDWR, unnamed))
    check("deleted", deleted)
    check("locks", locks)
    check("seek", opened("large", os.O_RDONLY, lambda fd: (os.lseek(fd, -2, os.SEEK_END), os.read(fd, 9))))
    check("size", lambda: [os.stat(name).st_size for name in ("sparse", "space", "copy", "large")])


def mapping():
    with open("mapped", "w+b") as file:
        file.write(b"." * 5000)
        file.flush()
        with mmap.mmap(file.fileno(), 5000) as shared:
            shared[4090:4100] = b"0123456789"
            shared.flush()
            shared[0:1] = b"m"
        return read("mapped")[4088:4102], read("mapped")[:2], os.stat("mapped").st_size


def temporary():
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(b"t" * 10)
        file.flush()
        return os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_nlink


def unnamed(fd):
    os.write(fd, b"u")
    links = os.fstat(fd).st_nlink
    os.link(f"/proc/self/fd/{fd}", "named", src_dir_fd=fd, follow_symlinks=True)  # calls linkat(2), as link(2) does not follow
    return links, os.fstat(fd).st_nlink, read("named"), attributes("named")[0]


def deleted():
    write("deleted", b"d")
    fd = os.open("deleted", os.O_RDWR)
    os.unlink("deleted")
    write("deleted", b"another")
    os.ftruncate(fd, 4)
    return os.fstat(fd).st_nlink, os.fstat(fd).st_size, os.pread(fd, 9, 0), read("deleted")


def locks():
    one, two = os.open("file", os.O_RDWR), os.open("file", os.O_RDWR)
    def denied(lock):
        try:
            lock()
            return False
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
    fcntl.flock(one, fcntl.LOCK_EX)
    flock = denied(lambda: fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB))
    fcntl.flock(one, fcntl.LOCK_UN)
    fcntl.lockf(one, fcntl.LOCK_EX, 10, 5)
    child = os.fork()
    if child == 0:
        apart = denied(lambda: fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0))
        os._exit(2 * denied(lambda: fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 12)) + apart)
    return flock, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def directories():
    os.mkdir("many")
    for number in range(300):
        write(f"many/{number}")
    check("listed", lambda: (len(os.listdir("many")), len(set(os.listdir("many")))))
    with os.scandir("many") as entries:
        for entry in entries:  # deleting what was listed
            os.unlink(entry)
    check("emptied", then(lambda: os.listdir("many"), lambda: os.rmdir("many")))
    kinds = lambda: sorted((it.name, it.is_dir(follow_symlinks=False), it.is_symlink()) for it in os.scandir("."))
    check("kinds", kinds)


for part in (create_and_open, links_and_names, attributes_and_permissions, contents, directories):
    part()
