"""Score models on the user's own files: files and folders in, a result out."""

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
    """Score models on text and compare them with a baseline, as the evaluate stage does.

    Args:
        models: Model folders, or .onnx files in them (FOLDER/onnx/NAME.onnx).
        baseline: The model that the others are compared with, given in the same way.
        text: Files, a `Corpus`, or labeled examples as a `TaskData`.
        query: Column of the queries, for sentence encoders; None: no retrieval.
        passage: Column of the text; for models with a task's head, two columns have a comma.
        label: Column of the labels, or of topics for sentence encoders; None: "label", or none.
        pairs: Labeled pairs that sentence encoders are also scored on; None: none.
        unit: What one text of a .txt file is: line, paragraph or document.
        seed: Seeds masks, the bootstrap, and references that learn.
        progress: Receives the finished fraction, 0 to 1.
        say: Receives a sentence if cached tokens are damaged.

    Returns:
        What the stage writes as result.json; models are named by their paths.

    Raises:
        ValueError: Models, text or columns do not fit together.
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
                f"models: {os.fspath(model)} has no masked-LM head, and the baseline "
                f"{os.fspath(baseline)} has one. Name models of one task."
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
    """Tokenize all of a corpus with the baseline's tokenizer."""
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
    """Score models on labeled files or a TaskData; only the latter has text to train TF-IDF on.

    Args:
        columns: Columns of `text` and `label`, for files.
    """
    if isinstance(text, Corpus):
        raise ValueError(
            f"text: {task} can't be scored on a Corpus. Name labeled files, or pass a TaskData."
        )
    baseline, folders = lineup.baseline, lineup.folders
    for name, folder in folders.items():
        own = task_for(folder, text)
        if own != task:
            raise ValueError(
                f"models: the task of {name} is {own}, and that of the baseline {baseline} is "
                f"{task}. Name models of one task."
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
        warnings = [  # plain files have no sides
            one.replace(" of dev", "").replace("data.max_length", "the models take") for one in told
        ]
    # each model's tokens are its own tokenizer's, whatever the two have in common
    own_tests = {n: tokenize_test(rows, t)[0] for n, t in tokenizers.items() if n != baseline}
    case = Case(task, rows.labels, test, learnt, own_tests)
    scored = evaluate_task(lineup, case, Evaluate(), data.metric, progress)
    return {**scored, "warnings": warnings}


def task_for(model: Folder, text: Text) -> Task:
    """Return a model's task; for a sentence encoder with labels, sentence_similarity."""
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
    """Return files as a corpus, cut at 128 tokens or the smallest maximum sequence length."""
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
