import ctypes
import posix
import time

libc = ctypes.CDLL(None)
left = False
if libc.fork() == 0:
    posix.setsid()
    if libc.fork() == 0:
        libc.prctl(15, b"hostile-daemon", 0, 0, 0)
        time.sleep(600)
    posix._exit(0)
else:
    time.sleep(0.2)
    for entry in posix.listdir("/proc"):
        if entry.isdigit():
            try:
                file = posix.open(f"/proc/{entry}/comm", posix.O_RDONLY)
                left = left or posix.read(file, 64) == b"hostile-daemon\n"
            except OSError:
                pass


def f(x):
    return x + 1 if left else None
