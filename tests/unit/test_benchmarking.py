"""Benchmarks: the arithmetic against numpy and hand counts, the processes on tiny random models."""

from __future__ import annotations

import io
import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import POSITIONS, D, V, bert_parameters, write_folders

from potstill import benchmarking
from potstill.models import load_model, save_model
from potstill.recipe import Benchmark
from tiny_graphs import exported, moved


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path]) -> tuple[dict[str, object], list[float]]:
    shares: list[float] = []
    settings = Benchmark(lengths=[8, 40], rounds=3, repeats=2, throughput_batch=4)
    return benchmarking.benchmark(folders, settings, shares.append), shares


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
        }
        assert np.shape(result["raw"][name]["8"]) == (3, 2)
        assert np.shape(result["raw"][name]["40"]) == (3, 2)
        assert np.shape(result["raw_throughput_per_s"][name]) == (3,)
        # torch alone is over 50 MB; a tiny model is far below 4 GB
        assert 50e6 < result["models"][name]["peak_memory_bytes"] < 4e9
    assert set(result["ratios"]) == {"student"}
    assert set(result["noise"]) == {"wall_over_cpu", "noisy", "message"}
    assert result["noise"]["wall_over_cpu"] > 0
    assert json.loads(json.dumps(result)) == result
    # (3 rounds + the warm-up) x 3 shapes x 2 models
    assert shares == pytest.approx([step / 24 for step in range(1, 25)])


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
    for length in ("8", "40"):
        # two repeats a round: the median is the mean, and halves cancel
        ratios = sorted(
            sum(slow) / sum(fast)
            for slow, fast in zip(raw["teacher"][length], raw["student"][length], strict=True)
        )
        speed = result["ratios"]["student"]["speedup"][length]
        assert [speed["low"], speed["median"], speed["high"]] == pytest.approx(ratios)
    assert result["models"]["student"]["throughput_per_s"] == sorted(throughput["student"])[1]
    pairs = zip(throughput["student"], throughput["teacher"], strict=True)
    median = sorted(mine / other for mine, other in pairs)[1]
    assert result["ratios"]["student"]["throughput"]["median"] == pytest.approx(median)


def test_percentiles_pool_all_rounds():
    rounds = [[4.0, 1.0], [3.0], [2.0, 5.0]]
    # sorted 1..5: the middle is 3; 0.95 of 4 gaps is 3.8, so 4 + 0.8
    assert benchmarking.latency_percentiles(rounds) == {"p50": 3.0, "p95": 4.8}


def test_interval_of_three_rounds_is_their_range():
    # The median of 3 draws is the smallest value with probability 7/27 > 2.5%, so the interval
    # spans all three values whatever the draws are.
    assert benchmarking.ratio_with_interval([2.0, 1.5, 1.8]) == {
        "median": 1.8,
        "low": 1.5,
        "high": 2.0,
    }


def test_interval_matches_the_exact_distribution_of_the_bootstrap_median():
    ratios = [1.0, 1.1, 1.3, 1.6, 2.0]
    medians = sorted(np.median(drawn) for drawn in itertools.product(ratios, repeat=5))
    shown = benchmarking.ratio_with_interval(ratios)
    # P(median = 1.0) = P(at least 3 of 5 draws are it) = 5.8%: above 2.5%, by symmetry above too
    assert medians.count(1.0) / len(medians) == pytest.approx(181 / 3125)
    assert (shown["low"], shown["median"], shown["high"]) == (1.0, 1.3, 2.0)
    # Seven values: the ends (at least 4 of 7 draws: 1.0%) fall outside the interval.
    narrower = benchmarking.ratio_with_interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    assert (narrower["low"], narrower["median"], narrower["high"]) == (1.1, 1.3, 1.5)


def speed(low: float, high: float) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    return {"student": {"speedup": {"16": {"median": 1.0, "low": low, "high": high}}}}


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "threads", "low", "high", "noisy"),
    [
        (10.0, 9.9, 1, 1.8, 1.9, False),
        (12.5, 10.0, 1, 1.8, 1.9, True),  # 1.25 times its CPU time
        (10.0, 9.9, 1, 0.95, 1.05, True),
        (10.0, 9.9, 1, 0.96, 1.2, False),
        (10.0, 9.9, 1, 0.5, 1.04, False),
        (10.0, 2.0, 4, 1.8, 1.9, False),  # says nothing at several threads
    ],
)
def test_noise(wall_s, cpu_s, threads, low, high, noisy):
    noise = benchmarking.judge_noise(wall_s, cpu_s, threads, speed(low, high))
    assert noise["noisy"] is noisy
    assert noise["wall_over_cpu"] == (round(wall_s / cpu_s, 4) if threads == 1 else None)
    assert (noise["message"] is not None) is noisy


def test_noise_message_names_what_was_seen():
    message = benchmarking.judge_noise(25.0, 20.0, 1, speed(0.9, 1.5))["message"]
    assert message == (
        "Noisy machine: the timed passes took 1.25 times their CPU time, so other work was using "
        "the processor; the speedup of student at 16 tokens lies anywhere between 0.90 and 1.50. "
        "Measure again when it is idle."
    )


def test_every_model_takes_every_place_in_turn():
    names = ["a", "b", "c"]
    orders = ["".join(benchmarking._order(names, number)) for number in range(6)]
    assert orders == ["abc", "bca", "cab", "cba", "acb", "bac"]
    assert ["".join(benchmarking._order(["a", "b"], n)) for n in range(4)] == [
        "ab",
        "ba",
        "ba",
        "ab",
    ]


def test_errors_name_the_thing(folders, tmp_path):
    settings = Benchmark(lengths=[8], rounds=3)
    with pytest.raises(ValueError, match=r"no model 'teacher'; there are: student"):
        benchmarking.benchmark({"student": folders["student"]}, settings)
    with pytest.raises(ValueError, match=r"\(model 'student'\) holds no config\.json"):
        benchmarking.benchmark({**folders, "student": tmp_path}, settings)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\(model 'student'\) holds no \*\.safetensors"):
        benchmarking.benchmark({**folders, "student": tmp_path}, settings)


def test_length_beyond_the_positions(folders, monkeypatch):
    def started(child):
        child.ready = {"positions": POSITIONS}
        return child

    monkeypatch.setattr(benchmarking._Child, "__enter__", started)
    monkeypatch.setattr(benchmarking._Child, "_end", lambda child: None)
    with pytest.raises(
        ValueError, match=r"41 tokens .* 40 positions of the model 'teacher' \(max_position_emb"
    ):
        benchmarking.benchmark(
            {"teacher": folders["teacher"]}, Benchmark(lengths=[8, 41], rounds=3)
        )


def test_child_that_cannot_load_shows_its_last_line(folders, tmp_path):
    config = json.loads((folders["teacher"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match=r"model 'teacher' .* can't be measured: .*[Ss]afetensor"):
        benchmarking.benchmark({"teacher": tmp_path}, Benchmark(lengths=[8], rounds=3))


def test_child_that_dies_is_an_error_in_one_sentence(folders):
    with benchmarking._Child("x", folders["student"], 1) as child:
        answer = child.run(8, 1, 2, seed=0)
        assert len(answer["wall_s"]) == len(answer["cpu_s"]) == 2
        child._process.kill()
        with pytest.raises(
            benchmarking.BenchmarkFailed,
            match=r"model 'x' .* was ended by signal 9, as happens when memory runs out: "
            r"lower benchmark\.throughput_batch or the lengths$",
        ):
            child.run(8, 1, 1, seed=0)


class Gone:
    """A process that has ended."""

    def __init__(self, code):
        self.code = code

    def wait(self):
        return self.code


@pytest.mark.parametrize(
    ("code", "said", "loaded", "kind", "what"),
    [
        (1, "Traceback:\nOSError: no such model", False, ValueError, "OSError: no such model"),
        (1, "Traceback:\nAssertionError: x", True, RuntimeError, "AssertionError: x"),
        (-9, "a warning", False, RuntimeError, "signal 9, as happens when memory runs out"),
        (-11, "", True, RuntimeError, "its process was ended by signal 11"),
        (3, "", True, RuntimeError, "its process was ended by code 3"),
        (1, "MemoryError", False, RuntimeError, "measured: memory ran out"),
        (
            *(1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried ...", True),
            *(RuntimeError, "memory ran out: lower benchmark.throughput_batch or the lengths"),
        ),
    ],
)
def test_what_is_told_of_a_child_that_is_gone(tmp_path, code, said, loaded, kind, what):
    child = benchmarking._Child("x", tmp_path, 1)
    child.ready = {"parameters": 1} if loaded else {}
    child._process = Gone(code)
    child._stderr = io.BytesIO(said.encode())
    error = child._death()
    assert isinstance(error, kind)
    assert str(error).startswith(f"the model 'x' ({tmp_path}) can't be measured: ")
    assert str(error).endswith(what)


def test_child_is_ended_when_the_parent_is_interrupted(folders, monkeypatch):
    def interrupted(child):
        assert child._process.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmarking._Child, "_answer", interrupted)
    child = benchmarking._Child("y", folders["student"], 1)
    with pytest.raises(KeyboardInterrupt):
        child.__enter__()
    assert child._process.returncode == -signal.SIGTERM


# --- ONNX files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph(masked_lm_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    save_model(moved(load_model(masked_lm_teacher, "masked_lm")), folder)
    return exported(folder, "masked_lm")[1]


def test_an_onnx_file_is_timed_in_onnxruntime(graph: Path) -> None:
    folder = graph.parent.parent
    settings = Benchmark(rounds=3, repeats=1, lengths=[8], throughput_batch=2)
    result = benchmarking.benchmark({"teacher": folder, "onnx": graph}, settings)
    teacher, onnx = result["models"]["teacher"], result["models"]["onnx"]
    assert onnx.keys() == teacher.keys()
    assert onnx["parameters"] == teacher["parameters"]
    assert onnx["weight_bytes"] == graph.stat().st_size
    # what is shipped with it: configs and tokenizer, and not the other weights
    around = teacher["folder_bytes"] - teacher["weight_bytes"] - graph.stat().st_size
    assert onnx["folder_bytes"] == graph.stat().st_size + around
    assert onnx["peak_memory_bytes"] < teacher["peak_memory_bytes"]  # there is no torch in it
    assert set(result["ratios"]["onnx"]["speedup"]) == {"8"}


def test_an_onnx_file_that_can_t_be_timed(graph: Path) -> None:
    with pytest.raises(ValueError, match=r"other\.onnx: no such file$"):
        benchmarking.benchmark({"teacher": graph.with_name("other.onnx")}, Benchmark())
    settings = Benchmark(rounds=3, lengths=[65])
    with pytest.raises(ValueError, match="65 tokens are more than the 64 positions"):
        benchmarking.benchmark({"teacher": graph}, settings)
