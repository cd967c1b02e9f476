"""Model folders: what is opened, what is refused, and that others read what we write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import sentences
from potstill.models import UntrainedHead, load_model, pool, save_model, with_model
from potstill.runtime import predict
from potstill.students import make_student

# sentence-transformers, in a process that has no Potstill
ELSEWHERE = """
import sys
sys.modules["potstill"] = None
import numpy
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
folder, out = sys.argv[1], sys.argv[3]
texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
numpy.save(out, SentenceTransformer(folder, device="cpu").encode(texts))
assert type(AutoModel.from_pretrained(folder)).__name__ == "DistilBertModel"
assert "token_type_ids" not in AutoTokenizer.from_pretrained(folder)("copper pot")
"""


def test_sentence_transformers_gives_the_vectors_of_predict(
    sentence_teacher: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers", reason="it is in the test extra")
    teacher = load_model(sentence_teacher, "sentence_embedding")
    folder = tmp_path / "student"
    save_model(with_model(teacher, make_student(teacher.model), "student"), folder)
    texts = [*sentences(7, seed=4), "heart", " ".join(sentences(9, seed=5))]  # the last is cut
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    arguments = [str(folder), str(tmp_path / "texts.txt"), str(tmp_path / "out.npy")]
    command = [sys.executable, "-c", ELSEWHERE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = predict(folder, texts, "sentence_embedding")
    np.testing.assert_allclose(found, np.load(tmp_path / "out.npy"), atol=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


def test_an_untrained_head_is_refused_and_finetune_named(sentence_teacher: Path) -> None:
    with pytest.raises(UntrainedHead, match="finetune stage of task masked_lm"):
        load_model(sentence_teacher, "masked_lm")
    loaded = load_model(sentence_teacher, "masked_lm", untrained_head=True)
    assert type(loaded.model).__name__ == "BertForMaskedLM"


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_over_real_tokens(pooling: str) -> None:
    hidden = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    expected = []
    for row, length in ((0, 3), (1, 1)):
        real = hidden[row, :length]
        by_name = {"mean": real.sum(0) / length, "cls": real[0], "max": real.max(0).values}
        expected.append(by_name[pooling])
    torch.testing.assert_close(pool(hidden, mask, pooling), torch.stack(expected))
