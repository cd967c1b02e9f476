"""The errors that have exit codes of their own; nothing is imported here."""

from __future__ import annotations


class BenchmarkFailed(RuntimeError):
    """A child process died; the message is one sentence."""


class Interrupted(Exception):
    """Training was asked to stop by a signal and has saved its work."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped at step {step}; run the same command to resume there")
        self.signum = signum


class ParityFailed(RuntimeError):
    """An exported model's outputs differ from its source's; the message is one sentence."""


class QuantizationFailed(RuntimeError):
    """A quantized model misses its limits; the message is one sentence."""


class TrainingFailed(RuntimeError):
    """A run can't continue; the message is one sentence."""


# --- numbers --------------------------------------------------------------------------------------


class NotFinite(RuntimeError):
    """A model that was made here holds NaN or infinity; the message is one sentence."""
