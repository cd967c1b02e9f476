"""Stages that measure models as plain functions: files and folders in, a result out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from potstill.data import make_masker, read_records, tokenize_corpus
from potstill.evaluation.embeddings import evaluate_embeddings
from potstill.evaluation.lineup import Lineup
from potstill.evaluation.masked_lm import MaskedText, evaluate_masked_lm
from potstill.evaluation.pairs import with_pairs
from potstill.evaluation.tasks import evaluate_task
from potstill.models import load_config, load_model, task_of
from potstill.recipe import Corpus, Evaluate, Masking, ScoredPairs, Task, TaskData
from potstill.storage import cache_folder
from potstill.storage.places import Folder
from potstill.tasks import read_for, tokenize_task
from potstill.tasks.examples import tokenize_test
from potstill.tasks.metrics import Case
from potstill.tasks.results import Evaluation

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
) -> Evaluation:
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
        columns = {"text": passage.split(","), "label": (label or "label").split(",")}
        return _evaluate_task(lineup, task, text, columns, progress)
    for model in models:
        if task == Task.MASKED_LM and task_of(model) != task:
            raise ValueError(
                f"{os.fspath(model)} has no masked-LM head and the baseline {os.fspath(baseline)} "
                "has one: give models of one task"
            )
    encoders = task == Task.SENTENCE_EMBEDDING
    read = [column for column in (query, passage, label) if column] if encoders else [passage]
    corpus = corpus_of(text, folders.values(), task, read, unit)
    assert isinstance(corpus, Corpus)
    settings = Evaluate(query=query, passage=passage, label=label, pairs=pairs)
    if encoders:
        records = list(read_records(corpus.sources, corpus.columns))
        found = evaluate_embeddings(lineup, records, settings, progress)
        return with_pairs(found, lineup, settings)
    return evaluate_masked_lm(lineup, _masked_text(lineup, corpus, say), settings, progress)


def _masked_text(lineup: Lineup, corpus: Corpus, say: Callable[[str], None]) -> MaskedText:
    """All of a corpus, as the baseline's tokenizer cuts it."""
    tokenizer = load_model(lineup.folders[lineup.baseline], Task.MASKED_LM).tokenizer
    whole, cache = corpus.model_copy(update={"heldout": 0.0}), cache_folder() / "tokens"
    found = tokenize_corpus(whole, tokenizer, cache, lineup.seed, say=say).train
    masker = make_masker(Masking(), tokenizer, found.token_counts)
    return MaskedText(found, found.token_counts, masker)


def _evaluate_task(
    lineup: Lineup,
    task: Task,
    text: Text,
    columns: Mapping[str, Sequence[str]],
    progress: Callable[[float], None],
) -> Evaluation:
    """Labelled files, or a TaskData; without text to train on, TF-IDF has nothing to learn from.

    Args:
        columns: `text` and `label`, of files.
    """
    if isinstance(text, Corpus):
        raise ValueError(f"text: {task} reads labelled files or a TaskData, not a Corpus")
    baseline, folders = lineup.baseline, lineup.folders
    for name, folder in folders.items():
        own = task_for(folder, text)
        if own != task:
            raise ValueError(
                f"{name} does {own} and the baseline {baseline} {task}: give models of one task"
            )
    opened = {name: load_model(f, task, weights=False) for name, f in folders.items()}
    tokenizers = {name: loaded.tokenizer for name, loaded in opened.items()}
    if isinstance(text, TaskData):
        data = text
        rows = read_for(task, data, load_config(baseline), lineup.seed)
        found = tokenize_task(rows, tokenizers[baseline])
        test, learnt, warnings = found.test, found.train, found.warnings
    else:
        sources = [text] if isinstance(text, str) else list(text)
        limit = min(512, *(loaded.max_length for loaded in opened.values()))
        sides = {"train": sources, "dev": sources, "max_length": limit}
        data = TaskData.model_validate({**sides, **columns})
        rows = read_for(task, data, load_config(baseline), lineup.seed, every_class=False)
        (test, told), learnt = tokenize_test(rows, tokenizers[baseline]), None
        warnings = [  # nobody named a side of plain files
            one.replace(" of dev", "").replace("data.max_length", "the models take") for one in told
        ]
    # each model's texts as its own tokenizer cuts them, whatever the two have in common
    own_tests = {n: tokenize_test(rows, t)[0] for n, t in tokenizers.items() if n != baseline}
    case = Case(task, rows.labels, test, learnt, own_tests)
    scored = evaluate_task(lineup, case, Evaluate(), data.metric, progress)
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
    paths = [text] if isinstance(text, str) else list(text)
    tree = {
        "sources": [{"kind": "files", "paths": paths, "unit": unit}],
        "columns": list(columns),
        "min_length": 4,
        "max_length": min(limit, Corpus.model_fields["max_length"].default),
    }
    return Corpus.model_validate(tree)
