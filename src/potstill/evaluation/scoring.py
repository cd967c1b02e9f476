"""Stages that measure models as plain functions: files and folders in, a result out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from potstill.data import make_masker, read_records, tokenize_corpus
from potstill.evaluation.embeddings import evaluate_embeddings
from potstill.evaluation.lineup import Lineup
from potstill.evaluation.masked_lm import evaluate_masked_lm
from potstill.evaluation.pairs import with_pairs
from potstill.evaluation.tasks import evaluate_task
from potstill.models import load_config, load_model, task_of
from potstill.recipe import Corpus, Evaluate, Masking, ScoredPairs, Task, TaskData
from potstill.storage import cache_folder
from potstill.storage.places import Folder
from potstill.tasks import read_for, tokenize_task
from potstill.tasks.examples import tokenize_test
from potstill.tasks.metrics import Case

Text = Corpus | TaskData | str | Sequence[str]


def evaluate(
    models: Sequence[Folder],
    baseline: Folder,
    text: Text,
    *,
    query: str | None = None,
    passage: str = "text",
    label: str | None = None,
    pairs: ScoredPairs | None = None,
    unit: str = "line",
    seed: int = 1,
    progress: Callable[[float], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Score models on text beside a baseline, as the evaluate stage does.

    Args:
        models, baseline: model folders, or .onnx files in them (FOLDER/onnx/NAME.onnx).
        query, passage, label: columns, for sentence encoders; see recipe.Evaluate. Of models with
            a task's head: passage is the column of the text (two with a comma), label the labels'.
        pairs: for sentence encoders: labelled pairs to score them on, too.
        unit: of .txt files: line, paragraph or document.
        say: called with a sentence where tokenised text that was kept is damaged.

    Returns:
        What the stage writes as result.json; models are called by their paths.

    Raises:
        ValueError: bad input.
    """
    folders = {os.fspath(model): Path(model) for model in [baseline, *models]}
    lineup = Lineup({name: [path] for name, path in folders.items()}, os.fspath(baseline), seed)
    task = task_for(baseline, text)
    if task.head is not None:
        return _evaluate_task(lineup, task, text, passage, label, progress)
    for model in models:
        if task == Task.MASKED_LM and task_of(model) != task:
            raise ValueError(
                f"{os.fspath(model)} has no masked-LM head and the baseline {os.fspath(baseline)} "
                "has one: give models of one task"
            )
    columns = (
        [column for column in (query, passage, label) if column]
        if task == Task.SENTENCE_EMBEDDING
        else [passage]
    )
    corpus = corpus_of(text, folders.values(), task, columns, unit)
    assert isinstance(corpus, Corpus)
    settings = Evaluate(query=query, passage=passage, label=label, pairs=pairs)
    if task == Task.SENTENCE_EMBEDDING:
        records = list(read_records(corpus.sources, corpus.columns))
        found = evaluate_embeddings(lineup, records, settings, progress)
        return with_pairs(found, lineup, settings)
    tokenizer = load_model(baseline, task).tokenizer
    everything = tokenize_corpus(
        corpus.model_copy(update={"heldout": 0.0}),
        tokenizer,
        cache_folder() / "tokens",
        seed,
        say=say,
    ).train
    masker = make_masker(Masking(), tokenizer, everything.token_counts)
    return evaluate_masked_lm(
        lineup, everything, everything.token_counts, masker, settings, progress
    )


def _evaluate_task(
    lineup: Lineup,
    task: Task,
    text: Text,
    passage: str,
    label: str | None,
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """Labelled files, or a TaskData; without text to train on, TF-IDF has nothing to learn from."""
    if isinstance(text, Corpus):
        raise ValueError(f"text: {task} reads labelled files or a TaskData, not a Corpus")
    folders, baseline = lineup.folders, lineup.baseline
    for name, folder in folders.items():
        own = task_for(folder, text)
        if own != task:
            raise ValueError(
                f"{name} does {own} and the baseline {baseline} {task}: give models of one task"
            )
    opened = {name: load_model(f, task, weights=False) for name, f in folders.items()}
    data, train = text, True
    if not isinstance(data, TaskData):
        sources = [text] if isinstance(text, str) else list(text)
        positions = min(loaded.max_length for loaded in opened.values())
        train = False
        data = TaskData.model_validate(
            {
                **{"train": sources, "dev": sources, "text": passage.split(",")},
                **{"label": (label or "label").split(","), "max_length": min(512, positions)},
            }
        )
    rows = read_for(task, data, load_config(baseline), lineup.seed, every_class=train)
    if train:
        found = tokenize_task(rows, opened[baseline].tokenizer)
        test, learnt, warnings = found.test, found.train, found.warnings
    else:  # nobody named a side of plain files
        (test, told), learnt = tokenize_test(rows, opened[baseline].tokenizer), None
        warnings = [
            one.replace(" of dev", "").replace("data.max_length", "the models take") for one in told
        ]
    # each model's texts as its own tokenizer cuts them, whatever the two have in common
    others = {n: loaded.tokenizer for n, loaded in opened.items() if n != baseline}
    tests = {name: tokenize_test(rows, tokenizer)[0] for name, tokenizer in others.items()}
    case = Case(task, rows.labels, test, learnt)
    scored = evaluate_task(lineup, case, Evaluate(), data.metric, progress, tests=tests)
    return {**scored, "warnings": warnings}


def task_for(model: Folder, text: Text) -> Task:
    """A model's task; of a sentence encoder the labelled one, where there are labels."""
    task = task_of(model)
    labelled = task == Task.SENTENCE_EMBEDDING and isinstance(text, TaskData)
    return Task.SENTENCE_SIMILARITY if labelled else task


def corpus_of(
    text: Text,
    models: Iterable[Folder],
    task: Task,
    columns: Sequence[str] = ("text",),
    unit: str = "line",
) -> Corpus | TaskData:
    """Files as a corpus whose texts are cut at 128 tokens, or where the models' inputs end."""
    if isinstance(text, (Corpus, TaskData)):
        return text
    opened = [load_model(m, task, untrained_head=True, weights=False) for m in models]
    limit = min(loaded.max_length for loaded in opened)
    tree = {
        "sources": [
            {
                "kind": "files",
                "paths": [text] if isinstance(text, str) else list(text),
                "unit": unit,
            }
        ],
        "columns": list(columns),
        "min_length": 4,
        "max_length": min(limit, Corpus.model_fields["max_length"].default),
    }
    return Corpus.model_validate(tree)
