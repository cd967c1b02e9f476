"""The loop: its schedule, what it reports, when it stops, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_trainings import events, finetune, recipe

from potstill import errors
from potstill.pipeline import run
from potstill.recipe import Recipe, Task, Training
from potstill.training import loop
from potstill.training import optimizer as optimizers


def test_weight_decay_leaves_out_biases_and_norms(masked_lm_teacher: Path) -> None:
    from potstill.models import load_model
    from potstill.recipe import HardTargets, InBatch
    from potstill.tasks.heads import Reading
    from potstill.training import Trainee

    loaded = load_model(masked_lm_teacher, "masked_lm")
    reading = Reading.of(Task.MASKED_LM, [HardTargets()], InBatch(), 8)
    settings = Training(epochs=1, weight_decay=0.1)
    optimizer = optimizers.make_optimizer(Trainee(loaded, [], reading, 8), settings)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in loaded.model.named_parameters():
        plain = "bias" in name or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if plain else 0.1), name


def test_masked_lm_training_learns_the_order_of_words(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    plan = recipe(
        masked_lm_teacher, text_file, finetune(max_steps=700, batch_size=16, learning_rate=3e-3)
    )
    folder = run(plan, output=tmp_path / "run")
    heldout = [e["loss"] for e in events(folder, "01-finetune", "evaluate")]
    assert len(heldout) == 10
    # 30 words, equally likely: log 30 = 3.4 for who knows the words but not their order
    assert heldout[-1] < 3.2
    assert heldout[-1] < heldout[0]


def test_train_head_moves_nothing_but_the_head(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    stage = {**finetune(max_steps=3), "train": "head"}
    folder = run(recipe(masked_lm_teacher, text_file, stage), output=tmp_path / "run")
    before = load_file(masked_lm_teacher / "model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved
    assert all(name.startswith("cls.predictions.") for name in moved)


def test_early_stop_keeps_the_best_weights(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    evaluated: list[dict[str, torch.Tensor]] = []

    def evaluate(loop: loop._Loop) -> dict[str, Any]:
        evaluated.append({k: v.clone() for k, v in loop.job.trainee.model.state_dict().items()})
        return {"loss": next(losses), "components": {}}

    monkeypatch.setattr(loop._Loop, "evaluate", evaluate)
    settings = {"max_steps": 50, "evaluate_every": 2, "patience": 2, "keep": "best"}
    folder = run(
        recipe(masked_lm_teacher, text_file, finetune(**settings)), output=tmp_path / "run"
    )
    result = json.loads((folder / "stages/01-finetune/result.json").read_text())
    assert result["stopped_early"] is True
    assert result["steps"] == 8
    assert result["best"] == {"loss": 2.0, "step": 4}
    after = load_file(folder / "model" / "model.safetensors")
    for name, value in after.items():
        assert torch.equal(value, evaluated[1][name]), name


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    plan = recipe(
        masked_lm_teacher,
        text_file,
        finetune(max_steps=40, learning_rate=1e30, warmup=0, checkpoint_steps=1, clip=None),
    )
    with pytest.raises(
        errors.TrainingFailed, match=r"not finite at step \d+\. Lower training\.learning_rate"
    ) as failed:
        run(plan, output=tmp_path / "run")
    kept = max((tmp_path / "run/stages/01-finetune/checkpoints").glob("step-*"))
    newest = int(kept.name.removeprefix("step-"))
    assert str(failed.value).endswith(f". The checkpoint of step {newest} is kept.")
    assert not (tmp_path / "run/model").exists()


def test_no_checkpoint_is_promised_where_none_was_written(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    plan = recipe(
        masked_lm_teacher, text_file, finetune(max_steps=40, learning_rate=1e30, warmup=0)
    )
    with pytest.raises(errors.TrainingFailed, match=r"precision=fp32\.$"):
        run(plan, output=tmp_path / "run")
    assert not list((tmp_path / "run/stages/01-finetune").glob("checkpoints/step-*"))


@pytest.mark.parametrize("heldout", [0, 0.1])
@pytest.mark.parametrize("checkpoint_steps", [None, 1])
def test_weights_that_are_not_finite_after_a_good_step(
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    heldout: float,
    checkpoint_steps: int | None,
) -> None:
    """The last step's loss and gradient are finite, and what it makes of the weights isn't."""
    settings = {"learning_rate": 1e39, "warmup": 0, "checkpoint_steps": checkpoint_steps}
    plan = recipe(masked_lm_teacher, text_file, finetune(max_steps=1, **settings), heldout=heldout)
    said = (
        r"^the weights are not finite at step 1 \(\S+ and \d+ more tensors hold NaN or infinity\)"
    )
    with pytest.raises(errors.TrainingFailed, match=said + r"\. Lower training\.learning_rate, "):
        run(plan, output=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not list((tmp_path / "run").rglob("DONE"))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("heldout", [0, 0.1])
def test_a_weight_that_no_loss_sees(
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    heldout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint that is good is not replaced by one that isn't."""
    step = loop._Loop._step

    def broken(self: loop._Loop, number: int, *rest: Any) -> None:
        step(self, number, *rest)
        table = self.job.trainee.model.get_parameter("bert.embeddings.position_embeddings.weight")
        if number == 2:
            with torch.no_grad():
                table[-1, 0] = float("nan")  # no text is so long

    monkeypatch.setattr(loop._Loop, "_step", broken)
    settings = {"max_steps": 4, "evaluate_every": 1, "checkpoint_steps": 1}
    plan = recipe(masked_lm_teacher, text_file, finetune(**settings), heldout=heldout)
    said = (
        r"^the weights are not finite at step 3 \(bert\.embeddings\.position_embeddings\.weight "
        r"holds NaN or infinity\)\. Lower .*\. The checkpoint of step 2 is kept\.$"
    )
    with pytest.raises(errors.TrainingFailed, match=said):
        run(plan, output=tmp_path / "run")
    kept = (tmp_path / "run/stages/01-finetune/checkpoints").glob("step-*")
    assert sorted(path.name for path in kept) == ["step-00000001", "step-00000002"]


def test_a_loss_on_heldout_text_that_is_not_finite(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """Of weights that are finite, and too large to compute with."""
    plan = recipe(masked_lm_teacher, text_file, finetune(max_steps=1, learning_rate=1e30, warmup=0))
    with pytest.raises(
        errors.TrainingFailed, match=r"^the loss on held-out text is not finite at step 1\. Lower"
    ):
        run(plan, output=tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_trackers_get_the_curves(masked_lm_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is in the test extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = recipe(masked_lm_teacher, text_file, finetune(max_steps=3, trackers=["tensorboard"]))
    folder = run(plan, output=tmp_path / "run")
    written = next((folder / "stages/01-finetune").rglob("events.out.tfevents*"))
    curves = EventAccumulator(str(written.parent)).Reload()
    logged = events(folder, "01-finetune", "train")
    points = curves.Scalars("train/loss")
    assert [s.value for s in points] == pytest.approx([e["loss"] for e in logged], rel=1e-6)
    assert [s.step for s in points] == [e["step"] for e in logged] == [1, 2, 3]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_gives_the_same_losses(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    found = []
    for compiled in (False, True):
        plan = recipe(masked_lm_teacher, text_file, finetune(max_steps=3, compile=compiled))
        folder = run(plan, output=tmp_path / str(compiled))
        found.append([e["loss"] for e in events(folder, "01-finetune", "train")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.fixture
def _two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes, process_index, is_main_process = 2, 0, True
        device = torch.device("cpu")

    monkeypatch.setattr(loop, "make_accelerator", lambda *_: Two())


@pytest.mark.usefixtures("_two_processes")
def test_more_processes_than_micro_batches_is_refused(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"Set training\.micro_batch_size to at most 4\.$"):
        run(recipe(masked_lm_teacher, text_file, finetune(max_steps=3)), output=tmp_path / "run")


@pytest.mark.usefixtures("_two_processes")
def test_sentence_embeddings_are_shared_out_in_groups(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    distill = {
        "kind": "distill",
        "model": "teacher",
        "objectives": [{"kind": "soft_targets"}],
        "training": {"batch_size": 8, "max_steps": 1},
    }
    tree = recipe(sentence_teacher, text_file, {"kind": "make_student"}).model_dump()
    plan = Recipe.model_validate({**tree, "task": "sentence_embedding", "stages": [distill]})
    with pytest.raises(ValueError, match=r"at most 4 and in_batch\.group to a divisor of it\.$"):
        run(plan, output=tmp_path / "run")


def test_the_unmasked_positions_never_reach_the_hard_loss(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """The logged hard loss of step 1 is transformers' own masked-LM loss on the same batch."""
    from potstill.data import collate, make_masker, tokenize_corpus
    from potstill.data.batches import epoch_batches
    from potstill.models import load_model
    from potstill.recipe import Masking

    plan = recipe(masked_lm_teacher, text_file, finetune(max_steps=1))
    folder = run(plan, output=tmp_path / "run")
    loaded = load_model(masked_lm_teacher, "masked_lm")
    corpus = tokenize_corpus(plan.corpus, loaded.tokenizer, tmp_path / "cache", plan.seed)
    indices = epoch_batches(corpus.train.lengths, 8, plan.seed, 0)[0]
    masker = make_masker(Masking(), loaded.tokenizer, corpus.train.token_counts)
    batch = collate(corpus.train, indices, 0, masker.of_epoch(plan.seed, 0))
    with torch.no_grad():
        expected = loaded.model(
            input_ids=batch.input_ids_BL,
            attention_mask=batch.attention_mask_BL,
            labels=batch.gold_BL,
        ).loss
    logged = events(folder, "01-finetune", "train")[0]["components"]["hard_targets"]
    assert logged == pytest.approx(expected.item(), rel=1e-5)
