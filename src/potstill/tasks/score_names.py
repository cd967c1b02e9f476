"""What scores are called: in tables, in short, in sentences, and on the hub."""

from __future__ import annotations

# Scores that say something of the model itself, not of its likeness to the teacher.
CARD_TASKS = {
    "retrieval": "information-retrieval",
    "sts": "sentence-similarity",
    "topic_probe": "text-classification",
    "masked_lm": "fill-mask",
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
    "sentence_similarity": "sentence-similarity",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
}

LABELS = {
    "retrieval.mrr": "Retrieval MRR",
    "retrieval.recall_at_1": "Retrieval recall@1",
    "topic_probe.accuracy": "Topic accuracy, linear probe",
    "sentence_similarity.spearman": "Likeness of pairs, Spearman",
    "sentence_similarity.pearson": "Likeness of pairs, Pearson",
    "sentence_similarity.mse": "Likeness of pairs, mean squared error",
    "sts.spearman": "Likeness of pairs, Spearman",
    "sts.pearson": "Likeness of pairs, Pearson",
    "similarity.pearson": "Similarity matrix, correlation",
    "hidden.cosine": "Hidden cosine",
    "classification.accuracy": "Accuracy",
    "classification.f1": "F1 of the second label",
    "classification.macro_f1": "F1, mean over labels",
    "classification.matthews": "Matthews' correlation",
    "multi_label.micro_f1": "F1 over all labels",
    "multi_label.macro_f1": "F1, mean over labels",
    "multi_label.exact_match": "Exactly right",
    "regression.pearson": "Pearson's correlation",
    "regression.spearman": "Spearman's correlation",
    "regression.mse": "Mean squared error",
    "token_classification.f1": "F1 of entities",
    "token_classification.precision": "Precision of entities",
    "token_classification.recall": "Recall of entities",
    "token_classification.accuracy": "Accuracy of words",
    "question_answering.exact_match": "Exact match",
    "question_answering.f1": "F1 of words",
    "agreement.labels": "Agreement on labels",
    "agreement.f1": "F1 against its answers",
    "agreement.pearson": "Correlation with its predictions",
    "masked_lm.loss": "Masked-LM loss",
    "masked_lm.perplexity": "Masked-LM perplexity",
    "masked_lm.top1": "Masked-LM top-1 accuracy",
    "agreement.top1": "Agreement of top-1 predictions",
    "agreement.kl": "KL divergence of predictions",
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
# What the verdict speaks of: the first of these that was scored, else the first retention there is.
HEADLINES = {
    "retrieval.mrr": "MRR",
    "masked_lm.top1": "masked-LM top-1 accuracy",
    "sts.spearman": "Spearman's correlation on pairs",
    "topic_probe.accuracy": "topic accuracy",
    "classification.accuracy": "accuracy",
    "classification.matthews": "Matthews' correlation",
}
REFERENCES = {
    "tfidf": "TF-IDF",
    "unigram": "unigram",
    "majority": "commonest answer",
    "lexicon": "each word's commonest tag",
    "sentence": "sentence with most words shared",
}


def label_of(key: str) -> str:
    """What a score, a loss or a reference is called."""
    return LABELS.get(key) or REFERENCES.get(key) or key.replace("_", " ").replace(".", ": ")


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


def metric_name(metric: str) -> str:
    """What a score is called in a sentence: macro F1 for macro_f1."""
    return _SAID.get(metric, metric.replace("_", " "))


# Shorter than the report's: six models have to fit into 80 columns.
SHORT_NAMES = {
    "classification.accuracy": "accuracy",
    "classification.f1": "F1, second label",
    "classification.macro_f1": "macro F1",
    "classification.matthews": "Matthews",
    "multi_label.micro_f1": "micro F1",
    "multi_label.macro_f1": "macro F1",
    "multi_label.exact_match": "exactly right",
    "regression.pearson": "Pearson",
    "regression.spearman": "Spearman",
    "regression.mse": "squared error",
    "token_classification.f1": "F1 of entities",
    "token_classification.precision": "precision",
    "token_classification.recall": "recall",
    "token_classification.accuracy": "accuracy of words",
    "question_answering.exact_match": "exact match",
    "question_answering.f1": "F1 of words",
    "sentence_similarity.spearman": "pairs, Spearman",
    "sentence_similarity.pearson": "pairs, Pearson",
    "sentence_similarity.mse": "pairs, squared error",
    "sts.spearman": "pairs, Spearman",
    "sts.pearson": "pairs, Pearson",
    "agreement.labels": "agreement, labels",
    "agreement.f1": "agreement, F1",
    "agreement.pearson": "agreement, Pearson",
    "retrieval.mrr": "retrieval MRR",
    "retrieval.recall_at_1": "retrieval recall@1",
    "topic_probe.accuracy": "topic accuracy",
    "similarity.pearson": "similarity of spaces",
    "hidden.cosine": "hidden cosine",
    "masked_lm.loss": "masked-LM loss",
    "masked_lm.perplexity": "masked-LM perplexity",
    "masked_lm.top1": "masked-LM top-1",
    "agreement.top1": "agreement, top-1",
    "agreement.kl": "agreement, KL",
}
