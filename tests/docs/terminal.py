#!/usr/bin/env python3
"""Runs a script in a terminal, answers each of its questions with yes, and ends with its exit code.

usage: terminal.py SCRIPT
"""

import os
import pty
import sys

# The end of a question, and where the cursor is, which the `nats` CLI requests before it shows one.
QUESTIONS = {b"[y/N]": b"y\r", b"(Y/n)": b"n\r", b"\x1b[6n": b"\x1b[1;1R"}


def main() -> int:
    child, terminal = pty.fork()
    if child == 0:
        os.execvp("bash", ["bash", "-c", sys.argv[1]])
    unanswered = b""
    while True:
        try:
            text = os.read(terminal, 65536)
        except OSError:
            # On Linux, the end of the last process at the terminal.
            break
        if not text:
            break
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
        unanswered += text
        for question, answer in QUESTIONS.items():
            if question in unanswered:
                os.write(terminal, answer)
                unanswered = b""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
