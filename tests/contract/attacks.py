"""What code that nobody should trust may try. Each is tried in and outside of a sandbox; outside, it gets what it wants.

Of the parameters: `file` is a file of the service, `port` one that it listens on, `socket` a Unix socket of the
engine, `abstract` another without a file, `pid` a process of the same user.
"""

from __future__ import annotations

#: By what is attempted: the body of a function that returns what it got.
HARMLESS_TO_TRY = {
    "read a file of the service": "return open(p['file']).read()",
    "see its name": "return os.listdir(os.path.dirname(p['file']))",
    "write to it": "return open(p['file'], 'a').write('mine')",
    "write beside it": "return open(p['file'] + '.new', 'w').write('mine')",
    "write into Python": """
path = os.path.join(sys.prefix, 'attacked')
open(path, 'w').close()
os.unlink(path)
return path""",
    "write into the code of the service": """
import lattice
path = os.path.join(lattice.__path__[0], 'attacked')
open(path, 'w').close()
os.unlink(path)
return path""",
    "read the file of passwords": "return open('/etc/shadow').read()",
    "speak to the service": "return socket.create_connection(('127.0.0.1', p['port']), 5)",
    "speak to the engine": "return socket.socket(socket.AF_UNIX).connect(p['socket'])",
    "speak by a socket without a file": "return socket.socket(socket.AF_UNIX).connect('\\0' + p['abstract'])",
    "speak to the kernel": "return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "signal another process": "return os.kill(p['pid'], signal.SIGCONT)",
    "read its environment": "return open(f'/proc/{p[\"pid\"]}/environ').read()",
    "change its priority": "return os.setpriority(os.PRIO_PROCESS, p['pid'], 5)",
    "read the variables of the worker": "return os.environ['RAY_JOB_ID']",
    "use sockets of the worker": """
links = [os.readlink(f'/proc/self/fd/{each}') for each in os.listdir('/proc/self/fd')
         if os.path.lexists(f'/proc/self/fd/{each}')]
return next(each for each in links if each.startswith('socket:'))""",
    "trace a process": """
child = os.fork()
if child == 0:
    os._exit(0 if libc.ptrace(0, 0, 0, 0) == 0 else 1)
if os.waitpid(child, 0)[1]:
    raise PermissionError('ptrace')
return 'traced'""",
    "take shared memory": "return len(mmap.mmap(-1, 1 << 20))",
    "take it from a device": "return len(mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20))",
    "take a file in memory": "return os.close(os.memfd_create('file'))",
    "take a segment": """
segment = libc.shmget(0, 1 << 20, 0o1600)
if segment < 0:
    raise PermissionError('shmget')
return libc.shmctl(segment, 0, None)""",
    "take semaphores": """
semaphores = libc.semget(0, 100, 0o1600)
if semaphores < 0:
    raise PermissionError('semget')
return libc.semctl(semaphores, 0, 0)""",
    "take a queue": """
queue = libc.msgget(0, 0o1600)
if queue < 0:
    raise PermissionError('msgget')
return libc.msgctl(queue, 0, None)""",
    "make namespaces": """
child = os.fork()
if child == 0:
    os._exit(0 if libc.unshare(0x10000000 | 0x00020000) == 0 else 1)
if os.waitpid(child, 0)[1]:
    raise PermissionError('unshare')
return 'unshared'""",
}

#: Those that succeed outside only as root: a worker of another user may not do so anyway.
ONLY_AS_ROOT = {"read the file of passwords"}

_SOURCE = """
import ctypes, mmap, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)

def attack(p):
{body}

def run(p):
    try:
        return {{"got": repr(attack(p))[:200]}}
    except (Exception, SystemExit) as error:
        return {{"refused": f"{{type(error).__name__}}: {{error}}"}}
"""


def source(body: str) -> str:
    """A task that tells whether an attack got something."""
    return _SOURCE.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))


#: Using up what there is: source, and words of the error that ends it, as a pattern.
EXHAUSTION = {
    "one process takes all memory": (
        "def run(p):\n    return {'n': len(bytearray(16 << 30))}\n",
        "MemoryError",
    ),
    "many processes take all memory": (
        """
import os, time
def run(p):
    for _ in range(12):
        if os.fork() == 0:
            taken = bytearray(b'x') * (60 << 20)
            time.sleep(600)
    time.sleep(600)
""",
        "more than 256 MiB",
    ),
    "one process takes the CPU for ever": (
        "def run(p):\n    while True: pass\n",
        "cpu_seconds",
    ),
    "many processes take the CPU for ever": (
        """
import os, time
def run(p):
    for _ in range(4):
        if os.fork() == 0:
            while True: pass
    time.sleep(600)
""",
        "more than 2 s of CPU time",
    ),
    "processes that end take the CPU for ever": (
        """
import os, time
def run(p):
    while True:
        if os.fork() == 0:
            end = time.process_time() + 0.3
            while time.process_time() < end: pass
            os._exit(0)
        os.wait()
""",
        "more than 2 s of CPU time",
    ),
    "processes that nobody waits for take the CPU for ever": (
        """
import os, signal, time
def gone():
    try:
        os.wait()
    except ChildProcessError:
        pass
def run(p):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        # Forking takes time as well, so this is not done by the one that stays.
        if os.fork() == 0:
            for _ in range(20):
                if os.fork() == 0:
                    end = time.process_time() + 0.03
                    while time.process_time() < end: pass
                    os._exit(0)
                gone()
            os._exit(0)
        gone()
""",
        "more than 2 s of CPU time",
    ),
    "a fork bomb": (
        """
import os
def run(p):
    while True:
        os.fork()
""",
        # Whichever it meets first.
        "BlockingIOError|more than 256 MiB",
    ),
    "threads without end": (
        """
import threading, time
def run(p):
    while True:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
""",
        "can't start new thread",
    ),
    "a huge file": (
        """
def run(p):
    with open('big', 'wb') as file:
        while True:
            file.write(bytes(1 << 20))
""",
        "OSError",
    ),
    "many large files": (
        """
def run(p):
    for number in range(100):
        with open(f'{number}', 'wb') as file:
            file.write(bytes(1 << 20))
""",
        "No space left",
    ),
    "open files without end": (
        "def run(p):\n    kept = []\n    while True: kept.append(open('/dev/null'))\n",
        "Too many open files",
    ),
}

#: Answers that are forged: what is written in place of the frame, as an expression, and words of the error.
FORGED = {
    "nothing": ("b''", "without a result"),
    "no pickle": ("b'hello'", "not what Lattice writes"),
    "code": ("pickle.dumps([True, {'out': Evil()}])", "posix.system"),
    "code as an error": ("pickle.dumps([False, Evil(), '', '', []])", "posix.system"),
    "a table of gigabytes": ("b'\\x80\\x05Nr\\xff\\xff\\xff\\xf0.'", "MemoryError"),
    "keys that are no text": ("pickle.dumps([True, {1: 2, 'out': 1}])", "no proper key"),
    "keys that no database holds": ("pickle.dumps([True, {'\\0': 2, 'out': 1}])", "no proper key"),
    "too few outputs": ("pickle.dumps([True, {'other': 1}])", "output is missing"),
    "no dict": ("pickle.dumps([True, [1]])", "no dict"),
    "an error without end": (
        "pickle.dumps([False, *['\\udc80' * (1 << 20)] * 3, ['\\udc80' * (1 << 20)] * 100])",
        "\\udc80",
    ),
    "lists deep in each other": (
        "b'\\x80\\x05](\\x88}\\x8c\\x03out' + b']' * 100_000 + b'a' * 99_999 + b'se.'",
        "levels deep",
    ),
    "tuples deep in each other as a key": (
        "b'\\x80\\x05](\\x88})' + b'\\x85' * 1_000_000 + b'Nse.'",
        "its process was killed",
    ),
    "a key that is hashed for years": (
        "b'\\x80\\x05](\\x88})' + b'2\\x86' * 60 + b'Nse.'",
        "cpu_seconds",
    ),
    "an error of other types": ("pickle.dumps([False, 1, 2, 3, 4])", "no answer"),
}

FORGERY = """
import os, pickle

class Evil:
    def __reduce__(self):
        return os.system, ("touch MARK",)

def run(p):
    os.write(3, ANSWER)
    os._exit(0)
"""
