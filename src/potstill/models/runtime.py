"""One way to use a saved model, a folder's or an ONNX graph: texts in, predictions out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.models.loading import LoadedModel, load_model
from potstill.models.sentence_modules import pool
from potstill.recipe import Task


@dataclass(frozen=True)
class Filled:
    """Hold the most likely tokens at one mask, the likeliest first, with probabilities (T = 1)."""

    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]


class Runtime:
    """Use a model through PyTorch or onnxruntime, in evaluation mode, at T = 1."""

    def __init__(self, loaded: LoadedModel, device: torch.device | str = "cpu") -> None:
        self.loaded = loaded
        self.device = torch.device(device)
        torch.nn.Module.to(loaded.model, self.device)
        loaded.model.eval()

    @staticmethod
    def open(
        folder: str | os.PathLike[str], task: Task | str, device: torch.device | str = "cpu"
    ) -> Runtime:
        """Load a model folder or an .onnx file; raises as `models.load_model`."""
        return Runtime(load_model(folder, task), device)

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> np.ndarray:
        """Embed texts as float32 [N x D], pooled and normalized as the model folder or graph does.

        Args:
            texts: The texts.
            batch_size: Texts of one forward pass.
            max_length: Tokens; longer texts are truncated. None: the model's own limit.
            progress: Receives the number of texts done since the last call.
        """
        sentence = self.loaded.sentence
        assert sentence is not None
        result = np.zeros((len(texts), self.loaded.model.config.hidden_size), dtype=np.float32)
        for indices, output, mask_BL in self._outputs(texts, batch_size, max_length):
            vectors_BD = getattr(output, "sentence_embedding", None)
            if vectors_BD is None:
                vectors_BD = pool(output.last_hidden_state, mask_BL, sentence.pooling)
                if sentence.normalize:
                    vectors_BD = F.normalize(vectors_BD, dim=-1)
            result[indices] = vectors_BD.float().cpu().numpy()
            progress(len(indices))
        return result

    def hidden(
        self, texts: Sequence[str], batch_size: int = 32, max_length: int | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yield batches by length: indices, hidden states [B x L x D], attention mask [B x L]."""
        for indices, output, mask_BL in self._outputs(texts, batch_size, max_length):
            yield indices, output.last_hidden_state, mask_BL

    def _outputs(
        self, texts: Sequence[str], batch_size: int, max_length: int | None
    ) -> Iterator[tuple[np.ndarray, Any, Tensor]]:
        order = np.argsort([len(text) for text in texts], kind="stable")[::-1]
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            inputs = self.tokenize([texts[i] for i in indices], max_length)
            with torch.inference_mode():
                output = self.loaded.model.base_model(**inputs)
            yield indices, output, inputs["attention_mask"]

    def fill_mask(self, texts: Sequence[str], top: int = 5) -> list[list[Filled]]:
        """Return the most likely tokens at each mask of each text.

        Raises:
            ValueError: As `mask_logits`.
        """
        answers = []
        for text in texts:
            best = torch.softmax(self.mask_logits(text), -1).topk(top)
            found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            named = self.loaded.tokenizer.convert_ids_to_tokens
            answers.append([Filled(tuple(named(ids)), tuple(values)) for values, ids in found])
        return answers

    def mask_logits(self, text: str) -> Tensor:
        """Return logits over the vocabulary at each of a text's masks, in order: [K x V].

        Raises:
            ValueError: The text has no mask token, or only beyond the model's limit.
        """
        tokenizer = self.loaded.tokenizer
        inputs = self.tokenize([text], None)
        masked_L = inputs["input_ids"][0] == tokenizer.mask_token_id
        if not bool(masked_L.any()):
            mask = str(tokenizer.mask_token)
            if mask in text:
                raise ValueError(
                    f"the {mask} lies beyond the {self.loaded.max_length} tokens that the model "
                    "reads. Move it nearer to the beginning."
                )
            raise ValueError(
                f"{text[:60]!r} has no {mask} to fill. Put one where a word is missing."
            )
        with torch.inference_mode():
            logits_KV: Tensor = self.loaded.model(**inputs).logits[0, masked_L]
        return logits_KV

    def tokenize(self, texts: Sequence[str], max_length: int | None) -> dict[str, Any]:
        """Tokenize and pad texts for a forward pass."""
        limit = min(max_length or self.loaded.max_length, self.loaded.max_length)
        inputs = self.loaded.tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        return {name: value.to(self.device) for name, value in inputs.items()}
