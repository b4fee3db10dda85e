"""Heartbeat: an actor's answers to its watchdog, which sits in the node and asks.

Two questions, each answered with the number that came with it, in a word of the status board. "Does the event loop
run?" comes over the control socket, once a second at most, and is answered by the loop (PONG). "Can any Python thread
run?" is asked only when the first answer, or the end of a message, is overdue; a thread that sleeps in `read` until
then answers it (BEAT). So an idle actor wakes up once a second, and one without a watchdog never.

The third thing that the node is given is a file into which `faulthandler` writes the stacks of all threads when the
signal STACK_SIGNAL comes: from C, whoever holds the GIL.
"""

from __future__ import annotations

import os
import signal
from time import monotonic_ns

from loom.actor import board as rows

STACK_SIGNAL = signal.SIGRTMIN + 13
"""Asks a watched actor for its stacks. Taken from the middle of the range, away from those that programs pick."""

_NUMBER = 8
"""Bytes of a question."""


class Heartbeat:
    """This process's answers. `words` is the status board, `row` this actor's line on it."""

    def __init__(self, words: memoryview, row: int) -> None:
        self._words = words
        self._at = row * rows.WORDS

    def progress(self) -> None:
        """What runs gets on."""
        self._words[self._at + rows.PROGRESS_NS] = monotonic_ns()

    def pong(self, number: int) -> None:
        """The event loop runs, and has read this question."""
        self._words[self._at + rows.PONG] = number

    def start(self) -> list[int]:
        """Begin to answer. Returns: the descriptors for the node: where to ask for a beat, and the stacks' file."""
        import faulthandler
        import threading

        ask, asked = os.pipe()
        stacks = os.memfd_create("loom-stacks", os.MFD_CLOEXEC)
        faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True)
        threading.Thread(target=self._beat, args=(ask,), name="loom-heartbeat", daemon=True).start()
        return [asked, stacks]

    def _beat(self, fd: int) -> None:
        while number := os.read(fd, _NUMBER):
            self._words[self._at + rows.BEAT] = int.from_bytes(number, "little")
        os.close(fd)


def ask(fd: int, number: int) -> None:
    """From the node: ask for beat `number`. Raises: OSError when the process is gone, or has not read the last ones."""
    os.write(fd, number.to_bytes(_NUMBER, "little"))
