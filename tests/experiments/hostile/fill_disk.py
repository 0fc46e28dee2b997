import _io

written = 0
try:
    for number in range(1024):
        with _io.open(f"/tmp/{number}", "wb") as file:
            file.write(b"x" * (1 << 20))
        written += 1
except OSError:
    pass
try:
    with _io.open("/dev/shm/big", "wb") as file:
        file.write(b"x" * (1 << 28))
    written = 1024
except OSError:
    pass


def f(x):
    return x + 1 if written == 1024 else None
