"""Scores of masked-LM models, against whole logits of one sequence at a time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForMaskedLM, BertForMaskedLM, PreTrainedTokenizerFast

from conftest import sentences, student_of, tiny_config, tiny_tokenizer
from potstill.data import Masker, Tokens, make_masker
from potstill.data.masking import EVALUATION_EPOCH
from potstill.evaluation import evaluate_masked_lm, masked_lm
from potstill.evaluation import retention as bootstrap
from potstill.evaluation.lineup import Lineup
from potstill.evaluation.masked_lm import MaskedText
from potstill.models import load_model, save_model
from potstill.recipe import Evaluate, Masking

COUNT, SEED = 40, 3  # more than one batch of sequences
V = 87
TOKENIZER = tiny_tokenizer()


def tokens(texts: list[str]) -> Tokens:
    ids = [np.array(TOKENIZER(text)["input_ids"], dtype=np.int32) for text in texts]
    lengths = np.array([len(each) for each in ids], dtype=np.int32)
    together = np.concatenate([*ids, np.zeros(0, dtype=np.int32)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    counts = np.bincount(together, minlength=V)
    return Tokens(together, offsets, lengths, counts, "made here")


HELDOUT = tokens(sentences(COUNT, seed=21))
TRAIN_COUNTS = tokens(sentences(90, seed=22)).token_counts


def masker() -> Masker:
    return make_masker(Masking(probability=0.3), TOKENIZER, TRAIN_COUNTS)


def text(heldout: Tokens = HELDOUT, counts: np.ndarray = TRAIN_COUNTS) -> MaskedText:
    return MaskedText(heldout, counts, masker())


def lineup(models: dict[str, Path], seed: int = SEED, **parts: str | None) -> Lineup:
    """Models of one training each, beside the teacher."""
    return Lineup({name: [folder] for name, folder in models.items()}, "teacher", seed, **parts)


def evaluate(folders: dict[str, Path], **settings: Any) -> dict[str, Any]:
    return evaluate_masked_lm(lineup(folders), text(), Evaluate(**settings))


@pytest.fixture(scope="module")
def teacher(masked_lm_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With preferences among the words, so that it is sometimes right and sometimes sure."""
    loaded = load_model(masked_lm_teacher, "masked_lm")
    folder = tmp_path_factory.mktemp("teacher")
    words = torch.arange(5, 35)
    with torch.no_grad():
        noise = torch.randn(len(words), generator=torch.Generator().manual_seed(6))
        loaded.model.get_output_embeddings().bias[words] += 4 + 2 * noise
    save_model(loaded, folder)
    return folder


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_of(teacher, "masked_lm", tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def folders(teacher: Path, student: Path) -> dict[str, Path]:
    return {"student": student, "copy": teacher, "teacher": teacher}


@pytest.fixture
def result(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(masked_lm, "CHUNK", 7)  # chunks end within sequences
    return evaluate(folders)


@dataclass(frozen=True)
class Seen:
    """One masked position: the model's distribution there, and the original token."""

    sequence: int
    position: int
    log_V: torch.Tensor
    gold: int

    @property
    def top(self) -> int:
        return int(self.log_V.argmax())


def read(folder: Path, count: int = COUNT) -> tuple[list[Seen], list[torch.Tensor]]:
    """Every masked position and every token's last hidden state, by plain transformers."""
    model = AutoModelForMaskedLM.from_pretrained(folder).double()
    seen, hidden = [], []
    for index in range(count):
        ids, gold = masker()(HELDOUT[index], SEED, EVALUATION_EPOCH, index)
        with torch.no_grad():
            output = model(input_ids=torch.from_numpy(ids)[None], output_hidden_states=True)
        hidden += list(output.hidden_states[-1][0])
        logs = torch.log_softmax(output.logits[0], -1)
        seen += [Seen(index, i, logs[i], int(g)) for i, g in enumerate(gold) if g >= 0]
    return seen, hidden


@pytest.fixture(scope="module")
def teacher_seen(teacher: Path) -> tuple[list[Seen], list[torch.Tensor]]:
    return read(teacher)


@pytest.fixture(scope="module")
def student_seen(student: Path) -> tuple[list[Seen], list[torch.Tensor]]:
    return read(student)


def mean(values: Any) -> float:
    values = list(values)
    return sum(map(float, values)) / len(values)


# --- scores ---------------------------------------------------------------------------------------


def test_what_a_result_holds(result: dict[str, Any], teacher_seen: Any) -> None:
    assert result["task"] == "masked_lm"
    assert (result["records"], result["baseline"]) == (COUNT, "teacher")
    assert result["masked_positions"] == len(teacher_seen[0])
    assert list(result["models"]) == ["teacher", "student", "copy"]  # the baseline first
    assert set(result["models"]["teacher"]) == {"masked_lm"}
    assert set(result["models"]["student"]) == {"masked_lm", "agreement", "hidden"}
    assert set(result["references"]) == {"unigram"}


def test_loss_and_top1_are_those_of_whole_logits(
    result: dict[str, Any], teacher_seen: Any, student_seen: Any
) -> None:
    for name, (seen, _) in (("teacher", teacher_seen), ("student", student_seen)):
        scores = result["models"][name]["masked_lm"]
        loss = mean(-each.log_V[each.gold] for each in seen)
        assert scores["loss"] == pytest.approx(loss, rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert scores["top1"] == mean(each.top == each.gold for each in seen)
    assert result["models"]["teacher"] != result["models"]["student"]


def test_agreement_is_that_of_whole_logits(
    result: dict[str, Any], teacher_seen: Any, student_seen: Any
) -> None:
    pairs = list(zip(teacher_seen[0], student_seen[0], strict=True))
    kl = mean(sum(t.log_V.exp() * (t.log_V - s.log_V)) for t, s in pairs)
    found = result["models"]["student"]["agreement"]
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    assert found["top1"] == mean(t.top == s.top for t, s in pairs)
    assert 0 < found["top1"] < 1
    hidden = [
        float(t @ s / (t.norm() * s.norm()))
        for t, s in zip(teacher_seen[1], student_seen[1], strict=True)
    ]
    assert len(hidden) == int(HELDOUT.lengths.sum())
    cosine = result["models"]["student"]["hidden"]["cosine"]
    assert cosine == pytest.approx(mean(hidden), abs=1e-5)


def test_a_model_agrees_with_itself(result: dict[str, Any]) -> None:
    copy = result["models"]["copy"]
    assert copy["masked_lm"] == result["models"]["teacher"]["masked_lm"]
    assert copy["agreement"] == {"top1": 1.0, "kl": 0.0}
    assert copy["hidden"]["cosine"] == pytest.approx(1)


# a token that no text has is the commonest, so that the unigram reference is never right
NO_CHANCE = np.bincount([V - 1] * 9, minlength=V)


def test_the_keys_of_a_result(result: dict[str, Any]) -> None:
    assert list(result) == [
        *("task", "records", "masked_positions", "baseline", "models", "references", "retention"),
        *("intervals", "twin", "differences", "findings", "softened", "examples"),
    ]
    assert (result["task"], result["baseline"], result["twin"]) == ("masked_lm", "teacher", None)


def test_retention_is_that_of_top1(folders: dict[str, Path]) -> None:
    result = evaluate_masked_lm(lineup(folders), text(counts=NO_CHANCE), Evaluate())
    assert result["retention"]["copy"] == {"masked_lm.top1": 1.0}
    rates = [result["models"][name]["masked_lm"]["top1"] for name in ("student", "teacher")]
    kept = result["retention"]["student"]["masked_lm.top1"]
    assert kept == pytest.approx(rates[0] / rates[1])
    low, high = result["intervals"]["student"]["masked_lm.top1"]
    assert low < kept < high


def test_a_teacher_no_better_than_the_unigram_reference_has_no_retention(
    result: dict[str, Any],
) -> None:
    unigram = result["references"]["unigram"]["masked_lm"]["top1"]
    assert result["models"]["teacher"]["masked_lm"]["top1"] < 2 * unigram
    assert result["retention"] == {"student": {}, "copy": {}}
    assert result["intervals"] == {}


def test_the_baseline_s_top1_is_compared_with_the_unigram_reference_s(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are shares of all masked positions, though the items are sequences of many."""
    seen: list[Any] = []
    monkeypatch.setattr(bootstrap, "retentions", lambda *given: seen.append(given) or ({}, {}))
    found = evaluate(folders)
    [(models, baseline, chance, _)] = seen
    unigram = found["references"]["unigram"]["masked_lm"]
    assert chance == {"masked_lm.top1": unigram["top1"]}
    assert baseline == "teacher"
    for name, [scored] in models.items():
        assert len(scored["top1"].items_NS) == COUNT
        assert scored["top1"].value == pytest.approx(found["models"][name]["masked_lm"]["top1"])


def test_the_unigram_reference_is_add_one_smoothed_without_special_tokens(
    result: dict[str, Any], teacher_seen: Any
) -> None:
    gold = [each.gold for each in teacher_seen[0]]
    counts = TRAIN_COUNTS.tolist()
    for token in TOKENIZER.all_special_ids:  # never masked, though each text has two of them
        counts[token] = 0
    assert sum(counts) == sum(TRAIN_COUNTS.tolist()) - 2 * 90
    loss = mean(-math.log((counts[token] + 1) / (sum(counts) + V)) for token in gold)
    found = result["references"]["unigram"]["masked_lm"]
    assert found["loss"] == pytest.approx(loss)
    assert found["perplexity"] == pytest.approx(math.exp(loss))
    commonest = max(range(V), key=lambda token: counts[token])
    assert found["top1"] == pytest.approx(mean(token == commonest for token in gold))
    assert found["top1"] > 0


def test_batches_and_chunks_change_nothing(
    folders: dict[str, Path], result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_lm, "CHUNK", 1000)
    monkeypatch.setattr(masked_lm, "BATCH", 9)
    other = evaluate(folders)
    for name, tasks in result["models"].items():
        for task, scores in tasks.items():
            assert other["models"][name][task] == pytest.approx(scores, rel=1e-5)


def test_max_records_takes_the_first(folders: dict[str, Path], teacher: Path) -> None:
    found = evaluate({"teacher": teacher}, max_records=6)
    seen, _ = read(teacher, 6)
    assert (found["records"], found["masked_positions"]) == (6, len(seen))
    loss = mean(-each.log_V[each.gold] for each in seen)
    assert found["models"]["teacher"]["masked_lm"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_another_width_has_no_hidden_cosine(teacher: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    BertForMaskedLM(tiny_config(layers=1, hidden_size=16)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    scores = evaluate({"teacher": teacher, "narrow": tmp_path})["models"]["narrow"]
    assert set(scores) == {"masked_lm", "agreement"}
    assert scores["agreement"]["kl"] > 0


def test_progress_only_grows(teacher: Path) -> None:
    seen: list[float] = []
    models = {"teacher": teacher}
    evaluate_masked_lm(lineup(models), text(), Evaluate(), seen.append)
    assert seen == [32 / COUNT, 1.0]


# --- what the report shows ------------------------------------------------------------------------


def test_examples_are_positions_predicted_differently(
    folders: dict[str, Path], teacher_seen: Any, student_seen: Any
) -> None:
    found = evaluate({name: folders[name] for name in ("teacher", "student")})["examples"]
    name = TOKENIZER.convert_ids_to_tokens
    expected = [
        (name(t.gold), name(t.top), name(s.top), round(float(t.log_V.exp().max()), 4))
        for t, s in zip(teacher_seen[0], student_seen[0], strict=True)
        if t.top != s.top
    ]
    assert len(found) == min(50, len(expected))
    for example in found:
        teacher, other = example["teacher"], example["student"]
        shown = (example["expected"], teacher["top"], other["top"], round(teacher["p"], 4))
        assert shown in expected
        assert not {"[CLS]", "[SEP]", "[PAD]"} & set(example["query"].split())


def test_the_surest_of_all_positions_come_first(
    folders: dict[str, Path],
    teacher_seen: Any,
    student_seen: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masked_lm, "SHOWN", 5)
    monkeypatch.setattr(masked_lm, "CHUNK", 7)
    found = evaluate({name: folders[name] for name in ("teacher", "student")})["examples"]
    sure = [
        min(float(one.log_V.exp().max()) for one in pair)
        for pair in zip(teacher_seen[0], student_seen[0], strict=True)
        if pair[0].top != pair[1].top
    ]
    assert len(sure) > 5
    shown = [min(example["teacher"]["p"], example["student"]["p"]) for example in found]
    assert shown == pytest.approx(sorted(sure, reverse=True)[:5], rel=1e-4)


def test_differences_from_the_twin_and_the_unigram(folders: dict[str, Path]) -> None:
    models = {
        "teacher": folders["teacher"],
        "student": folders["student"],
        "plain": folders["copy"],
    }
    beside = lineup(models, student="student", twin="plain")
    found = evaluate_masked_lm(beside, text(), Evaluate())
    top1 = {name: scores["masked_lm"]["top1"] for name, scores in found["models"].items()}
    top1["unigram"] = found["references"]["unigram"]["masked_lm"]["top1"]
    assert list(found["differences"]) == ["plain", "unigram"]
    for name, told in found["differences"].items():
        assert told["score"] == "masked_lm.top1"
        assert told["difference"] == pytest.approx(top1["student"] - top1[name])
        low, high = told["interval"]
        assert low <= told["difference"] <= high
    said = " ".join(found["findings"])
    for name, words in (("plain", "plain, trained"), ("unigram", "the most frequent token")):
        beaten = top1["student"] > top1[name] and found["differences"][name]["interval"][0] > 0
        assert (words in said) is not beaten
    assert said  # at chance: not both are beaten significantly


def test_the_softened_example_is_a_softmax_at_each_temperature(
    result: dict[str, Any], teacher_seen: Any
) -> None:
    shown = result["softened"]
    ids = TOKENIZER.convert_tokens_to_ids(shown["candidates"])
    probability = shown["temperatures"]["1"][0]
    assert 0.3 < probability < 0.7
    likely = [each.log_V for each in teacher_seen[0] if each.log_V.topk(8).indices.tolist() == ids]
    log_V = min(likely, key=lambda log_V: abs(float(log_V.max().exp()) - probability))
    assert list(shown["temperatures"]) == ["0.5", "1", "2", "4"]
    for temperature, found in shown["temperatures"].items():
        expected = torch.softmax(log_V / float(temperature), -1)[ids]
        assert found == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(shown["student"]["1"]) == 8


def test_the_student_is_the_one_named_or_the_last(folders: dict[str, Path]) -> None:
    def evaluated(names: str, student: str | None = None) -> dict[str, Any]:
        chosen = {name: folders[name] for name in names.split()}
        beside = lineup(chosen, student=student)
        return evaluate_masked_lm(beside, text(), Evaluate())

    everyone = "student copy teacher"
    named, last = evaluated(everyone, "student"), evaluated("student teacher")
    assert named["examples"] == last["examples"] != []
    assert named["softened"] == last["softened"]
    unnamed = evaluated(everyone)  # the last of the three is the teacher's copy
    assert unnamed["examples"] == []
    assert unnamed["softened"]["student"]["1"] == unnamed["softened"]["temperatures"]["1"]
    assert named["models"] == unnamed["models"]


# --- what is refused ------------------------------------------------------------------------------


def test_no_heldout_text_is_refused(teacher: Path) -> None:
    message = (
        "corpus.heldout: no text is held out to evaluate on. Raise corpus.heldout, or set "
        "corpus.heldout_sources."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_masked_lm(lineup({"teacher": teacher}), text(tokens([])), Evaluate())


def test_one_heldout_sequence_has_scores_but_no_interval(folders: dict[str, Path]) -> None:
    one = tokens([" ".join(sentences(2, seed=21))])
    often = make_masker(Masking(probability=0.9), TOKENIZER, TRAIN_COUNTS)
    found = evaluate_masked_lm(lineup(folders), MaskedText(one, TRAIN_COUNTS, often), Evaluate())
    assert (found["records"], found["intervals"]) == (1, {})
    assert found["retention"] == {"student": {}, "copy": {}}
    assert found["models"]["teacher"]["masked_lm"]["top1"] > 0


def test_different_vocabularies_are_refused(teacher: Path, tmp_path: Path) -> None:
    words = {token: i for i, token in enumerate(reversed(list(TOKENIZER.get_vocab())))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(5)
    BertForMaskedLM(tiny_config(layers=1)).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    ).save_pretrained(tmp_path)
    message = (
        "evaluate.models: other and teacher have different vocabularies, so their predictions are "
        "not comparable. Name models of one vocabulary, or evaluate before trim_vocabulary."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate({"teacher": teacher, "other": tmp_path})


def test_a_model_with_too_few_positions_is_refused(teacher: Path, tmp_path: Path) -> None:
    longest = int(HELDOUT.lengths.max())
    for limit in (longest - 1, longest):
        torch.manual_seed(6)
        config = tiny_config(layers=1, max_position_embeddings=limit)
        BertForMaskedLM(config).save_pretrained(tmp_path / str(limit))
        tiny_tokenizer().save_pretrained(tmp_path / str(limit))
    message = (
        f"corpus.max_length: the longest held-out sequence has {longest} tokens, and the maximum "
        f"sequence length of short is {longest - 1}. Set corpus.max_length={longest - 1}."
    )
    with_short = {"teacher": teacher, "short": tmp_path / str(longest - 1)}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate(with_short)
    assert evaluate({"teacher": teacher, "long": tmp_path / str(longest)})["records"] == COUNT
    before_it = int(HELDOUT.lengths.argmax())  # only what is evaluated has to fit
    assert evaluate(with_short, max_records=before_it)["records"] == before_it
