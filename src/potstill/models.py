"""Opening and saving model folders, and asking a model for its signals."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from potstill.families import Family, family_of, is_lm_head, lm_features, lm_readout
from potstill.files import resolve_path
from potstill.recipe import Task
from potstill.signals import Readout, Signals

Pooling = Literal["mean", "cls", "max"]
MODULES = "modules.json"
# A logit that no softmax gives weight to, yet finite: 0 * it is 0 in the divergence.
EXCLUDED = -1e4


@dataclass(frozen=True)
class SentenceModules:
    """What turns token vectors into a sentence embedding: sentence-transformers' modules after the
    encoder.
    """

    pooling: Pooling
    normalize: bool
    max_length: int
    # modules.json and the files of the modules, by relative path, kept as they came
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model folder in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    task: Task
    name: str  # how messages call it
    sentence: SentenceModules | None = None

    @property
    def max_length(self) -> int:
        """The longest input in tokens, special tokens included."""
        positions = self.model.config.max_position_embeddings
        return min(positions, self.sentence.max_length) if self.sentence else int(positions)


class UntrainedHead(ValueError):
    """A checkpoint without a trained masked-LM head."""


def load_model(
    spec: str | os.PathLike[str],
    task: Task,
    *,
    revision: str | None = None,
    untrained_head: bool = False,
    weights: bool = True,
) -> LoadedModel:
    """Open a model: a folder, `package:NAME/...`, or org/name on the hub (a path that exists is
    local).

    Weights are read from safetensors alone, in float32; no remote code runs.

    Args:
        untrained_head: accept a checkpoint that has no trained masked-LM head.
        weights: False leaves the parameters on the meta device: shapes and checks without the
            memory.

    Raises:
        ValueError: no such model, no encoder, no safetensors weights, no fast tokenizer, or a
            sentence
            encoder whose modules Potstill does not know.
        UntrainedHead: task masked_lm and the checkpoint holds no masked-LM head.
    """
    name = os.fspath(spec)
    path = _place(name)
    with _quiet(), _one_sentence(name):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    family = family_of(config, name)
    kwargs: dict[str, Any] = (
        {} if task == "masked_lm" or not family.has_pooler else {"add_pooling_layer": False}
    )
    if not weights:
        kwargs["device_map"] = "meta"
    auto: Any = AutoModelForMaskedLM if task == "masked_lm" else AutoModel
    with _quiet(), _one_sentence(name):
        model, info = auto.from_pretrained(
            path,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _check_loaded names them
            **kwargs,
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False, model_input_names=_inputs(family)
        )
    _check_loaded(name, config, info, untrained_head)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{name}: Potstill needs a fast tokenizer (tokenizer.json), this one has none"
        )
    _check_vocabulary(name, tokenizer, int(config.vocab_size))
    sentence = None
    if task == "sentence_embedding":
        sentence = _sentence_modules(
            path,
            revision,
            name,
            int(config.max_position_embeddings),
            int(config.hidden_size),
            # where sentence-transformers 6 writes the limit; older ones say max_seq_length
            int(tokenizer.model_max_length),
        )
    return LoadedModel(model.eval(), tokenizer, task, name, sentence)


def task_of(folder: Path) -> Task:
    """The task that a model folder serves: sentence_embedding where modules.json is, else by its
    class.

    Raises:
        ValueError: a folder without a model, or a model with neither.
    """
    if (folder / MODULES).is_file():
        return "sentence_embedding"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{folder}: no model folder (it has no readable config.json)") from None
    if any(str(name).endswith("ForMaskedLM") for name in config.get("architectures") or []):
        return "masked_lm"
    raise ValueError(f"{folder}: neither a masked-LM model nor a sentence encoder (no {MODULES})")


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write a folder that plain transformers, and sentence-transformers for an encoder, load."""
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    for relative, text in loaded.sentence.files if loaded.sentence else ():
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def with_model(loaded: LoadedModel, model: PreTrainedModel, name: str) -> LoadedModel:
    """The same tokenizer and sentence modules around another model; with its inputs."""
    inputs = _inputs(family_of(model.config, name))
    tokenizer: Any = loaded.tokenizer
    if list(tokenizer.model_input_names) != inputs:
        # Setting the attribute is not saved; passing it to from_pretrained is.
        with tempfile.TemporaryDirectory() as folder, _quiet():
            tokenizer.save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, model_input_names=inputs)
    return replace(loaded, model=model, tokenizer=tokenizer, name=name)


# --- signals --------------------------------------------------------------------------------------


def masked_lm_signals(
    model: PreTrainedModel, input_ids_BL: Tensor, attention_mask_BL: Tensor, rows_BL: Tensor
) -> Signals:
    """Hidden states, and a distribution over the vocabulary at each of `rows_BL` (bool)."""
    hidden_BLD = model.base_model(
        input_ids=input_ids_BL, attention_mask=attention_mask_BL
    ).last_hidden_state
    return Signals(hidden_BLD, lm_features(model, hidden_BLD[rows_BL]), lm_readout(model))


def embedding_signals(
    model: PreTrainedModel,
    pooling: Pooling,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    *,
    scale: float,
    group: int,
) -> Signals:
    """Hidden states, and each text's distribution over the other texts of its group of `group`
    texts.

    Logits are scale * cosine similarity of the pooled embeddings; the text itself is left out.
    """
    hidden_BLD = model.base_model(
        input_ids=input_ids_BL, attention_mask=attention_mask_BL
    ).last_hidden_state
    unit_BD = F.normalize(pool(hidden_BLD.float(), attention_mask_BL, pooling), dim=-1)
    number_B = torch.arange(len(unit_BD), device=unit_BD.device)
    same_BB = number_B[:, None] // group == number_B // group
    same_BB &= number_B[:, None] != number_B
    excluded_BB = torch.where(same_BB, 0.0, EXCLUDED).to(unit_BD.dtype)
    return Signals(hidden_BLD, unit_BD, Readout(unit_BD * scale, excluded_BB))


def pool(hidden_BLD: Tensor, attention_mask_BL: Tensor, pooling: Pooling) -> Tensor:
    """Sentence vectors [B x D] from token vectors: mean or maximum over real tokens, or the first
    token.
    """
    if pooling == "cls":
        return hidden_BLD[:, 0]
    mask_BL1 = attention_mask_BL.bool().unsqueeze(-1)
    if pooling == "max":
        return hidden_BLD.masked_fill(~mask_BL1, float("-inf")).amax(1)
    return (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)


# --- details --------------------------------------------------------------------------------------


def _inputs(family: Family) -> list[str]:
    types = ["token_type_ids"] if family.takes_token_types else []
    return ["input_ids", *types, "attention_mask"]


def _place(name: str) -> str:
    """A local path where there is one, else the name itself for the hub."""
    if name.startswith("package:"):
        return str(resolve_path(name))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ValueError(
            f"{name} is a file; a model is a folder with config.json and model.safetensors"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"{name}: no such model folder")
    return name


def _check_loaded(name: str, config: Any, info: dict[str, Any], untrained_head: bool) -> None:
    missing = sorted(info["missing_keys"])
    head = [key for key in missing if is_lm_head(key, config)]
    if head and not untrained_head:
        raise UntrainedHead(
            f"{name} holds no trained masked-LM head (missing: {head[0]}); "
            "make one with a finetune stage of task masked_lm before distilling from it"
        )
    body = [key for key in missing if key not in head]
    if body:
        raise ValueError(
            f"{name}: {len(body)} weights are missing from the checkpoint, {body[0]} among them"
        )
    if info["mismatched_keys"]:
        raise ValueError(
            f"{name}: {sorted(info['mismatched_keys'])[0][0]} has another shape than config.json "
            "says"
        )


def _check_vocabulary(name: str, tokenizer: Any, size: int) -> None:
    """transformers makes a tokenizer that knows no word where a folder holds none."""
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= {"", *tokenizer.all_special_tokens}:
        raise ValueError(f"{name}: there is no tokenizer (no tokenizer.json or vocab.txt)")
    if max(vocabulary.values()) >= size:
        raise ValueError(
            f"{name}: the tokenizer has {max(vocabulary.values()) + 1} tokens, but the model only "
            f"{size}: they don't belong together"
        )


def _sentence_modules(
    path: str, revision: str | None, name: str, positions: int, width: int, limit: int
) -> SentenceModules:
    """Read modules.json and what it names; a plain encoder gets mean pooling and normalisation."""
    modules = _json_of(path, MODULES, revision)
    if modules is None:
        return _default_modules(positions, width)
    files = {MODULES: json.dumps(modules, indent=2)}
    pooling: Pooling | None = None
    normalize = False
    for module in modules:
        kind, where = module["type"].rsplit(".", 1)[-1], module.get("path", "")
        config = _json_of(path, f"{where}/config.json", revision) if where else None
        if config is not None:
            files[f"{where}/config.json"] = json.dumps(config, indent=2)
        match kind:
            case "Transformer":
                pass
            case "Pooling":
                pooling = _pooling(config or {}, name)
            case "Normalize":
                normalize = True
            case _:
                raise ValueError(
                    f"{name}: {MODULES} has a {kind} module, which Potstill can't carry over"
                )
    if pooling is None:
        raise ValueError(f"{name}: {MODULES} has no Pooling module")
    for extra in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        config = _json_of(path, extra, revision)
        if config is not None:
            files[extra] = json.dumps(config, indent=2)
            limit = int(config.get("max_seq_length") or limit)
    return SentenceModules(pooling, normalize, min(limit, positions), tuple(files.items()))


def _default_modules(positions: int, width: int) -> SentenceModules:
    types = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{types}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{types}Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{types}Normalize"},
    ]
    files = {
        MODULES: json.dumps(modules, indent=2),
        "1_Pooling/config.json": json.dumps(
            {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
        ),
        "sentence_bert_config.json": json.dumps(
            {"max_seq_length": positions, "do_lower_case": False}
        ),
    }
    return SentenceModules("mean", True, positions, tuple(files.items()))


_OLD_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def _pooling(config: dict[str, Any], name: str) -> Pooling:
    """The pooling of 1_Pooling/config.json, in the flags of sentence-transformers up to 5 or the
    word of 6.
    """
    modes = [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value is True
    ]
    word = config.get("pooling_mode")
    found = [_OLD_POOLING.get(mode) for mode in modes] or [word]
    if len(found) == 1 and found[0] in ("mean", "cls", "max"):
        return found[0]
    raise ValueError(f"{name}: pooling {', '.join(modes) or word} is not one of mean, cls, max")


def _json_of(path: str, relative: str, revision: str | None) -> Any:
    """A JSON file of a local folder or a hub repository; None where there is none."""
    from transformers.utils.hub import cached_file

    with _quiet():
        found = cached_file(
            path, relative, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    return json.loads(Path(found).read_text(encoding="utf-8")) if found else None


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers prints load reports and bars that say nothing our own checks don't."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn the loaders' errors into one sentence that names the model."""
    try:
        yield
    except (OSError, HFValidationError, SafetensorError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, SafetensorError):
            first = f"its safetensors file is damaged ({first})"
        elif "couldn't connect" in first:
            first = "it is no folder here, and the hub can't be reached or is switched off"
        elif "safetensors" in str(error):
            first = "it has no model.safetensors (pickled .bin weights are not read)"
        raise ValueError(f"{name}: the model can't be loaded: {first}") from None
