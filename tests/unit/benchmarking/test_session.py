"""Benchmarks: the arithmetic against numpy and hand counts, the processes on tiny random models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import FFN, D, V, bert_parameters, write_folders

from conftest import student_of
from potstill.benchmarking import session
from potstill.benchmarking.statistics import verdict
from potstill.models import load_model, save_model
from potstill.recipe import Benchmark, TextPass
from tiny_graphs import exported, moved


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path]) -> tuple[dict[str, object], list[float]]:
    shares: list[float] = []
    shapes = {"lengths": [8, 40], "throughput_batch": 4, "batches": [2]}
    settings = Benchmark(**shapes, rounds=3, repeats=2, baseline="student")  # which is not read
    return session.benchmark(folders, settings, shares.append), shares


def test_structure_is_complete(measured):
    result, shares = measured
    assert result["threads"] == 1
    assert result["batch"] == 1
    assert result["baseline"] == "teacher"
    assert (result["throughput_batch"], result["throughput_length"]) == (4, 40)
    assert list(result["models"]) == ["teacher", "student"]
    for name in ("teacher", "student"):
        assert set(result["models"][name]) == {
            "parameters",
            "weight_bytes",
            "folder_bytes",
            "load_s",
            "peak_memory_bytes",
            "latency_ms",
            "throughput_per_s",
            "throughput_by_batch",
            "multiply_adds",
            "latency_intervals_ms",
        }
        assert set(result["models"][name]["throughput_by_batch"]) == {"2", "4"}
        assert np.shape(result["raw"][name]["8"]) == (3, 2)
        assert np.shape(result["raw"][name]["40"]) == (3, 2)
        assert np.shape(result["raw_throughput_per_s"][name]) == (3,)
        # torch alone is over 50 MB; a tiny model is far below 4 GB
        assert 50e6 < result["models"][name]["peak_memory_bytes"] < 4e9
    assert set(result["ratios"]) == {"student"}
    assert set(result["noise"]) == {"wall_over_cpu", "noisy", "message"}
    assert result["noise"]["wall_over_cpu"] > 0
    assert json.loads(json.dumps(result)) == result
    # tokens, an untimed pass each: 8 and 40 of them twice and once more, 40 in batches of 2 and 4
    # once and once more; for both models, in 3 rounds and the warm-up
    work = [count for count in (8 * 3, 40 * 3, 80 * 2, 160 * 2) for _ in range(2)] * 4
    assert shares == pytest.approx([n / sum(work) for n in itertools.accumulate(work)])
    assert result["notes"] == []


def test_parameters_are_exact_and_tied_weights_count_once(measured):
    result, _ = measured
    # masked LM: transform and its norm, and the decoder's bias; the decoder is the word embeddings
    head = D * D + D + 2 * D + V
    assert result["models"]["teacher"]["parameters"] == bert_parameters(2) + head
    pooler = D * D + D
    assert result["models"]["student"]["parameters"] == bert_parameters(1) + pooler
    assert result["ratios"]["student"]["parameter_ratio"] == (bert_parameters(1) + pooler) / (
        bert_parameters(2) + head
    )


def test_bytes_are_those_on_disk(measured, folders):
    result, _ = measured
    sizes = {}
    for name, folder in folders.items():
        sizes[name] = len((folder / "model.safetensors").read_bytes())
        everything = [path.read_bytes() for path in folder.glob("**/*") if path.is_file()]
        assert result["models"][name]["weight_bytes"] == sizes[name]
        assert result["models"][name]["folder_bytes"] == sum(map(len, everything))
    assert result["ratios"]["student"]["size_ratio"] == sizes["student"] / sizes["teacher"]


def test_summary_follows_from_the_raw_samples(measured):
    result, _ = measured
    raw, throughput = result["raw"], result["raw_throughput_per_s"]
    for name, length in itertools.product(("teacher", "student"), ("8", "40")):
        shown = result["models"][name]["latency_ms"][length]
        samples = sorted(itertools.chain.from_iterable(raw[name][length]))
        assert shown["p50"] == pytest.approx((samples[2] + samples[3]) / 2, abs=1e-4)
        # 0.95 of the way over 5 gaps is 4.75: three quarters between the two largest
        assert shown["p95"] == pytest.approx(0.25 * samples[4] + 0.75 * samples[5], abs=1e-4)
        # 0.99 of the way is 4.95
        assert shown["p99"] == pytest.approx(0.05 * samples[4] + 0.95 * samples[5], abs=1e-4)
        intervals = result["models"][name]["latency_intervals_ms"][length]
        assert all(low <= shown[point] <= high for point, (low, high) in intervals.items())
    for length in ("8", "40"):
        # two repeats a round: the median is the mean, and halves cancel
        ratios = sorted(
            sum(slow) / sum(fast)
            for slow, fast in zip(raw["teacher"][length], raw["student"][length], strict=True)
        )
        speed = result["ratios"]["student"]["speedup"][length]
        assert [speed["low"], speed["median"], speed["high"]] == pytest.approx(ratios)
    assert result["models"]["student"]["throughput_per_s"] == sorted(throughput["student"])[1]
    batched = result["raw_throughput_by_batch"]
    assert batched["student"]["4"] == throughput["student"]
    shown = result["models"]["teacher"]["throughput_by_batch"]
    assert shown["2"] == sorted(batched["teacher"]["2"])[1]
    halves = zip(batched["student"]["2"], batched["teacher"]["2"], strict=True)
    half = result["ratios"]["student"]["throughput_by_batch"]["2"]
    assert half["median"] == pytest.approx(sorted(mine / other for mine, other in halves)[1])
    pairs = zip(throughput["student"], throughput["teacher"], strict=True)
    median = sorted(mine / other for mine, other in pairs)[1]
    assert result["ratios"]["student"]["throughput"]["median"] == pytest.approx(median)


def test_errors_name_the_thing(folders, tmp_path):
    settings = Benchmark(lengths=[8], rounds=3)
    chosen = settings.model_copy(update={"models": ["teacher"]})
    with pytest.raises(ValueError, match=r"'teacher' is not a model\. Choose from: student\.$"):
        session.benchmark({"student": folders["student"]}, chosen)
    with pytest.raises(ValueError, match=r"^models: none is given\. Name at least one "):
        session.benchmark([], settings)
    with pytest.raises(ValueError, match=r"none \(model '.*none'\): the folder was not found"):
        session.benchmark([folders["student"], tmp_path / "none"], settings)
    with pytest.raises(ValueError, match=r"none \(model 'student'\): the folder was not found"):
        session.benchmark({**folders, "student": tmp_path / "none"}, settings)
    with pytest.raises(ValueError, match=r"\(model 'student'\): the folder holds no config\.json"):
        session.benchmark({**folders, "student": tmp_path}, settings)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"\(model 'student'\): the folder holds no \*\.safetensors"
    ):
        session.benchmark({**folders, "student": tmp_path}, settings)


def multiply_adds(layers: int, length: int) -> int:
    """By hand: projections, the two products of attention, and the feed-forward network."""
    return layers * (4 * length * D * D + 2 * length**2 * D + 2 * length * D * FFN)


def test_multiply_adds_are_those_of_bert(measured):
    result, _ = measured
    for length in (8, 40):
        head = length * D * D + length * D * V  # of masked LM: transform and decoder
        teacher = multiply_adds(2, length) + head
        student = multiply_adds(1, length) + D * D  # its pooler reads one token
        found = {n: m["multiply_adds"][str(length)] for n, m in result["models"].items()}
        assert found == {"teacher": teacher, "student": student}
        ratio = result["ratios"]["student"]["multiply_add_ratio"][str(length)]
        assert ratio == student / teacher


def test_verdicts_follow_from_intervals_and_noise(measured):
    result, _ = measured
    ratios = result["ratios"]["student"]
    over_cpu = result["noise"]["wall_over_cpu"]
    for ratio in (*ratios["speedup"].values(), *ratios["throughput_by_batch"].values()):
        assert ratio["verdict"] == verdict(ratio, over_cpu, ratio["cpu_time"])


def test_ratios_of_cpu_time_are_those_of_its_samples(measured):
    result, _ = measured
    raw = result["raw_cpu"]
    for length, ratio in result["ratios"]["student"]["speedup"].items():
        of_rounds = [
            np.median(slow) / np.median(fast)
            for slow, fast in zip(raw["teacher"][length], raw["student"][length], strict=True)
        ]
        assert ratio["cpu_time"]["median"] == pytest.approx(np.median(of_rounds))


class Told:
    """A child that is not started: it has positions, and says what it is asked."""

    def __init__(self, positions: int | None) -> None:
        self.ready = {"positions": positions}


@pytest.mark.parametrize(
    ("settings", "key", "longest"),
    [
        ({"lengths": [8, 41]}, "lengths", 41),
        ({"lengths": [8], "throughput_length": 64}, "throughput_length", 64),
    ],
)
def test_length_beyond_the_positions(settings, key, longest):
    children = {"teacher": Told(None), "student": Told(40), "other": Told(64)}
    message = (
        rf"benchmark\.{key}: {longest} is above the maximum sequence length of the model 'student'"
        r"\. Set at most 40\.$"
    )
    with pytest.raises(ValueError, match=message):
        session._fitting(Benchmark(**settings), children, fit=False)


def test_lengths_are_cut_to_what_all_models_take():
    children = {"teacher": Told(None), "student": Told(40), "other": Told(64)}
    asked = Benchmark(lengths=[16, 128, 512], throughput_length=128)
    settings, notes = session._fitting(asked, children, fit=True)
    assert (settings.lengths, settings.throughput_length) == ([16, 40], 40)
    cut = "The length 512 was cut to 40, the maximum sequence length of the model 'student'."
    assert notes == [cut]
    for fit in (False, True):  # what fits, and what has no positions to count, stays
        fitting = session._fitting(asked, {"teacher": Told(None)}, fit=fit)
        assert fitting == (asked, [])


def test_texts_are_cut_where_the_shortest_model_ends():
    timed = TextPass(sources=["a.txt"])
    children = {"teacher": Told(64), "student": Told(40)}
    settings, _ = session._fitting(Benchmark(lengths=[8], pass_over=timed), children, False)
    assert settings.pass_over is not None
    assert settings.pass_over.max_length == 40


def test_child_that_cannot_load_shows_its_last_line(folders, tmp_path):
    config = json.loads((folders["teacher"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(
        ValueError, match=r"model 'teacher' .*: the measurement failed with .*[Ss]afetensor"
    ):
        session.benchmark({"teacher": tmp_path}, Benchmark(lengths=[8], rounds=3))


# --- ONNX files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph(masked_lm_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    save_model(moved(load_model(masked_lm_teacher, "masked_lm")), folder)
    return exported(folder, "masked_lm")[1]


def test_an_onnx_file_is_timed_in_onnxruntime(graph: Path) -> None:
    folder = graph.parent.parent
    settings = Benchmark(rounds=3, repeats=1, lengths=[8], throughput_batch=2)
    result = session.benchmark({"teacher": folder, "onnx": graph}, settings)
    teacher, onnx = result["models"]["teacher"], result["models"]["onnx"]
    assert onnx.keys() == teacher.keys()
    assert onnx["parameters"] == teacher["parameters"]
    assert onnx["weight_bytes"] == graph.stat().st_size
    # what is shipped with it: configs and tokenizer, and not the other weights
    around = teacher["folder_bytes"] - teacher["weight_bytes"] - graph.stat().st_size
    assert onnx["folder_bytes"] == graph.stat().st_size + around
    assert onnx["peak_memory_bytes"] < teacher["peak_memory_bytes"]  # there is no torch in it
    assert set(result["ratios"]["onnx"]["speedup"]) == {"8"}
    assert onnx["multiply_adds"] == teacher["multiply_adds"]


def test_a_pass_over_pairs(masked_lm_teacher: Path, tmp_path: Path) -> None:
    student = student_of(masked_lm_teacher, "masked_lm", tmp_path / "student")
    table = tmp_path / "pairs.tsv"
    long = " ".join(["malt"] * 20)
    table.write_text(f"a\tb\nstill\tpot still\n{long}\toak\n")
    timed = TextPass(sources=[str(table)], columns=["a", "b"], max_length=12)
    settings = Benchmark(rounds=3, repeats=1, lengths=[8], throughput_batch=1, pass_over=timed)
    result = session.benchmark({"teacher": masked_lm_teacher, "s": student}, settings)["pass"]
    assert (result["texts"], result["max_length"], result["rounds"]) == (2, 12, 3)
    assert (result["over"], result["columns"]) == (str(table), ["a", "b"])
    for name, found in result["models"].items():
        # [CLS] still [SEP] pot still [SEP], and 12 of 24
        assert (found["tokens"], found["cut"]) == (6 + 12, 1)
        seconds = sorted(result["raw_s"][name])
        assert found["seconds"] == seconds[1]
        assert found["interval"] == [seconds[0], seconds[2]]  # of three: their range
    within = zip(result["raw_s"]["teacher"], result["raw_s"]["s"], strict=True)
    assert set(result["ratios"]) == {"s"}
    assert result["ratios"]["s"]["median"] == sorted(slow / fast for slow, fast in within)[1]


def test_an_onnx_file_that_can_t_be_timed(graph: Path) -> None:
    with pytest.raises(
        ValueError, match=r"other\.onnx was not found\. Check the path of the \.onnx file\.$"
    ):
        session.benchmark({"teacher": graph.with_name("other.onnx")}, Benchmark())
    settings = Benchmark(rounds=3, lengths=[65])
    with pytest.raises(ValueError, match=r"65 is above the maximum .* Set at most 64\."):
        session.benchmark({"teacher": graph}, settings)
