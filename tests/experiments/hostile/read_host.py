import _io
import posix

found = []
for path in ("@FOLDER@/secret", "/etc/passwd", "/etc/shadow", "/etc/hostname", "/root", "/home",
             "/var", "/sys/kernel", "/proc/1/root/etc/passwd", f"/proc/{posix.getppid()}/environ"):
    try:
        if posix.listdir(path):
            found.append(path)
    except OSError:
        pass
    try:
        with _io.open(path, "rb") as file:
            found += [path] if file.read() else []
    except OSError:
        pass
try:
    with _io.open("/proc/1/environ", "rb") as file:
        found += ["environ"] if b"HEADRACE_SECRET" in file.read() else []
except OSError:
    pass
found += [name for name in posix.environ if b"SECRET" in name]


def f(x):
    return x + 1 if set(found) - {"/root", "/home"} else None
