"""Ctrl-C and SIGTERM while there is something to save."""

import io
import signal
import threading

import pytest

from deepseek_jax.recipes import stop as stopping


def test_a_second_signal_acts_as_if_nobody_listened(monkeypatch):
    """Oracle: Python's own answer to Ctrl-C, KeyboardInterrupt; the first only sets the flag, and one that
    comes at once with it does nothing.
    """
    now = [10.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    # A shell that starts pytest in the background has it ignore SIGINT
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stop = stopping.Stop()
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        now[0] += stopping.TOGETHER_SECONDS / 2
        signal.raise_signal(signal.SIGINT)
        now[0] += stopping.TOGETHER_SECONDS
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_a_signal_that_comes_amid_a_print_sets_the_flag_all_the_same(monkeypatch, capfd):
    """Oracle: by hand: a signal while the output is being written, where a print raises RuntimeError."""

    class Signalled(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if not stop():  # a second one would end this process
                signal.raise_signal(signal.SIGTERM)
            return len(data)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        stop = stopping.Stop()
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(Signalled())))
            print("a step's line", flush=True)
        assert stop() and "SIGTERM: finishing the step" in capfd.readouterr().out
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_in_another_thread_nothing_is_heard_and_nothing_fails():
    """Oracle: Python's own rule, that the main thread alone may set a handler."""
    heard = []

    def listen():
        with stopping.Stop() as stop:
            heard.append(stop())

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [False] and signal.getsignal(signal.SIGINT) is before
