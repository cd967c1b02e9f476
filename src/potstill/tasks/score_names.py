"""Name scores, their direction and the hub's name of their task, in one table."""

from __future__ import annotations

from typing import NamedTuple


class _Score(NamedTuple):
    """Name a score.

    Attributes:
        label: In the report.
        headline: In the verdict, which is about the first score of the table that has one.
        is_loss: Whether lower is better.
    """

    label: str
    headline: str | None = None
    is_loss: bool = False


_SCORES = {
    "retrieval.mrr": _Score("Retrieval MRR", "MRR"),
    "retrieval.recall_at_1": _Score("Retrieval recall@1"),
    "masked_lm.loss": _Score("Masked-LM loss", is_loss=True),
    "masked_lm.perplexity": _Score("Masked-LM perplexity", is_loss=True),
    "masked_lm.top1": _Score("Masked-LM top-1 accuracy", "masked-LM top-1 accuracy"),
    "sts.spearman": _Score("Likeness of pairs, Spearman", "Spearman's correlation on pairs"),
    "sts.pearson": _Score("Likeness of pairs, Pearson"),
    "topic_probe.accuracy": _Score("Topic accuracy, linear probe", "topic accuracy"),
    "classification.accuracy": _Score("Accuracy", "accuracy"),
    "classification.f1": _Score("F1 of the second label"),
    "classification.macro_f1": _Score("F1, mean over labels"),
    "classification.matthews": _Score("Matthews' correlation", "Matthews' correlation"),
    "multi_label.micro_f1": _Score("F1 over all labels"),
    "multi_label.macro_f1": _Score("F1, mean over labels"),
    "multi_label.exact_match": _Score("Exactly right"),
    "regression.pearson": _Score("Pearson's correlation"),
    "regression.spearman": _Score("Spearman's correlation"),
    "regression.mse": _Score("Mean squared error", is_loss=True),
    "sentence_similarity.spearman": _Score("Likeness of pairs, Spearman"),
    "sentence_similarity.pearson": _Score("Likeness of pairs, Pearson"),
    "sentence_similarity.mse": _Score("Likeness of pairs, mean squared error", is_loss=True),
    "token_classification.f1": _Score("F1 of entities"),
    "token_classification.precision": _Score("Precision of entities"),
    "token_classification.recall": _Score("Recall of entities"),
    "token_classification.accuracy": _Score("Accuracy of words"),
    "question_answering.exact_match": _Score("Exact match"),
    "question_answering.f1": _Score("F1 of words"),
    "similarity.pearson": _Score("Similarity matrix, correlation"),
    "hidden.cosine": _Score("Hidden cosine"),
    "agreement.labels": _Score("Agreement on labels"),
    "agreement.f1": _Score("F1 against its answers"),
    "agreement.pearson": _Score("Correlation with its predictions"),
    "agreement.top1": _Score("Agreement of top-1 predictions"),
    "agreement.kl": _Score("KL divergence of predictions", is_loss=True),
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


def metric_name(metric: str) -> str:
    """Return a metric's name in a sentence: macro F1 for macro_f1."""
    return _SAID.get(metric, metric.replace("_", " "))


def is_loss(key: str) -> bool:
    """Check whether lower is better, for a score such as `masked_lm.loss` or `mse`."""
    return key.rpartition(".")[2] in _LOSSES
