"""The errors that the command line tells apart; nothing is imported here."""

from __future__ import annotations


class BenchmarkFailed(RuntimeError):
    """A child process died; the message is one sentence."""


class Interrupted(Exception):
    """Training was asked to stop by a signal and has saved its work."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped at step {step}; the same command goes on from there")
        self.signum = signum


class ParityFailed(RuntimeError):
    """An exported model answers otherwise than its source; the message is one sentence."""


class QuantizationFailed(RuntimeError):
    """A quantised model misses what was asked of it; the message is one sentence."""


class TrainingFailed(RuntimeError):
    """A run that can't go on; the message is one sentence."""


# --- numbers --------------------------------------------------------------------------------------


class NotFinite(RuntimeError):
    """A model that was made here holds NaN or infinity; the message is one sentence."""
