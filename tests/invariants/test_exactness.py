"""What must not change the numbers: micro-batches, processes, a stop in between, a cache."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers.modeling_layers import GradientCheckpointingLayer

from potstill import errors
from potstill.pipeline import run
from potstill.training import loop
from same_runs import LAUNCHERS, StopAt, assert_same_run, launched, losses, recipe, weights


def test_eight_is_four_times_two_is_two_times_four(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    folders = [
        run(
            recipe(masked_lm_teacher, text_file, micro_batch_size=micro),
            output=tmp_path / str(micro),
        )
        for micro in (8, 4, 2)
    ]
    assert_same_run(folders[0], folders[1])
    assert_same_run(folders[0], folders[2])


def test_micro_batches_of_whole_groups_change_nothing(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    # eps well above the rounding of gradients that are 0 but for it
    settings = {"task": "sentence_embedding", "batch_size": 12, "eps": 1e-4}
    folders = [
        run(
            recipe(sentence_teacher, text_file, micro_batch_size=micro, **settings),
            output=tmp_path / str(micro),
        )
        for micro in (12, 6, 3)
    ]
    assert_same_run(folders[0], folders[1])
    assert_same_run(folders[0], folders[2])


def test_chunk_size_changes_nothing(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    folders = [
        run(recipe(masked_lm_teacher, text_file, chunk_size=size), output=tmp_path / str(size))
        for size in (7, 1000)
    ]
    assert_same_run(*folders)


@pytest.mark.parametrize("dropout", [True, False])
def test_gradient_checkpointing_changes_nothing(
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    dropout: bool,
) -> None:
    checkpointed = []
    original = GradientCheckpointingLayer.__call__

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        checkpointed.append(self.gradient_checkpointing and self.training)
        return original(self, *arguments, **named)

    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", counted)
    folders = [
        run(
            recipe(masked_lm_teacher, text_file, gradient_checkpointing=on, dropout=dropout),
            output=tmp_path / str(on),
        )
        for on in (False, True)
    ]
    assert_same_run(*folders)
    assert sum(checkpointed) == 6 * 2  # steps, layers of the student
    assert not [w for w in recwarn if "checkpointing" in str(w.message)]  # of no use to a user


def test_accelerates_configuration_changes_nothing(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [run(recipe(masked_lm_teacher, text_file), output=tmp_path / "plain")]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    AcceleratorState._reset_state(reset_partial_state=True)
    folders += [run(recipe(masked_lm_teacher, text_file), output=tmp_path / "configured")]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert_same_run(*folders)


def test_a_stopped_run_goes_on_to_the_same_weights(
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With dropout and masking on, and the stop in the middle of the second epoch."""
    settings = {"max_steps": 50, "dropout": True, "checkpoint_steps": 10}
    whole = run(recipe(masked_lm_teacher, text_file, **settings), output=tmp_path / "whole")

    step = loop._Loop._step

    def stop(loop: loop._Loop, number: int, batches: Any) -> None:
        if number == 43:
            raise StopAt
        step(loop, number, batches)

    monkeypatch.setattr(loop._Loop, "_step", stop)
    with pytest.raises(StopAt):
        run(recipe(masked_lm_teacher, text_file, **settings), output=tmp_path / "parts")
    monkeypatch.undo()
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "another-cache"))
    parts = run(recipe(masked_lm_teacher, text_file, **settings), output=tmp_path / "parts")

    events = [
        json.loads(x) for x in (parts / "stages/02-distill/log.jsonl").read_text().splitlines()
    ]
    assert [e["event"] for e in events if e["event"] in ("start", "resume")] == ["start", "resume"]
    assert [e["step"] for e in events if e["event"] == "train"] == list(range(1, 51))
    for name, value in weights(whole).items():
        assert torch.equal(weights(parts)[name], value), name


def test_sigterm_saves_and_the_same_command_goes_on(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    plan = recipe(masked_lm_teacher, text_file, max_steps=100_000, log_every=1)
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    command = [sys.executable, "-m", "potstill", "run", str(path), "-o", str(tmp_path / "run")]
    log = tmp_path / "run/stages/02-distill/log.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (log.exists() and '"step": 3' in log.read_text()):
        pass
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 143, printed
    assert "run the same command to resume there" in printed
    stopped = max(losses(tmp_path / "run"))
    shorter = subprocess.run(
        [*command, f"distill.training.max_steps={stopped + 2}"],
        capture_output=True,
        text=True,
        check=True,
    )
    # another number of steps is another configuration: trained anew, and said so
    assert "runs again" in shorter.stdout


def test_a_signal_in_the_last_step_stops_before_the_next_stage(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe(masked_lm_teacher, text_file)
    whole = run(plan, output=tmp_path / "whole")
    step = loop._Loop._step

    def last(loop: loop._Loop, number: int, batches: Any) -> None:
        step(loop, number, batches)
        if number == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop._Loop, "_step", last)
    with pytest.raises(errors.Interrupted, match="stopped at step 6"):
        run(plan, output=tmp_path / "parts")
    parts = run(plan, output=tmp_path / "parts")  # takes no step any more
    for name, value in weights(whole).items():
        assert torch.equal(weights(parts)[name], value), name


def test_two_processes_give_the_losses_and_weights_of_one(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    plan = recipe(masked_lm_teacher, text_file, micro_batch_size=2, dropout=True, max_steps=6)
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    one = run(plan, output=tmp_path / "one")
    for number, launcher in enumerate(LAUNCHERS):
        assert_same_run(one, launched(launcher, path, tmp_path / f"two-{number}"))
