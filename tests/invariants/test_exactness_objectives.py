"""What must not change the numbers of objectives inside the layers, projections and schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertModel

from conftest import tiny_config, tiny_tokenizer
from potstill.pipeline import run
from potstill.recipe import Recipe
from potstill.training import loop
from potstill.training.checkpoint import load_checkpoint
from same_runs import LAUNCHERS, StopAt, assert_same_run, launched, losses, weights

SOFT = {
    "kind": "soft_targets",
    "temperature": 4.0,
    "schedule": "cosine",
    "final_temperature": 1.0,
}
ONE_TEACHER = [
    SOFT,
    {"kind": "hard_targets", "target": "teacher"},
    {"kind": "logits_mse", "positions": "masked", "weight": 0.01},
    {"kind": "hidden_cosine"},
    {"kind": "patient_hidden", "tokens": "all"},
    {"kind": "attention_mse"},
    {"kind": "relations", "weight": 10.0},
]
SEVERAL = [
    SOFT,
    {"kind": "logits_mse", "weight": 0.01},
    {"kind": "hidden_mse", "layers": "last"},
    {"kind": "attention_mse"},
    {"kind": "relations", "pairs": ["qk", "vv"], "weight": 10.0},
]
VECTORS = [
    {"kind": "soft_targets", "temperature": 2.0},
    {"kind": "logits_mse", "weight": 0.1},
    {"kind": "vector_mse"},
    {"kind": "patient_hidden"},
    {"kind": "relations", "heads": 8},
]
ONE = "teacher"
BOTH = [{"model": "teacher", "weight": 3}, {"model": "wide"}]
# eps well above the rounding of gradients that are 0 but for it
EPS = 1e-4


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide_teacher")
    torch.manual_seed(2)
    config = tiny_config(6, hidden_size=48, initializer_range=0.2)
    BertForMaskedLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide_encoder")
    torch.manual_seed(3)
    BertModel(tiny_config(6, hidden_size=48, initializer_range=0.2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def recipe(
    teacher: Path,
    text: Path,
    objectives: list[dict[str, Any]],
    teachers: Any = ONE,
    wide: Path | None = None,
    task: str = "masked_lm",
    **settings: Any,
) -> Recipe:
    stage = {
        "kind": "distill",
        "teacher": teachers,
        "objectives": objectives,
        "in_batch": {"group": 3 if task == "sentence_embedding" else None},
        "training": {
            **{"max_steps": 6, "batch_size": 8, "log_every": 1, "dropout": False, "eps": EPS},
            "precision": "fp32",  # of bf16 nobody could tell rounding from a mistake
            **settings,
        },
    }
    return Recipe.model_validate(
        {
            "name": "invariant",
            "task": task,
            "teacher": str(teacher),
            "teachers": {} if wide is None else {"wide": str(wide)},
            "corpus": {"sources": [str(text)], "min_length": 4, "max_length": 24, "heldout": 0.1},
            "stages": [{"kind": "make_student"}, stage],
        }
    )


@pytest.mark.parametrize(
    ("objectives", "teachers"), [(ONE_TEACHER, ONE), (SEVERAL, BOTH)], ids=["one", "several"]
)
def test_eight_is_four_times_two(
    masked_lm_teacher: Path,
    wide_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    objectives: list[dict[str, Any]],
    teachers: Any,
) -> None:
    folders = [
        run(
            recipe(
                masked_lm_teacher,
                text_file,
                objectives,
                teachers,
                wide_teacher,
                micro_batch_size=micro,
                gradient_checkpointing=micro == 2,
            ),
            output=tmp_path / str(micro),
        )
        for micro in (8, 2)
    ]
    assert_same_run(*folders)
    for line in losses(folders[0]).values():
        assert set(line["components"]) == {objective["kind"] for objective in objectives}
        assert min(line["components"].values()) > 0
    # at steps 1 and 6 the ends of the schedule
    heats = [line["temperature"] for line in losses(folders[0]).values()]
    assert (heats[0], heats[-1]) == (4.0, 1.0)
    assert heats == sorted(heats, reverse=True)


def test_micro_batches_of_whole_groups_change_nothing(
    sentence_teacher: Path, wide_encoder: Path, text_file: Path, tmp_path: Path
) -> None:
    chosen = [objective for objective in VECTORS if objective["kind"] != "patient_hidden"]
    for name, objectives, teachers in (("one", VECTORS, ONE), ("several", chosen, BOTH)):
        folders = [
            run(
                recipe(
                    sentence_teacher,
                    text_file,
                    objectives,
                    teachers,
                    wide_encoder,
                    task="sentence_embedding",
                    batch_size=12,
                    micro_batch_size=micro,
                ),
                output=tmp_path / f"{name}-{micro}",
            )
            for micro in (12, 3)
        ]
        assert_same_run(*folders)


def test_a_stopped_run_goes_on_with_its_projections_and_temperature(
    masked_lm_teacher: Path,
    wide_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"max_steps": 12, "dropout": True, "checkpoint_steps": 5}
    plan = recipe(masked_lm_teacher, text_file, SEVERAL, BOTH, wide_teacher, **settings)
    whole = run(plan, output=tmp_path / "whole")
    step = loop._Loop._step

    def stop(loop: loop._Loop, number: int, batches: Any) -> None:
        if number == 7:
            raise StopAt
        step(loop, number, batches)

    monkeypatch.setattr(loop._Loop, "_step", stop)
    with pytest.raises(StopAt):
        run(plan, output=tmp_path / "parts")
    monkeypatch.undo()
    saved = load_checkpoint(tmp_path / "parts/stages/02-distill/checkpoints")
    assert saved is not None
    held = [name for name in saved[1]["model"] if name.startswith("projections.")]
    assert held == ["projections.1_hidden_mse", "projections.1_hidden_mse_embeddings"]
    parts = run(plan, output=tmp_path / "parts")
    for name, value in weights(whole).items():
        assert torch.equal(weights(parts)[name], value), name
    temperatures = [
        [line["temperature"] for line in losses(folder).values()] for folder in (whole, parts)
    ]
    assert temperatures[0] == temperatures[1]
    # the student's folder holds a student and nothing else
    own = dict(AutoModelForMaskedLM.from_pretrained(parts / "model").named_parameters())
    assert set(weights(parts)) <= set(own)


def test_a_list_of_one_is_its_name_and_twice_one_is_once(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    chosen = [SOFT, {"kind": "relations"}]
    lists: list[Any] = ["teacher", [{"model": "teacher", "weight": 5}], ["teacher", "teacher"]]
    folders = [
        run(recipe(masked_lm_teacher, text_file, chosen, names), output=tmp_path / str(number))
        for number, names in enumerate(lists)
    ]
    for folder in folders[1:]:
        for name, value in weights(folders[0]).items():
            assert torch.equal(weights(folder)[name], value), name


@pytest.mark.parametrize(
    ("objectives", "teachers"),
    [(SEVERAL, BOTH), ([{"kind": "relations", "pairs": ["vv"]}], ONE)],
    ids=["projections", "unreached"],
)
def test_two_processes_give_the_losses_and_weights_of_one(
    masked_lm_teacher: Path,
    wide_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    objectives: list[dict[str, Any]],
    teachers: Any,
) -> None:
    """With layers above the relation that get no gradient, and would stall the processes."""
    path = tmp_path / "recipe.yaml"
    plan = recipe(
        masked_lm_teacher,
        text_file,
        objectives,
        teachers,
        wide_teacher,
        micro_batch_size=2,
        dropout=True,
        weight_decay=0.1,
    )
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    one = run(plan, output=tmp_path / "one")
    assert_same_run(one, launched(LAUNCHERS[0], path, tmp_path / "two"))
