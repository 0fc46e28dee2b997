import _io
import posix
import sys

import evalplus

places = ["@FOLDER@", "/usr/lib", "/etc", "/", "/dev", "/root", evalplus.__path__[0], sys.prefix,
          "@SCORING@", "@WORK@"]
written = []
for place in places:
    try:
        with _io.open(f"{place}/hostile-was-here", "w") as file:
            file.write("x")
        written.append(place)
    except OSError:
        pass
for place in ("@FOLDER@/secret", evalplus.__file__):
    try:
        posix.unlink(place)
        written.append(place)
    except OSError:
        pass


def f(x):
    return x + 1 if written else None
