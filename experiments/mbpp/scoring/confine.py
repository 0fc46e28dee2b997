"""What a candidate's process may do, set by the process that starts it, inside the sandbox.

Limits of memory, CPU time, file size and open files hold for both. EvalPlus forks one process per
test suite and runs the candidate in it; before the first line of the candidate that process loses
its descriptors and environment and gets a system call filter: it cannot start a process, open a
socket, signal or trace another process, or take memory that the limits do not count.
"""
import ctypes
import errno
import fcntl
import importlib
import os
import resource
import stat

from scoring import evalplus_parts

PR_SET_DUMPABLE = 4
CLONE_THREAD = 0x10000
F_SETOWN_EX = 15  # like the other two: who gets which signal when a pipe is ready

FORBIDDEN = [
    # processes; os.fork is clone without CLONE_THREAD, see below
    "fork", "vfork", "execve", "execveat", "unshare", "setns",
    # other processes
    "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal",
    "pidfd_getfd", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp",
    # networks; a VM socket is not bound to a network namespace
    "socket", "io_uring_setup", "io_uring_enter", "io_uring_register",
    # memory outside RLIMIT_AS
    "shmget", "msgget", "semget", "mq_open", "memfd_create", "memfd_secret",
    # kernel interfaces with a history
    "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "mount", "umount2",
    "pivot_root", "fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr", "chroot",
]


def limit(limits):
    """Sets the limits of this process and of those that it starts."""
    for name, value in ((resource.RLIMIT_AS, limits["memory_bytes"]),
                        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
                        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
                        (resource.RLIMIT_NOFILE, limits["open_files"]),
                        (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(name, (value, value))
    # EvalPlus sets this one in the candidate's process.
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(limits["memory_bytes"])


def hide_memory():
    """Other processes of the same user can no longer open this one's /proc/PID/mem and fd/."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def at_fork(result, open_files, filtered):
    """Every process that this one forks is a candidate's from its first instruction on.

    result: the descriptor of the verdict; filtered: whether the system call filter is loaded, which
    needs libseccomp.
    """
    seccomp = importlib.import_module("pyseccomp") if filtered else None
    os.register_at_fork(after_in_child=lambda: _become_candidate(result, open_files, seccomp))


def _become_candidate(result, open_files, seccomp):
    try:
        _drop_descriptors(result, open_files)
        os.environ.clear()
        os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(resource.getrlimit(resource.RLIMIT_AS)[0])
        evalplus_parts.forget_unused()
        if seccomp:
            _filter_system_calls(seccomp)
    except BaseException:  # An exception would be printed, and the candidate run without all this.
        os._exit(1)


def _drop_descriptors(result, open_files):
    os.close(result)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    for descriptor in range(3, open_files):
        try:
            # The memory that EvalPlus reads its verdict from is a file. Pipes stay: Python counts
            # on them, and they carry no verdict.
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise


def _filter_system_calls(seccomp):
    def forbid(call, *conditions, error=errno.EPERM):
        rules.add_rule(seccomp.ERRNO(error), call, *conditions)

    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in FORBIDDEN:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number >= 0:  # known to this libseccomp, and there on this architecture
            forbid(number)
    forbid("clone", seccomp.Arg(0, seccomp.MASKED_EQ, CLONE_THREAD, 0))
    # The flags of clone3 lie in memory, which a filter cannot read; the C library falls back.
    forbid("clone3", error=errno.ENOSYS)
    # What Python and EvalPlus do to their own process.
    forbid("tgkill", seccomp.Arg(0, seccomp.NE, os.getpid()))
    forbid("prlimit64", seccomp.Arg(0, seccomp.NE, 0))
    for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, F_SETOWN_EX):
        forbid("fcntl", seccomp.Arg(1, seccomp.EQ, command))
    rules.load()
