import copy
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.training.checkpoint import load_checkpoint, save_checkpoint
from potstill.training.optimizer import pack_optimizer, unpack_optimizer

STATE = {"fingerprint": "f", "loop": {"tokens": 123, "loss": 0.1 + 0.2, "best": None}}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {
        "model": {"weight": torch.full((3,), float(step))},
        "optimizer": {"0.exp_avg": torch.full((3,), -float(step))},
    }
    return save_checkpoint(folder, step, tensors, STATE, keep)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_roundtrip_is_bit_exact_for_all_kinds_of_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = torch.randn(5, 4)
    tensors = {
        "model": {
            "embedding": table,
            "decoder.tied": table,
            "a.row": table[1],
            "transposed": torch.randn(3, 2).T,
            "half": torch.randn(7).to(torch.bfloat16),
            "count": torch.tensor(2**53 + 1),
            "mask": torch.tensor([True, False]),
            "nothing": torch.zeros(0, 4),
        },
        "optimizer": {"0.step": torch.tensor(3.0)},
    }
    expected = copy.deepcopy(tensors)
    path = save_checkpoint(tmp_path / "checkpoints", 123, tensors, STATE)
    assert path == tmp_path / "checkpoints" / "step-00000123"
    assert names(path) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    loaded = load_checkpoint(tmp_path / "checkpoints")
    assert loaded is not None
    step, found, state = loaded
    assert step == 123
    assert state == STATE
    assert {group: set(named) for group, named in found.items()} == {
        group: set(named) for group, named in expected.items()
    }
    for group, named in expected.items():
        for name, tensor in named.items():
            assert found[group][name].dtype == tensor.dtype
            assert torch.equal(found[group][name], tensor), name


def test_nothing_to_load(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None
    assert load_checkpoint(tmp_path) is None


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 100_000_000):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000003", "step-100000000"]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == 100_000_000
    save(tmp_path, 100_000_001, keep=1)
    assert names(tmp_path) == ["step-100000001"]


def test_later_steps_of_an_abandoned_training_are_dropped(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    save(tmp_path, 5)
    assert names(tmp_path) == ["step-00000005"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 7)
    save_checkpoint(tmp_path, 7, {"model": {"weight": torch.ones(1)}}, {"fingerprint": "g"})
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[1] == {"model": {"weight": torch.ones(1)}}
    assert loaded[2] == {"fingerprint": "g"}
    assert names(tmp_path / "step-00000007") == [
        "manifest.json",
        "model.safetensors",
        "state.json",
    ]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", truncate, "model.safetensors is missing or changed"),
        ("model.safetensors", flip_a_bit, "model.safetensors is missing or changed"),
        ("optimizer.safetensors", Path.unlink, "optimizer.safetensors is missing or changed"),
        ("state.json", flip_a_bit, "state.json is missing or changed"),
        ("manifest.json", truncate, "manifest.json: not valid JSON"),
        ("manifest.json", Path.unlink, "manifest.json: cannot be read"),
        ("manifest.json", lambda path: path.write_text("[1]"), "is not a manifest"),
        ("manifest.json", lambda path: path.write_text("{}"), "lists no state.json"),
    ],
)
def test_a_damaged_newest_falls_back_to_the_previous(
    tmp_path: Path, name: str, damage, said: str
) -> None:
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    damage(path / name)
    messages: list[str] = []
    loaded = load_checkpoint(tmp_path, messages.append)
    assert loaded is not None
    assert loaded[0] == 10
    assert torch.equal(loaded[1]["model"]["weight"], torch.full((3,), 10.0))
    assert len(messages) == 1
    assert "step-00000020: the checkpoint is damaged (" in messages[0]
    assert said in messages[0]


def test_all_damaged_is_none_and_each_is_named(tmp_path: Path) -> None:
    for step in (10, 20):
        truncate(save(tmp_path, step) / "model.safetensors")
    messages: list[str] = []
    assert load_checkpoint(tmp_path, messages.append) is None
    names = [Path(message.partition(": ")[0]).name for message in messages]
    assert names == ["step-00000020", "step-00000010"]


def test_a_checkpoint_copied_to_another_step_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 10).rename(tmp_path / "step-00000011")
    messages: list[str] = []
    assert load_checkpoint(tmp_path, messages.append) is None
    assert "of another step" in messages[0]


def test_leftovers_of_an_interrupted_save_are_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 10)
    leftover = tmp_path / ".checkpoint-abc"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == 10
    save(tmp_path, 20)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def test_a_save_that_fails_leaves_the_older_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10, keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("potstill.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 20, keep=1)
    assert names(tmp_path) == ["step-00000010"]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(tmp_path, 20, {}, {"loss": float("inf")})
    assert names(tmp_path) == ["step-00000010"]


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in path.iterdir():
        content = file.read_bytes()
        if file.suffix == ".json":
            json.loads(content)
        else:
            # a safetensors file begins with the length of its JSON header
            length = int.from_bytes(content[:8], "little")
            assert isinstance(json.loads(content[8 : 8 + length]), dict)


# --- the optimizer --------------------------------------------------------------------------------


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    return module, optimizer


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs, targets = (torch.randn(6, n, generator=generator) for n in (4, 2))
        loss = (module(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        losses.append(loss.item())
    return losses


def test_a_restored_optimizer_goes_on_exactly_as_one_never_stopped(tmp_path: Path) -> None:
    whole, whole_optimizer = build()
    expected = train(whole, whole_optimizer, range(8))

    first, first_optimizer = build()
    losses = train(first, first_optimizer, range(5))
    tensors, state = pack_optimizer(first_optimizer)
    save_checkpoint(
        tmp_path, 5, {"model": first.state_dict(), "optimizer": tensors}, {"optimizer": state}
    )

    second, second_optimizer = build()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    second.load_state_dict(loaded[1]["model"])
    unpack_optimizer(second_optimizer, loaded[1]["optimizer"], loaded[2]["optimizer"])
    assert second_optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    assert second_optimizer.param_groups[0]["lr"] == first_optimizer.param_groups[0]["lr"]
    losses += train(second, second_optimizer, range(5, 8))

    assert losses == expected
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    fresh, fresh_optimizer = build()
    fresh.load_state_dict(loaded[1]["model"])
    assert train(fresh, fresh_optimizer, range(5, 8)) != expected[5:]  # the state does matter


def test_pack_optimizer_gives_flat_tensors_and_json(tmp_path: Path) -> None:
    module, optimizer = build()
    assert pack_optimizer(optimizer)[0] == {}  # nothing before the first step
    train(module, optimizer, range(2))
    tensors, state = pack_optimizer(optimizer)
    assert set(tensors) == {
        f"{index}.{key}" for index in range(4) for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert tensors["0.step"].item() == 2
    assert json.loads(json.dumps(state)) == state


def test_values_that_are_no_tensors_come_back_too() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.0)
    optimizer.state[parameter]["visits"] = 3
    tensors, state = pack_optimizer(optimizer)
    assert tensors == {}
    other = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.5)
    unpack_optimizer(other, tensors, json.loads(json.dumps(state)))
    assert other.state_dict()["state"] == {0: {"visits": 3}}
    assert other.param_groups[0]["lr"] == 0.1


def test_unpack_refuses_another_optimizers_groups() -> None:
    module, optimizer = build()
    train(module, optimizer, range(1))
    tensors, state = pack_optimizer(optimizer)
    single = torch.optim.AdamW(module.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="argument"):
        unpack_optimizer(single, tensors, state)
