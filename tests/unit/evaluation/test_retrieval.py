import tracemalloc
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from potstill.evaluation import retrieval
from potstill.tasks import metrics


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that Python and numpy held at a time beyond what they held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_target_ranks_count_ties_and_nan_against_the_model() -> None:
    nan = np.nan
    scores_QP = np.array(
        [
            [0.9, 0.1, 0.5],  # the target is best
            [0.9, 0.1, 0.5],  # second: 0.5 after 0.9
            [0.5, 0.5, 0.1],  # a tie for the first place is the second
            [0.3, 0.3, 0.3],  # all alike: last
            [0.1, nan, 0.2],  # NaN beside the target may be better
            [nan, 0.1, 0.2],  # a target of NaN is last
        ]
    )
    ranks_Q = retrieval.target_ranks(scores_QP, np.array([0, 2, 1, 1, 2, 0]))
    assert ranks_Q.tolist() == [1, 2, 2, 3, 2, 3]


def test_mean_reciprocal_rank_and_recall() -> None:
    ranks_Q = np.array([1, 2, 4, 10])
    assert retrieval.mean_reciprocal_rank(ranks_Q).value == pytest.approx(
        (1 + 1 / 2 + 1 / 4 + 1 / 10) / 4
    )
    assert retrieval.recall_at_k(ranks_Q, 1).value == 0.25
    assert retrieval.recall_at_k(ranks_Q, 4).value == 0.75
    assert retrieval.recall_at_k(ranks_Q, 3).value == 0.5


@pytest.mark.parametrize("block", [1, 20, 33, 10_000])  # less than a row, two rows, three, all
def test_own_ranks_in_blocks_are_those_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    generator = np.random.default_rng(0)
    passages_PD = generator.normal(size=(10, 4))
    passages_PD[7] = passages_PD[2]  # a tie
    queries_QD = passages_PD + generator.normal(size=(10, 4))
    blocks = list(retrieval.cosine_blocks(queries_QD, passages_PD))
    heights = [rows.stop - rows.start for rows, _ in blocks]
    assert max(heights) == max(1, min(10, block // 10))
    assert sum(heights) == 10
    scores_QP = np.array(
        [
            [q @ p / (np.sqrt(q @ q) * np.sqrt(p @ p)) for p in passages_PD.astype(np.float64)]
            for q in queries_QD
        ]
    )
    np.testing.assert_allclose(np.concatenate([scores for _, scores in blocks]), scores_QP)
    ranks_Q, tops_Q = retrieval.own_ranks(iter(blocks))
    at_least_as_high = [int((row >= row[i] - 1e-12).sum()) for i, row in enumerate(scores_QP)]
    assert ranks_Q.tolist() == at_least_as_high
    assert ranks_Q[2] > 1  # the tie
    scores_QP[:, 7] = -2  # of the two alike, either may be the top
    assert np.where(tops_Q == 7, 2, tops_Q).tolist() == scores_QP.argmax(1).tolist()


def test_zero_vectors_have_cosine_zero() -> None:
    [(_, scores_QP)] = retrieval.cosine_blocks(np.array([[0.0, 0.0], [3.0, 4.0]]), np.eye(2))
    assert scores_QP.tolist() == [[0, 0], [0.6, 0.8]]


def test_tfidf_retrieval_in_blocks_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    passages = ["apple banana", "banana cherry", "cherry cherry date", "date apple"]
    [(_, whole_QP)] = retrieval.tfidf_retrieval(passages[::-1], passages)
    monkeypatch.setattr(retrieval, "BLOCK", 12)
    blocks = list(retrieval.tfidf_retrieval(passages[::-1], passages))
    assert [(rows.start, rows.stop) for rows, _ in blocks] == [(0, 3), (3, 4)]
    assert np.concatenate([scores for _, scores in blocks]).tolist() == whole_QP.tolist()


def test_tfidf_retrieval_equals_the_formula() -> None:
    passages = ["apple apple banana", "banana cherry", "cherry cherry date"]
    [(rows, scores_QP)] = retrieval.tfidf_retrieval(["apple cherry", "nothing known"], passages)
    words = ["apple", "banana", "cherry", "date"]
    count = np.array([[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 2, 1]])
    # scikit-learn's documented weights: (1 + log tf) * (log((1 + n) / (1 + df)) + 1), unit length
    idf = np.log(4 / (1 + (count > 0).sum(0))) + 1

    def unit(counts: np.ndarray) -> np.ndarray:
        weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
        return weights / np.linalg.norm(weights, axis=-1, keepdims=True)

    query = unit(np.array([float(word in {"apple", "cherry"}) for word in words]))
    assert (rows, scores_QP.shape) == (slice(0, 2), (2, 3))
    np.testing.assert_allclose(scores_QP[0], unit(count) @ query, rtol=1e-12)
    assert scores_QP[1].tolist() == [0, 0, 0]


def test_similarity_correlation_equals_scipy_on_torch_cosines() -> None:
    generator = np.random.default_rng(0)
    a_ND = generator.normal(size=(7, 5)).astype(np.float32)
    b_ND = a_ND[:, :3] + generator.normal(size=(7, 3))
    cosines = [
        torch.cosine_similarity(x[:, None], x[None], dim=-1).numpy()
        for x in (torch.from_numpy(a_ND).double(), torch.from_numpy(b_ND))
    ]
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    a, b = ([c[i, j] for i, j in pairs] for c in cosines)
    assert retrieval.similarity_correlation(a_ND, b_ND) == pytest.approx(pearsonr(a, b).statistic)


@pytest.mark.parametrize("block", [1, 85, 97 * 11, 97 * 97])
def test_similarity_correlation_in_blocks_is_that_of_whole_matrices(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    generator = np.random.default_rng(4)
    # off centre, as real embeddings are: nearly all similarities are alike
    a_ND = (generator.normal(size=(97, 12)) + 5).astype(np.float32)
    b_ND = (a_ND[:, :9] + generator.normal(size=(97, 9))).astype(np.float32)
    upper = np.triu_indices(97, k=1)
    similarities = []
    for vectors_ND in (a_ND.astype(np.float64), b_ND.astype(np.float64)):
        unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        similarities.append((unit_ND @ unit_ND.T)[upper])
    expected = np.corrcoef(*similarities)[0, 1]
    assert retrieval.similarity_correlation(a_ND, b_ND) == pytest.approx(expected, rel=1e-11)


def test_similarity_correlation_does_not_hold_a_matrix_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 20_000)
    a_ND = np.random.default_rng(0).normal(size=(1500, 4))
    assert peak_bytes(lambda: retrieval.similarity_correlation(a_ND, a_ND)) < 1500**2


def test_tfidf_retrieval_does_not_hold_a_matrix_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 20_000)
    texts = [f"word{i} both" for i in range(1500)]
    assert (
        peak_bytes(lambda: retrieval.own_ranks(retrieval.tfidf_retrieval(texts, texts))) < 1500**2
    )


def test_similarity_correlation_sees_relations_not_coordinates() -> None:
    generator = np.random.default_rng(0)
    a_ND = generator.normal(size=(20, 6))
    rotation, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    scale_N1 = generator.uniform(0.1, 9, size=(20, 1))
    assert retrieval.similarity_correlation(a_ND, a_ND @ rotation * scale_N1) == pytest.approx(1)
    other_ND = generator.normal(size=(20, 6))
    assert abs(retrieval.similarity_correlation(a_ND, other_ND)) < 0.5


@pytest.mark.parametrize("collapsed", [np.ones((5, 3)), np.zeros((5, 3))])
def test_similarity_correlation_of_a_collapsed_space_is_zero(collapsed: np.ndarray) -> None:
    a_ND = np.random.default_rng(0).normal(size=(5, 3))
    assert retrieval.similarity_correlation(a_ND, collapsed) == 0
    assert retrieval.similarity_correlation(collapsed, a_ND) == 0


# --- probes ---------------------------------------------------------------------------------------


def clusters(spread: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels_N = np.array(["sport", "tech", "art"] * 10)
    centres = {"sport": (0, 9), "tech": (9, 0), "art": (-9, -9)}
    features_ND = np.array([centres[label] for label in labels_N], dtype=float)
    return features_ND + spread * generator.normal(size=features_ND.shape), labels_N


def test_probe_separates_clusters_and_not_noise() -> None:
    features_ND, labels_N = clusters(spread=0.5)
    correct_N = retrieval.probe_correct(features_ND, labels_N, seed=0)
    assert correct_N.dtype == bool
    assert correct_N.all()
    noise_ND = np.random.default_rng(1).normal(size=features_ND.shape)
    assert retrieval.probe_correct(noise_ND, labels_N, seed=0).mean() < 0.7


def test_probe_equals_a_loop_over_its_folds() -> None:
    features_ND, labels_N = clusters(spread=8.0)
    correct_N = retrieval.probe_correct(features_ND, labels_N, seed=3)
    again_N = retrieval.probe_correct(features_ND, labels_N, seed=3)
    assert (correct_N == again_N).all()

    expected_N = np.zeros(30, dtype=bool)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=3).split(
        features_ND, labels_N
    ):
        mean, deviation = features_ND[train].mean(0), features_ND[train].std(0)
        model = LogisticRegression(max_iter=1000)
        model.fit((features_ND[train] - mean) / deviation, labels_N[train])
        expected_N[test] = model.predict((features_ND[test] - mean) / deviation) == labels_N[test]
    assert (correct_N == expected_N).all()
    assert 0 < correct_N.sum() < 30  # else the comparison would say little


def test_tfidf_probe_fits_inside_the_folds() -> None:
    topics = {"sport": "ball goal match", "tech": "chip code data"}
    texts = [f"{words} unique{i}" for i in range(10) for words in topics.values()]
    labels_N = np.array(list(topics) * 10)
    assert retrieval.tfidf_probe(texts, labels_N, seed=0).all()

    # each text's only word occurs nowhere else, so whatever is held out is unknown to an honest
    # probe: it can but guess one label for a whole fold, right for half of it
    alone = [f"word{i}" for i in range(20)]
    assert retrieval.tfidf_probe(alone, labels_N, seed=0).sum() == 10


@pytest.mark.parametrize("labels", ["aaaaaabbc", "aaaabbbbb", "aaaaaaabb"])
def test_probe_accepts_rare_labels_in_silence(labels: str) -> None:
    features_ND = np.random.default_rng(0).normal(size=(9, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(retrieval.probe_correct(features_ND, np.array(list(labels)), seed=0)) == 9


@pytest.mark.parametrize("labels", ["aaaaaaaaa", "aaaaaaaab", "aaaabbbb", "abcdefghi"])
def test_probe_refuses_too_few_of_a_label(labels: str) -> None:
    features_ND = np.random.default_rng(0).normal(size=(len(labels), 2))
    with pytest.raises(ValueError, match="in 5 folds needs 5 records of one label and 2"):
        retrieval.probe_correct(features_ND, np.array(list(labels)), seed=0)


# --- distributions --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", metrics.TEMPERATURES)
def test_softmax_equals_torch(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5)) * 100
    expected = torch.softmax(torch.from_numpy(logits) / temperature, dim=-1).numpy()
    np.testing.assert_allclose(metrics.softmax(logits, temperature), expected, rtol=1e-12)


def test_softmax_by_hand() -> None:
    # at T = 2, logits 2 ln 3 and 0 are as 3 to 1
    np.testing.assert_allclose(metrics.softmax([2 * np.log(3), 0.0], 2.0), [0.75, 0.25])
