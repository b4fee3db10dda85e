"""Define an actor, call it, kill its process, and watch it come back: python counter.py"""

import os
import signal
import time

import loom


class Counter(loom.Actor):
    def __init__(self, start):  # runs in the actor's own process
        self.count = start

    def add(self, by):
        self.count += by
        return self.count

    def nap(self, seconds):
        time.sleep(seconds)

    def pid(self):
        return os.getpid()


if __name__ == "__main__":
    with loom.Node() as node:
        counter = node.spawn(Counter, 40, name="counter")
        print(counter.add(2).result(timeout_s=5))  # 42, from another process
        pid = counter.pid().result(timeout_s=5)
        nap = counter.nap(60)
        os.kill(pid, signal.SIGKILL)
        try:
            nap.result(timeout_s=5)
        except loom.errors.ActorDied as error:
            print(error)  # ... killed by SIGKILL
        print(counter.add(1).result(timeout_s=5))  # 41: a new process, made as the first was
