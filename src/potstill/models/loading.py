"""Opening and saving model folders, and asking a model for its signals."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from potstill.errors import NotFinite
from potstill.models.config import has_head, inputs_of, is_unnamed, load_config, place_of
from potstill.models.families import (
    Family,
    family_of,
    is_lm_head,
    is_task_head,
    last_linear,
    position_limit,
)
from potstill.models.finite import not_finite, refuse_not_finite, some_not_finite
from potstill.models.hub import one_sentence, quiet
from potstill.models.onnx_models import OnnxModel
from potstill.models.sentence_modules import SentenceModules, resized, sentence_modules
from potstill.recipe import Head, Task
from potstill.storage.files import writing
from potstill.storage.model_folders import check_folder
from potstill.storage.onnx_files import folder_of, graph_files, is_onnx, not_finite_in, read_graph


@dataclass(frozen=True)
class LoadedModel:
    """A model folder in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    task: Task
    name: str  # how messages call it
    sentence: SentenceModules | None = None
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", family_of(self.model.config, self.name))

    @property
    def max_length(self) -> int:
        """The longest input in tokens, special tokens included."""
        positions = position_limit(self.model.config)
        return min(positions, self.sentence.max_length) if self.sentence else positions


class UntrainedHead(ValueError):
    """A checkpoint without a trained head for the task."""


def load_model(
    spec: str | os.PathLike[str],
    task: Task | str,
    *,
    revision: str | None = None,
    untrained_head: bool = False,
    weights: bool = True,
    labels: Sequence[str] | None = None,
) -> LoadedModel:
    """Open a model: a folder, `package:NAME/...`, or org/name on the hub (a path that exists is
    local); or FOLDER/onnx/NAME.onnx, which answers through onnxruntime and can't be trained.

    Weights are read from safetensors alone, in float32; no remote code runs.

    Args:
        untrained_head: accept a checkpoint that has no trained head for the task; it is initialised
            at random, from torch's own generator.
        labels: names of the labels of a head that isn't trained, or whose config has no names.
        weights: False leaves the parameters on the meta device: shapes and checks without the
            memory.

    Raises:
        ValueError: no such model, no encoder, no safetensors weights, no fast tokenizer, a
            sentence encoder whose modules Potstill does not know, weights that are not finite, or
            a folder that leads out of itself.
        UntrainedHead: the task has a head and the checkpoint holds none.
    """
    name, task = os.fspath(spec), Task(task)
    if is_onnx(name):
        loaded = open_graph(name, task)
        graph = Path(name).expanduser()
        refuse_not_finite(name, not_finite_in(read_graph(graph).graph, graph.parent))
        return loaded
    path = place_of(name)
    config = load_config(name, revision)
    family = family_of(config, name)
    auto, kwargs = _class_for(task, config, labels, name)
    if auto is AutoModel and family.has_pooler:
        kwargs["add_pooling_layer"] = False
    if not weights:
        kwargs["device_map"] = "meta"
    with quiet(), one_sentence(name):
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
    _check_loaded(name, task, model, info, untrained_head)
    refuse_not_finite(name, not_finite(model.state_dict()))
    loaded = _with_tokenizer(model.eval(), path, revision, task, name)
    if not Path(path).is_dir():
        _check_cached(path, revision)
    return loaded


def _check_cached(name: str, revision: str | None) -> None:
    """`check_folder` of what a model of the hub was read from, once all its files are there."""
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(found, str):
        check_folder(Path(found).parent)


def open_graph(name: str, task: Task) -> LoadedModel:
    """`load_model` of an .onnx file, with the config and the tokenizer of the folder that it is in,
    whatever its numbers are: parity judges what those of a graph that was just made give.
    """
    path = Path(name).expanduser()
    folder = os.fspath(folder_of(path))
    check_folder(Path(folder), [part.absolute() for part in graph_files(path)])
    model = OnnxModel(load_config(folder), path)
    torch.nn.Module.eval(model)
    wanted = "sentence_embedding" if task.is_encoder else "logits"
    if task.head == "spans":
        wanted = "start_logits"
    if wanted not in model.outputs:
        raise ValueError(
            f"{name} gives {', '.join(model.outputs)}, and {task} needs {wanted}: export the model "
            "again, or name another task's"
        )
    return _with_tokenizer(model, folder, None, task, name)


def _with_tokenizer(
    model: PreTrainedModel, path: str, revision: str | None, task: Task, name: str
) -> LoadedModel:
    config = model.config
    with quiet(), one_sentence(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False, model_input_names=inputs_of(config)
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{name}: Potstill needs a fast tokenizer (tokenizer.json), this one has none"
        )
    check_vocabulary(name, tokenizer, int(config.vocab_size))
    sentence = None
    if task.is_encoder:
        sentence = sentence_modules(
            path,
            revision,
            name,
            position_limit(config),
            int(config.hidden_size),
            # where sentence-transformers 6 writes the limit; older ones say max_seq_length
            int(tokenizer.model_max_length),
        )
    return LoadedModel(model, tokenizer, task, name, sentence)


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write a folder that plain transformers, and sentence-transformers for an encoder, load.

    Raises:
        NotFinite: the model holds NaN or infinity; nothing is written.
        OSError: the disk is full, or the folder can't be written.
    """
    names = not_finite(loaded.model.state_dict())
    if names:
        raise NotFinite(f"{loaded.name}: {some_not_finite(names)}, so nothing is written")
    folder.mkdir(parents=True, exist_ok=True)
    with quiet(), writing(folder):
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    for relative, text in loaded.sentence.files if loaded.sentence else ():
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def with_model(loaded: LoadedModel, model: PreTrainedModel, name: str) -> LoadedModel:
    """The same tokenizer and sentence modules around another model; with its inputs."""
    inputs = inputs_of(model.config)
    tokenizer: Any = loaded.tokenizer
    if list(tokenizer.model_input_names) != inputs:
        # Setting the attribute is not saved; passing it to from_pretrained is.
        with tempfile.TemporaryDirectory() as folder, quiet():
            tokenizer.save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, model_input_names=inputs)
    sentence = loaded.sentence
    if sentence is not None:
        sentence = resized(sentence, int(model.config.hidden_size))
    return replace(loaded, model=model, tokenizer=tokenizer, sentence=sentence, name=name)


def _class_for(
    task: Task, config: Any, labels: Sequence[str] | None, name: str
) -> tuple[Any, dict[str, Any]]:
    """transformers' class for a task, and what it is told."""
    if task.head is None or task.head == "cosine":
        return (AutoModelForMaskedLM if task == Task.MASKED_LM else AutoModel), {}
    autos: dict[Head, Any] = {
        "sequence": AutoModelForSequenceClassification,
        "tokens": AutoModelForTokenClassification,
        "spans": AutoModelForQuestionAnswering,
    }
    auto, told = autos[task.head], dict[str, Any]()
    if type(config) not in auto._model_mapping:
        raise ValueError(
            f"{name}: transformers has no class of the family {config.model_type} for "
            f"{task}: take a teacher of another family"
        )
    if labels is not None and (is_unnamed(config) or not has_head(config, task.head)):
        told["id2label"] = dict(enumerate(labels))
        told["label2id"] = {label: number for number, label in enumerate(labels)}
    if task.problem_type is not None:
        told["problem_type"] = task.problem_type
    return auto, told


def _check_loaded(
    name: str, task: Task, model: Any, info: dict[str, Any], untrained_head: bool
) -> None:
    config = model.config
    missing = sorted(info["missing_keys"])
    mismatched = sorted(key for key, *_ in info["mismatched_keys"])
    if task.head is None or task.head == "cosine":
        head = [key for key in missing if is_lm_head(key, config)]
        what = "masked-LM head"
    else:
        mismatched_head = [key for key in mismatched if is_task_head(key, model)]
        head = [*(key for key in missing if is_task_head(key, model)), *mismatched_head]
        if head and not any(key.startswith(_last_name(model)) for key in head):
            head = []  # a pooler alone that is missing is no new head: something is wrong
        what = f"{task} head"
        mismatched = [key for key in mismatched if key not in head]
    if head and not untrained_head:
        raise UntrainedHead(
            f"{name} holds no trained {what} (missing: {head[0]}); "
            f"make one with a finetune stage of task {task} before distilling from it"
        )
    body = [key for key in missing if key not in head]
    if body:
        raise ValueError(
            f"{name}: {len(body)} weights are missing from the checkpoint, {body[0]} among them"
        )
    left = [key for key in info["unexpected_keys"] if _layer_of(key) >= config.num_hidden_layers]
    if left:
        raise ValueError(
            f"{name}: config.json says {config.num_hidden_layers} layers, but the checkpoint has "
            f"weights of layer {_layer_of(left[0])} (counted from 0)"
        )
    # transformers 5 reads a BERT of relative positions as one of absolute ones, without a word
    other = [key for key in info["unexpected_keys"] if _is_unread_weight(key)]
    if other:
        raise ValueError(
            f"{name}: transformers has no place for {min(other)} of the checkpoint, so the model "
            "would be another one than was trained; take one of the plain architecture"
        )
    if mismatched:
        raise ValueError(f"{name}: {mismatched[0]} has another shape than config.json says")


def _last_name(model: Any) -> str:
    last = last_linear(model)
    return next(str(name) for name, module in model.named_modules() if module is last)


def _is_unread_weight(key: str) -> bool:
    """Whether it is a trained weight of a layer, and no buffer that is computed anyway."""
    return _layer_of(key) >= 0 and not key.endswith((".inv_freq", ".position_ids"))


def _layer_of(key: str) -> int:
    """The number in a weight's name that counts layers; -1 without one."""
    found = re.search(r"\.layers?\.(\d+)\.", f".{key}")
    return int(found[1]) if found else -1


def check_vocabulary(name: str, tokenizer: Any, size: int) -> None:
    """Refuse the tokenizer that knows no word, which transformers makes where a folder holds none,
    and one of another model.

    Raises:
        ValueError: one of them; `size` is the model's vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= {"", *tokenizer.all_special_tokens}:
        raise ValueError(f"{name}: there is no tokenizer (no tokenizer.json or vocab.txt)")
    if max(vocabulary.values()) >= size:
        raise ValueError(
            f"{name}: the tokenizer has {max(vocabulary.values()) + 1} tokens, but the model only "
            f"{size}: they don't belong together"
        )
