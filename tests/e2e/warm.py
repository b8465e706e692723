"""A process that has imported the engine, and forks for each command: it starts at once, not after eight seconds.

A command is a process of its own all the same, with pipes, signals and an exit status, and as `subprocess.Popen` has
them: this process hands it over to the one that asked. The rest of the file is run by `WarmServer`.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class WarmServer:
    """The process, started when it is first needed. What starts a CUDA context cannot be forked: not on a GPU."""

    def __init__(self) -> None:
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        # In a session of its own: Ctrl-C in the terminal is for pytest. The commands take their streams' modes from it.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True, **pipes)
        theirs.close()

    def close(self) -> None:
        """End it; commands under way are left alone."""
        self.connection.close()
        self.process.wait()

    def popen(self, arguments: tuple[str, ...], **options: Any) -> "subprocess.Popen[str]":
        """`yi-tune` with these arguments; options are those of `subprocess.Popen`."""
        return _Forked(self.connection, list(arguments), **options)


class _Forked(subprocess.Popen[str]):
    """A process that was forked elsewhere, and then adopted."""

    def __init__(self, connection: socket.socket, arguments: list[str], **options: Any) -> None:
        self.connection = connection
        super().__init__(arguments, **options)

    def _execute_child(self, arguments: list[str], *given: Any) -> None:
        # In the order of subprocess.Popen's own, in Python 3.11 to 3.14.
        folder, (stdin, to_stdin, of_stdout, stdout, of_stderr, stderr) = given[4], given[9:15]
        streams = [own if own >= 0 else default for default, own in enumerate((stdin, stdout, stderr))]
        socket.send_fds(self.connection, [json.dumps([arguments, str(folder)]).encode()], streams)
        self.pid = int(self.connection.recv(32))
        self._child_created = True
        for ours, theirs in ((to_stdin, stdin), (of_stdout, stdout), (of_stderr, stderr)):
            if ours >= 0:  # a pipe's other end; else it is the caller's own file
                os.close(theirs)


def wait_for_command(connection: socket.socket) -> list[str]:
    """Fork for every request. Returns its arguments in a process that has its streams and its folder."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not request:
            os._exit(0)
        arguments, folder = json.loads(request)
        reading, writing = os.pipe()
        if between := os.fork():
            os.waitpid(between, 0)
            connection.send(os.read(reading, 32))
            for descriptor in (reading, writing, *descriptors):
                os.close(descriptor)
        elif command := os.fork():
            os.write(writing, str(command).encode())
            os._exit(0)  # the command is an orphan now, which pytest adopts
        else:
            for stream, descriptor in enumerate(descriptors):
                os.dup2(descriptor, stream)
            for descriptor in (reading, writing, connection.detach(), *descriptors):
                os.close(descriptor)
            os.chdir(folder)
            return arguments


if __name__ == "__main__":
    import llamafactory.chat
    import llamafactory.train.tuner  # noqa: F401
    import peft  # noqa: F401

    from yi_tune.cli import main

    gc.freeze()  # no collection in a command writes to the pages that it shares
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["yi-tune", *wait_for_command(socket.socket(fileno=int(sys.argv[1])))]
    main()
