"""Schedule and masks by hand, gradients against float64 autograd, and trainings that make zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_trainings import events, finetune, recipe
from torch import nn

from conftest import Finished
from potstill.models import load_model
from potstill.pipeline import run
from potstill.recipe import HardTargets, InBatch, Sparsity, Task, Training
from potstill.tasks.heads import Reading
from potstill.training import Trainee, loop
from potstill.training import optimizer as optimizers
from potstill.training.sparsity import (
    Sparsifier,
    highest,
    share_at,
    trained_linears,
    zeros_by_layer,
)
from tiny_families import NAMES, family_model

METHODS = ("magnitude", "movement")


def test_the_schedule_by_hand() -> None:
    settings = Sparsity(final=0.8, start=0.1, end=0.7)
    # a quarter, a half, three quarters of the way: 1 - 0.75^3, 1 - 0.5^3, 1 - 0.25^3
    expected = {0: 0, 10: 0, 25: 0.4625, 40: 0.7, 55: 0.7875, 70: 0.8, 99: 0.8, 100: 0.8}
    for step, share in expected.items():
        assert share_at(settings, step, 100) == pytest.approx(share)


def test_the_schedule_ends_with_the_last_step() -> None:
    settings = Sparsity(final=0.5, start=0.0, end=1.0)
    assert share_at(settings, 3, 3) == 0.5
    assert share_at(settings, 2, 3) < 0.5
    assert share_at(settings, 0, 3) == 0.0


def test_the_highest_stay() -> None:
    scores = torch.tensor([[3.0, -1.0, 2.0], [0.5, -2.0, 1.0]])
    assert highest(scores, 0.5).tolist() == [[True, False, True], [False, False, True]]
    assert highest(scores, 0.0).all()
    assert not highest(scores, 0.99).any()  # rounded: six of six


def test_of_equal_ones_the_first_stay() -> None:
    assert highest(torch.zeros(5), 0.4).tolist() == [True, True, True, False, False]
    assert highest(torch.tensor([1.0, 0, 1, 0, 0]), 0.4).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_the_highest_are_those_of_a_sort() -> None:
    scores = torch.randn(37, 11, generator=torch.Generator().manual_seed(3))
    for share in (0.1, 0.5, 0.93):
        mask = highest(scores, share)
        count = scores.numel() - round(share * scores.numel())
        assert int(mask.sum()) == count
        assert scores[mask].min() == np.sort(scores.numpy().ravel())[-count]


def sparsified(method: Any, share: float) -> tuple[Any, Sparsifier]:
    model = family_model("bert", "headless", layers=2).double()
    return model, Sparsifier(model, Sparsity(method=method, final=share))


def of(model: Any) -> Any:
    return model.encoder.layer[1].intermediate.dense


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_papers(method: str) -> None:
    """W gets dL/dW' * M, and scores, straight through, dL/dW' * W."""
    whole = family_model("bert", "headless", layers=2).double()
    weight = of(whole).weight.detach().clone()
    model, sparsifier = sparsified(method, 0.6)
    if method == "movement":
        drawn = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for scores in sparsifier.scores.values():
                scores.copy_(torch.randn(scores.shape, generator=drawn, dtype=scores.dtype))
    sparsifier.set_step(9, 10)
    scores = sparsifier.scores.get("encoder/layer/1/intermediate/dense", weight.abs())
    mask = scores.detach() >= scores.detach().flatten().sort().values[round(0.6 * weight.numel())]
    assert torch.equal(of(model).weight, weight * mask)

    ids_BL = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    model(input_ids=ids_BL).last_hidden_state.pow(2).sum().backward()
    # the same function with W' itself as the parameter, in all maps
    for (_, plain), (_, masked) in zip(
        trained_linears(whole), trained_linears_of(model), strict=True
    ):
        plain.weight.data = masked.weight.detach().clone()
    whole(input_ids=ids_BL).last_hidden_state.pow(2).sum().backward()
    slope = of(whole).weight.grad
    own = of(model).parametrizations["weight"].original.grad
    torch.testing.assert_close(own, slope * mask, rtol=1e-10, atol=1e-12)
    if method == "movement":
        torch.testing.assert_close(scores.grad, slope * weight, rtol=1e-10, atol=1e-12)


def trained_linears_of(model: Any) -> list[tuple[str, Any]]:
    """By the names that the maps have without their masks."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [(n, m) for n, m in found if n.startswith("encoder.layer")]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_removed_leaves_zeros_and_the_same_names(name: str) -> None:
    model = family_model(name, "masked_lm", layers=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids_BL = torch.arange(5, 17).reshape(2, 6)
    sparsifier = Sparsifier(model, Sparsity(final=0.75))
    sparsifier.set_step(10, 10)
    masked = model(input_ids=ids_BL)[0]
    sparsifier.remove()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert torch.equal(model(input_ids=ids_BL)[0], masked)
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {f"{key}.weight" for key, _ in trained_linears(model)}
    for key in changed:
        kept = after[key] != 0
        assert int(kept.sum()) == kept.numel() - round(0.75 * kept.numel())
        assert torch.equal(after[key][kept], before[key][kept])
        assert before[key][~kept].abs().max() <= before[key][kept].abs().min()
    assert zeros_by_layer(model) == pytest.approx([0.75, 0.75], abs=2e-3)


def test_scores_are_neither_decayed_nor_clipped(masked_lm_teacher: Path) -> None:
    loaded = load_model(masked_lm_teacher, "masked_lm")
    trainee = Trainee(loaded, [], Reading.of(Task.MASKED_LM, [HardTargets()], InBatch(), 8), 8)
    names = {name for name, _ in loaded.model.named_parameters()}
    trainee.sparsify(Sparsity(method="movement", final=0.5))
    assert len(trainee.scores) == len(trained_linears(loaded.model)) == 4 * 6
    # the model has the same parameters still, some under another name, and no scores
    own = {
        n.replace(".parametrizations.weight.original", ".weight")
        for n, _ in loaded.model.named_parameters()
    }
    assert own == names
    optimizer = optimizers.make_optimizer(trainee, Training(epochs=1, weight_decay=0.1))
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {decay[scores] for scores in trainee.scores} == {0.0}
    assert (
        decay[
            loaded.model.get_parameter(
                "bert.encoder.layer.0.output.dense.parametrizations.weight.original"
            )
        ]
        == 0.1
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_model_has_its_zeros_and_loads_plainly(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, method: str
) -> None:
    stage = {**finetune(max_steps=10), "sparsity": {"method": method, "final": 0.7}}
    folder = run(
        recipe(masked_lm_teacher, text_file, stage, {"kind": "report"}), output=tmp_path / "run"
    )
    saved, before = (
        load_file(place / "model.safetensors") for place in (folder / "model", masked_lm_teacher)
    )
    assert saved.keys() == before.keys()
    model = load_model(folder / "model", "masked_lm").model
    maps = {f"{name}.weight" for name, _ in trained_linears(model)}
    for name, value in saved.items():
        zeros = int((value == 0).sum())
        if name in maps:
            assert zeros == round(0.7 * value.numel()), name
        else:
            assert zeros <= int((before[name] == 0).sum()), name
    result = json.loads((folder / "stages/01-finetune/result.json").read_text())
    assert result["sparsity"]["zeros_by_layer"] == pytest.approx([0.7] * 4, abs=2e-3)
    [finding] = result["findings"]
    assert finding.startswith("70.0% of the weights in the layers of teacher are zeros")
    assert "neither faster nor smaller" in finding
    assert "neither faster nor smaller" in (folder / "report.html").read_text()
    logged = [line["zeros"] for line in events(folder, "01-finetune", "train")]
    # of the step that was taken: from 1 to 7 of 10 steps, cubic
    ramp = [0.7 * (1 - (1 - done / 6) ** 3) for done in range(7)]
    assert logged == pytest.approx([0, *ramp, 0.7, 0.7])


def test_movement_keeps_other_weights_than_magnitude(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    kept = []
    for method in METHODS:
        stage = {**finetune(max_steps=10), "sparsity": {"method": method, "final": 0.7}}
        folder = run(recipe(masked_lm_teacher, text_file, stage), output=tmp_path / method)
        saved = load_file(folder / "model" / "model.safetensors")
        kept.append(saved["bert.encoder.layer.0.intermediate.dense.weight"] != 0)
    alike = (kept[0] & kept[1]).sum() / kept[0].sum()
    assert 0.1 < alike < 0.6  # 0.3 by chance


def test_a_model_with_too_few_zeros_is_not_the_best(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.0, 1.0, 3.0, 2.0, 4.0])

    def evaluate(loop: loop._Loop) -> dict[str, Any]:
        loop.job.trainee.set_step(loop.state.step, loop.steps)
        return {"loss": next(losses), "components": {}}

    monkeypatch.setattr(loop._Loop, "evaluate", evaluate)
    settings = {"max_steps": 12, "evaluate_every": 2, "patience": 2, "keep": "best"}
    stage = {**finetune(**settings), "sparsity": {"final": 0.5, "start": 0.0, "end": 0.6}}
    folder = run(recipe(masked_lm_teacher, text_file, stage), output=tmp_path / "run")
    result = json.loads((folder / "stages/01-finetune/result.json").read_text())
    assert result["best"] == {"loss": 2.0, "step": 10}
    assert result["sparsity"]["zeros_by_layer"] == pytest.approx([0.5] * 4, abs=2e-3)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"sparsity": {"final": 1.0}}, "sparsity.final: input should be less than 1"),
        ({"sparsity": {}}, "sparsity.final is not set"),
        (
            {"sparsity": {"final": 0.5, "start": 0.7}},
            "sparsity begins at 0.7 of the steps and ends at 0.7: set start below end",
        ),
        (
            {"sparsity": {"final": 0.5}, "train": "head"},
            "sparsity is of the layers, which train: head leaves alone",
        ),
    ],
)
def test_bad_settings(
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    potstill: Any,
    stage: dict[str, Any],
    message: str,
) -> None:
    tree = recipe(masked_lm_teacher, text_file, finetune(max_steps=1)).model_dump(mode="json")
    tree["stages"][0] |= stage
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree))
    done: Finished = potstill("run", path, "--output", tmp_path / "run")
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
