import _thread
import time

started = 0
try:
    while started < 100000:
        _thread.start_new_thread(time.sleep, (60,))
        started += 1
except RuntimeError:
    pass


def f(x):
    return x + 1 if started == 100000 else None
