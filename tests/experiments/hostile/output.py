import posix

block = "x" * (1 << 20)
for _ in range(1024):
    posix.write(1, block.encode())
    posix.write(2, block.encode())
for _ in range(1024):
    print(block)
raise SystemExit
