"""Signals are collected, and put back."""

from __future__ import annotations

import signal
import threading

import pytest

from potstill.errors import Interrupted
from potstill.training.interruption import stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_told_and_the_second_acts(number: signal.Signals) -> None:
    acted: list[int] = []
    before = signal.signal(number, lambda got, _: acted.append(got))
    try:
        with stop_signals() as asked:
            assert asked == [0]
            signal.raise_signal(number)
            assert (asked, acted) == ([number], [])
            signal.raise_signal(number)
            assert (asked, acted) == ([number], [number])
        signal.raise_signal(number)
        assert acted == [number, number]
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), stop_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_gets_none_and_changes_none() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with stop_signals() as asked:
            seen.extend([asked[0], signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0, before]


def test_the_message_says_how_to_go_on() -> None:
    error = Interrupted(15, 7)
    assert error.signum == 15
    assert str(error) == "stopped at step 7; run the same command to resume there"
