"""sentence-transformers' modules: what turns an encoder's token vectors into sentence vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from potstill.models.hub import Repository
from potstill.storage.model_folders import MODULES, check_path

Pooling = Literal["mean", "cls", "max"]


@dataclass(frozen=True)
class SentenceModules:
    """Hold sentence-transformers' later modules, which make a sentence vector of token vectors."""

    pooling: Pooling
    normalize: bool
    max_length: int
    # modules.json and the files of the modules, by relative path, kept as they came
    files: tuple[tuple[str, str], ...]


def sentence_modules(
    repository: Repository, positions: int, width: int, limit: int
) -> SentenceModules:
    """Read modules.json and what it names; a plain encoder gets mean pooling and normalization.

    Args:
        repository: The model.
        positions: Its maximum sequence length.
        width: Its hidden size.
        limit: The tokenizer's maximum length, where no module lists another.
    """
    name, modules = repository.name, repository.json(MODULES)
    if modules is None:
        return _default_modules(positions, width)
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) for module in modules
    ):
        raise ValueError(
            f"{name}: {MODULES} is not a list of modules, each with a type. Save the model again."
        )
    files = {MODULES: modules}
    kinds: dict[str, Any] = {}
    for module in modules:
        kind, where = module["type"].rsplit(".", 1)[-1], module.get("path", "")
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ValueError(
                f"{name}: {MODULES} has a {kind} module, which Potstill cannot carry over. Use a "
                "model with Transformer, Pooling and Normalize modules only."
            )
        file = f"{check_path(name, MODULES, where)}/config.json" if where else ""
        kinds[kind] = repository.json(file) if where else None
        if kinds[kind] is not None:
            files[file] = kinds[kind]
    if kinds.get("Pooling") is None:
        raise ValueError(
            f"{name}: {MODULES} has no Pooling module with a config.json. Save the model again."
        )
    for file in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        config = repository.json(file)
        if config is not None:
            _check_obeyed(name, file, config)
            files[file] = config
            limit = int(config.get("max_seq_length") or limit)
    return SentenceModules(
        _pooling(kinds["Pooling"], name),
        "Normalize" in kinds,
        min(limit, positions),
        tuple((file, json.dumps(content, indent=2)) for file, content in files.items()),
    )


def resized(modules: SentenceModules, width: int) -> SentenceModules:
    """Return the same modules for hidden states of another width."""
    files = []
    for file, text in modules.files:
        content = json.loads(text)
        for key in ("embedding_dimension", "word_embedding_dimension"):  # since 6, and before
            if isinstance(content, dict) and content.get(key) not in (None, width):
                content[key] = width
                text = json.dumps(content, indent=2)
        files.append((file, text))
    return replace(modules, files=tuple(files))


def _check_obeyed(name: str, file: str, config: dict[str, Any]) -> None:
    """Refuse what changes a text before the tokenizer: vectors would silently be others."""
    for key in ("do_lower_case", "default_prompt_name"):
        if config.get(key):
            raise ValueError(
                f"{name}: {file} sets {key} to {config[key]!r}, which Potstill does not apply to "
                "texts. Remove it, and prepare the texts yourself."
            )


def _default_modules(positions: int, width: int) -> SentenceModules:
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, (kind, path) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    limits = {"max_seq_length": positions, "do_lower_case": False}
    files = (
        (MODULES, json.dumps(modules, indent=2)),
        ("1_Pooling/config.json", json.dumps(pooling)),
        ("sentence_bert_config.json", json.dumps(limits)),
    )
    return SentenceModules("mean", True, positions, files)


_OLD_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def _pooling(config: dict[str, Any], name: str) -> Pooling:
    """Read the pooling: flags up to sentence-transformers 5, since 6 a word."""
    modes = [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value is True
    ]
    word = config.get("pooling_mode")
    if isinstance(word, list) and len(word) == 1:
        word = word[0]
    found = [_OLD_POOLING.get(mode) for mode in modes] or [word]
    if len(found) == 1 and found[0] in ("mean", "cls", "max"):
        return found[0]
    raise ValueError(
        f"{name}: pooling {', '.join(modes) or word} is not supported. Use mean, cls or max."
    )


def pool(hidden_BLD: Tensor, attention_mask_BL: Tensor, pooling: Pooling) -> Tensor:
    """Pool into [B x D]: mean or maximum over real tokens, or the first token's vector."""
    if pooling == "cls":
        return hidden_BLD[:, 0]
    mask_BL1 = attention_mask_BL.bool().unsqueeze(-1)
    if pooling == "max":
        return hidden_BLD.masked_fill(~mask_BL1, float("-inf")).amax(1)
    return (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)
