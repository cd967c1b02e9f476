"""The stage that scores models, whatever their task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.data import Examples, read_records
from potstill.data.sources import heldout_side
from potstill.evaluation import evaluate_embeddings, evaluate_masked_lm, evaluate_task
from potstill.evaluation.embeddings import check_records
from potstill.evaluation.lineup import Lineup
from potstill.evaluation.masked_lm import MaskedText, check_vocabularies
from potstill.evaluation.masked_lm import check_heldout as check_sequences
from potstill.evaluation.pairs import read_pairs, with_pairs
from potstill.pipeline.context import Context, Outline, Outlook, chosen_models
from potstill.recipe import Corpus, Evaluate, Recipe, Task, TaskData
from potstill.tasks.metrics import Case
from potstill.tasks.results import Evaluation

VERSION = 3
FIRST_RECORDS = 100  # what the columns of a corpus are judged by before it is read


def check(stage: Evaluate, outlook: Outlook) -> Outline:
    names = [*(stage.models or [*outlook.given, *outlook.written]), stage.baseline]
    models = {name: outlook.model(name) for name in names}
    if outlook.recipe.task == Task.MASKED_LM:
        check_vocabularies(models, stage.baseline)
    check_scored(stage, outlook)
    return Outline(stage)


def check_scored(stage: Evaluate, outlook: Outlook) -> None:
    """Check the text that scores are on; a task's examples are read before any stage is checked.

    Raises:
        ValueError: pairs that can't be read, nothing is held out, or a column is not there.
    """
    if outlook.recipe.data is None:
        if stage.pairs is not None:
            read_pairs(stage.pairs)
        check_columns_of(outlook.where, stage, outlook.recipe, outlook.columns)


def run(
    stage: Evaluate, folder: Path, context: Context, fingerprint: str
) -> tuple[Mapping[str, Any], dict[str, str]]:
    return score(stage, context), {}


def score(stage: Evaluate, context: Context) -> Evaluation:
    lineup, progress = _lineup(stage, context), context.reporter.progress
    if isinstance(context.text_settings, TaskData):
        own, found = _own_tests(lineup.models, context), context.examples
        case = Case(context.task, found.labels, found.test, found.train, own)
        return evaluate_task(lineup, case, stage, context.text_settings.metric, progress)
    if context.task == Task.SENTENCE_EMBEDDING:
        stage = with_passage(stage, context.corpus_settings)
        scored = evaluate_embeddings(lineup, context.heldout_records, stage, progress)
        return with_pairs(scored, lineup, stage)
    # which is the vocabulary of all of them, or they are refused
    context = context.cut_as(stage.baseline)
    corpus, masker = context.corpus, context.masker(stage.masking)
    text = MaskedText(corpus.heldout, corpus.train.token_counts, masker)
    return evaluate_masked_lm(lineup, text, stage, progress)


def _lineup(stage: Evaluate, context: Context) -> Lineup:
    """The models of the stage, each with its repeats, and which of them is the recipe's student."""
    chosen = chosen_models(stage.models, stage.baseline, context)
    others = chosen.keys() - {stage.baseline}
    runs = {
        name: [context.models[each] for each in context.repeats.get(name, [name])]
        for name in chosen
    }
    return Lineup(
        runs,
        stage.baseline,
        context.seed,
        student=context.student if context.student in others else None,
        twin=context.twin if context.twin in chosen else None,
    )


def _own_tests(names: Iterable[str], context: Context) -> dict[str, Examples]:
    """The test examples as models cut them whose vocabulary is not the teacher's any more."""
    cut = {name: context.cut_as(name) for name in names}
    return {name: own.examples.test for name, own in cut.items() if own is not context}


def with_passage(stage: Evaluate, corpus: Corpus) -> Evaluate:
    """The column `text` is the passage where none is named; without it, the last text column."""
    passage = stage.passage or ("text" if "text" in corpus.columns else corpus.columns[-1])
    return stage.model_copy(update={"passage": passage})


def check_heldout(stage: Evaluate, context: Context) -> None:
    """Refuse too little held-out text before any time goes into training.

    Raises:
        ValueError: as the stage itself would.
    """
    if isinstance(context.text_settings, TaskData):
        return  # was read before anything started
    if context.task == Task.SENTENCE_EMBEDDING:
        check_records(context.heldout_records, with_passage(stage, context.corpus_settings))
    else:
        check_sequences(context.corpus.heldout)


def seen_columns(recipe: Recipe) -> list[str]:
    """Columns of the first records; fails as reading the corpus would."""
    corpus = recipe.corpus
    assert corpus is not None
    seen: dict[str, None] = {}
    for sources in (corpus.sources, corpus.heldout_sources):
        if sources is not None:
            seen = {}  # scores are on the held-out sources where there are some
            for record in islice(read_records(sources, corpus.columns), FIRST_RECORDS):
                seen |= dict.fromkeys(record.columns)
                if corpus.heldout_sources is None:  # complains of a record without group_by
                    heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, 0)
    return list(seen)


def check_columns_of(where: str, stage: Evaluate, recipe: Recipe, columns: Sequence[str]) -> None:
    assert recipe.corpus is not None
    if recipe.corpus.heldout == 0 and recipe.corpus.heldout_sources is None:
        raise ValueError(
            f"{where}: no text is held out to evaluate on: raise corpus.heldout or give "
            "corpus.heldout_sources"
        )
    if recipe.task == Task.MASKED_LM:
        return
    passage = with_passage(stage, recipe.corpus).passage
    wanted = {"passage": passage, "query": stage.query, "label": stage.label}
    for key, name in wanted.items():
        if name is not None and name not in columns:
            raise ValueError(f"{where}: {key}: no column '{name}'; there are: {', '.join(columns)}")
