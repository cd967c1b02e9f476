"""Score models, whatever their task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path

from potstill.data import read_records
from potstill.data.sources import heldout_side
from potstill.evaluation import evaluate_embeddings, evaluate_masked_lm, evaluate_task
from potstill.evaluation.embeddings import check_records
from potstill.evaluation.lineup import Lineup
from potstill.evaluation.masked_lm import MaskedText, check_heldout, check_vocabularies
from potstill.evaluation.pairs import read_pairs, with_pairs
from potstill.pipeline.context import Context, Done, TokenizedText
from potstill.pipeline.outlook import Outline, Outlook
from potstill.recipe import Corpus, Evaluate, Recipe, Task
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
        ValueError: Pairs can't be read, no text is held out, or a column is missing.
    """
    recipe, where = outlook.recipe, outlook.where
    if recipe.corpus is None:
        return
    if stage.pairs is not None:
        read_pairs(stage.pairs)
    if recipe.corpus.heldout == 0 and recipe.corpus.heldout_sources is None:
        raise ValueError(
            f"{where}: no text is held out to evaluate on. Raise corpus.heldout, or set "
            "corpus.heldout_sources."
        )
    if recipe.task == Task.MASKED_LM:
        return
    passage = with_passage(stage, recipe.corpus).passage
    wanted = {"passage": passage, "query": stage.query, "label": stage.label}
    for key, name in wanted.items():
        if name is not None and name not in outlook.columns:
            raise ValueError(
                f"{where}: {key}: no column is called '{name}'. Name one of "
                f"{', '.join(outlook.columns)}."
            )


def check_ahead(stage: Evaluate, context: Context, names: Collection[str]) -> None:
    """Refuse too little held-out text; a task's examples were read before anything started.

    Raises:
        ValueError: As the stage itself would.
    """
    if context.task == Task.SENTENCE_EMBEDDING:
        check_records(context.heldout_records, with_passage(stage, context.corpus_settings))
    elif not context.labeled:
        check_heldout(context.text_for("teacher").corpus.heldout)


def run(stage: Evaluate, folder: Path, context: Context, fingerprint: str) -> Done:
    return score(stage, _lineup(stage, context), context, context.text_for), {}


def score(
    stage: Evaluate, lineup: Lineup, context: Context, text_for: Callable[[str], TokenizedText]
) -> Evaluation:
    """Score models on the run's text.

    Args:
        stage: What the user asks for.
        lineup: The models.
        context: What the stages share.
        text_for: Returns the text in the tokens of a model of the lineup.
    """
    progress = context.reporter.progress
    if context.labeled:
        text = text_for(stage.baseline)
        texts = {name: text_for(name) for name in lineup.models}
        own = {name: each.examples.test for name, each in texts.items() if each is not text}
        found, metric = text.examples, context.data_settings.metric
        case = Case(context.task, found.labels, found.test, found.train, own)
        return evaluate_task(lineup, case, stage, metric, progress)
    if context.task == Task.SENTENCE_EMBEDDING:
        stage = with_passage(stage, context.corpus_settings)
        scored = evaluate_embeddings(lineup, context.heldout_records, stage, progress)
        return with_pairs(scored, lineup, stage)
    text = text_for(stage.baseline)  # whose vocabulary is that of all models, or they are refused
    corpus, masker = text.corpus, text.masker(stage.masking)
    assert masker is not None
    masked = MaskedText(corpus.heldout, corpus.train.token_counts, masker)
    return evaluate_masked_lm(lineup, masked, stage, progress)


def _lineup(stage: Evaluate, context: Context) -> Lineup:
    """Return the models of the stage, each with its repeats, and the parts that they play."""
    chosen = context.compared(stage.models, stage.baseline)
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


def with_passage(stage: Evaluate, corpus: Corpus) -> Evaluate:
    """Set the passage where none is named: the column `text`, else the last text column."""
    passage = stage.passage or ("text" if "text" in corpus.columns else corpus.columns[-1])
    return stage.model_copy(update={"passage": passage})


def seen_columns(recipe: Recipe) -> Sequence[str]:
    """Return the columns of the first records; fail as reading the corpus would."""
    corpus = recipe.corpus
    assert corpus is not None
    seen: dict[str, None] = {}
    for sources in (corpus.sources, corpus.heldout_sources):
        if sources is not None:
            seen = {}  # scores are on the held-out sources where there are some
            for record in islice(read_records(sources, corpus.columns), FIRST_RECORDS):
                seen |= dict.fromkeys(record.columns)
                if corpus.heldout_sources is None:  # refuses a record without group_by
                    heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, 0)
    return list(seen)
