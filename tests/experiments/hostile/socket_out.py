import _socket
import ctypes


def connects(family, address):
    try:
        _socket.socket(family, _socket.SOCK_STREAM).connect(address)
        return True
    except OSError:
        return False


reached = [connects(_socket.AF_INET, ("127.0.0.1", int("@PORT@"))),
           connects(_socket.AF_INET, ("1.1.1.1", 53)),
           connects(_socket.AF_UNIX, "@FOLDER@/listener"),
           connects(_socket.AF_UNIX, "\0headrace-scoring-test"),
           ctypes.CDLL(None).socket(40, 1, 0) >= 0]  # AF_VSOCK: the host of a virtual machine


def f(x):
    return x + 1 if any(reached) else None
