"""Name scores, their direction and the hub's name of their task, in one table."""

from __future__ import annotations

from typing import NamedTuple


class _Score(NamedTuple):
    """Name a score.

    Attributes:
        label: In the report.
        short: In the terminal, where six models have to fit into 80 columns.
        headline: In the verdict, which is about the first score of the table that has one.
        is_loss: Whether lower is better.
    """

    label: str
    short: str
    headline: str | None = None
    is_loss: bool = False


_SCORES = {
    "retrieval.mrr": _Score("Retrieval MRR", "retrieval MRR", "MRR"),
    "retrieval.recall_at_1": _Score("Retrieval recall@1", "retrieval recall@1"),
    "masked_lm.loss": _Score("Masked-LM loss", "masked-LM loss", is_loss=True),
    "masked_lm.perplexity": _Score("Masked-LM perplexity", "masked-LM perplexity", is_loss=True),
    "masked_lm.top1": _Score(
        "Masked-LM top-1 accuracy", "masked-LM top-1", "masked-LM top-1 accuracy"
    ),
    "sts.spearman": _Score(
        "Likeness of pairs, Spearman", "pairs, Spearman", "Spearman's correlation on pairs"
    ),
    "sts.pearson": _Score("Likeness of pairs, Pearson", "pairs, Pearson"),
    "topic_probe.accuracy": _Score(
        "Topic accuracy, linear probe", "topic accuracy", "topic accuracy"
    ),
    "classification.accuracy": _Score("Accuracy", "accuracy", "accuracy"),
    "classification.f1": _Score("F1 of the second label", "F1, second label"),
    "classification.macro_f1": _Score("F1, mean over labels", "macro F1"),
    "classification.matthews": _Score("Matthews' correlation", "Matthews", "Matthews' correlation"),
    "multi_label.micro_f1": _Score("F1 over all labels", "micro F1"),
    "multi_label.macro_f1": _Score("F1, mean over labels", "macro F1"),
    "multi_label.exact_match": _Score("Exactly right", "exactly right"),
    "regression.pearson": _Score("Pearson's correlation", "Pearson"),
    "regression.spearman": _Score("Spearman's correlation", "Spearman"),
    "regression.mse": _Score("Mean squared error", "squared error", is_loss=True),
    "sentence_similarity.spearman": _Score("Likeness of pairs, Spearman", "pairs, Spearman"),
    "sentence_similarity.pearson": _Score("Likeness of pairs, Pearson", "pairs, Pearson"),
    "sentence_similarity.mse": _Score(
        "Likeness of pairs, mean squared error", "pairs, squared error", is_loss=True
    ),
    "token_classification.f1": _Score("F1 of entities", "F1 of entities"),
    "token_classification.precision": _Score("Precision of entities", "precision"),
    "token_classification.recall": _Score("Recall of entities", "recall"),
    "token_classification.accuracy": _Score("Accuracy of words", "accuracy of words"),
    "question_answering.exact_match": _Score("Exact match", "exact match"),
    "question_answering.f1": _Score("F1 of words", "F1 of words"),
    "similarity.pearson": _Score("Similarity matrix, correlation", "similarity of spaces"),
    "hidden.cosine": _Score("Hidden cosine", "hidden cosine"),
    "agreement.labels": _Score("Agreement on labels", "agreement, labels"),
    "agreement.f1": _Score("F1 against its answers", "agreement, F1"),
    "agreement.pearson": _Score("Correlation with its predictions", "agreement, Pearson"),
    "agreement.top1": _Score("Agreement of top-1 predictions", "agreement, top-1"),
    "agreement.kl": _Score("KL divergence of predictions", "agreement, KL", is_loss=True),
}
# Names of metrics in a sentence; a metric that is not listed only needs spaces.
_SAID = {
    "mrr": "MRR",
    "recall_at_1": "recall@1",
    "top1": "top-1 accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "matthews": "Matthews' correlation",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's correlation",
    "mse": "mean squared error",
}
OBJECTIVES = {
    "loss": "Total: the weighted sum",
    "soft_targets": "Soft targets",
    "hard_targets": "Hard targets",
    "logits_mse": "Squared difference of logits",
    "gold_mse": "Squared difference from the value",
    "hidden_cosine": "Hidden cosine",
    "vector_mse": "Squared distance of sentence vectors",
    "patient_hidden": "Patient hidden states",
    "hidden_mse": "Squared difference of hidden states",
    "attention_mse": "Squared difference of attention scores",
    "relations": "Self-attention relations",
}
_REFERENCES = {
    "tfidf": "TF-IDF",
    "unigram": "unigram",
    "majority": "most frequent answer",
    "lexicon": "each word's most frequent tag",
    "sentence": "sentence with most words shared",
}
# The hub's task of each part; parts that only compare a model with the baseline have none.
CARD_TASKS = {
    "retrieval": "information-retrieval",
    "masked_lm": "fill-mask",
    "sts": "sentence-similarity",
    "topic_probe": "text-classification",
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
    "sentence_similarity": "sentence-similarity",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
}
HEADLINES = {key: score.headline for key, score in _SCORES.items() if score.headline}
_LOSSES = {key.rpartition(".")[2] for key, score in _SCORES.items() if score.is_loss}


def label_of(key: str) -> str:
    """Return the report's name of a score, a loss or a reference."""
    if key in _SCORES:
        return _SCORES[key].label
    named = OBJECTIVES.get(key) or _REFERENCES.get(key)
    return named or key.replace("_", " ").replace(".", ": ")


def short_name(key: str) -> str:
    """Return the terminal's short name of a score such as `retrieval.mrr`."""
    return _SCORES[key].short if key in _SCORES else key.replace(".", " ")


def metric_name(metric: str) -> str:
    """Return a metric's name in a sentence: macro F1 for macro_f1."""
    return _SAID.get(metric, metric.replace("_", " "))


def is_loss(key: str) -> bool:
    """Check whether lower is better, for a score such as `masked_lm.loss` or `mse`."""
    return key.rpartition(".")[2] in _LOSSES
