"""Open, check and save model folders."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from potstill.errors import NotFinite
from potstill.models.config import has_head, is_unnamed, label_names
from potstill.models.families import Family, family_of, is_task_head, last_linear
from potstill.models.finite import not_finite, refuse_not_finite, some_not_finite
from potstill.models.hub import Repository, one_sentence, quiet
from potstill.models.onnx_models import OnnxModel
from potstill.models.sentence_modules import SentenceModules, resized, sentence_modules
from potstill.recipe import ENDINGS, Task
from potstill.storage.files import write_text, writing
from potstill.storage.model_folders import check_folder
from potstill.storage.onnx_files import graph_files, is_onnx, not_finite_in, read_graph


@dataclass(frozen=True)
class LoadedModel:
    """Hold a model folder in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    task: Task
    name: str  # in messages
    sentence: SentenceModules | None = None
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", family_of(self.model.config, self.name))

    @property
    def inputs(self) -> list[str]:
        """Name the model's inputs."""
        return self.family.inputs(self.model.config)

    @property
    def positions(self) -> int:
        """Return the model's maximum sequence length in tokens, special tokens included."""
        return self.family.position_limit(self.model.config)

    @property
    def max_length(self) -> int:
        """Return the longest input in tokens, which a sentence encoder may limit further."""
        return min(self.positions, self.sentence.max_length) if self.sentence else self.positions


class UntrainedHead(ValueError):
    """A checkpoint lacks a trained head for the task."""


def load_model(
    spec: str | os.PathLike[str],
    task: Task | str,
    *,
    revision: str | None = None,
    untrained_head: bool = False,
    weights: bool = True,
    labels: Sequence[str] | None = None,
) -> LoadedModel:
    """Open a model: a folder, `package:NAME/...`, org/name on the hub, or FOLDER/onnx/NAME.onnx.

    A path that exists is local. Weights are read from safetensors alone, in float32; no remote code
    runs. An .onnx file answers through onnxruntime and cannot be trained.

    Args:
        spec: The model.
        task: What it is for.
        revision: Revision of a model on the hub; None: the newest one.
        untrained_head: Accept a checkpoint that has no trained head for the task; the head is
            initialized at random, from torch's own generator.
        weights: False leaves the parameters on the meta device: shapes and checks without the
            memory.
        labels: Names of the labels of a head that is not trained, or whose config has no names.

    Raises:
        ValueError: There is no such model, or it is no encoder, has no safetensors weights, no fast
            tokenizer, sentence-transformers modules that Potstill does not know, weights that are
            not finite, or a path that leads out of its folder.
        UntrainedHead: The task has a head and the checkpoint holds none.
    """
    name, task = os.fspath(spec), Task(task)
    if is_onnx(name):
        return _checked_graph(name, task)
    repository = Repository.of(name, revision)
    config = repository.config()
    family = family_of(config, name)
    auto, kwargs = _class_for(task, config, labels, name)
    if auto is AutoModel and family.has_pooler:
        kwargs["add_pooling_layer"] = False
    if not weights:
        kwargs["device_map"] = "meta"
    with quiet(), one_sentence(name):
        model, info = auto.from_pretrained(
            repository.path,
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
    loaded = _with_tokenizer(model.eval(), repository, task)
    if not Path(repository.path).is_dir():  # on the hub: all its files are in the cache by now
        found = try_to_load_from_cache(repository.path, "config.json", revision=revision)
        if isinstance(found, str):
            check_folder(Path(found).parent)
    return loaded


def open_graph(name: str, task: Task) -> LoadedModel:
    """Open an .onnx file with the config and the tokenizer of its folder.

    NaN and infinities are accepted: the parity gate judges a graph that was just made.
    """
    path, repository = Path(name).expanduser(), Repository.of(name)
    check_folder(Path(repository.path), [part.absolute() for part in graph_files(path)])
    model = OnnxModel(repository.config(), path)
    torch.nn.Module.eval(model)
    wanted = "sentence_embedding" if task.is_encoder else "logits"
    if task.head == "spans":
        wanted = "start_logits"
    if wanted not in model.outputs:
        raise ValueError(
            f"{name} has the outputs {', '.join(model.outputs)}, and {task} needs {wanted}. Export "
            "the model again, or name another task."
        )
    return _with_tokenizer(model, repository, task)


def _with_tokenizer(model: PreTrainedModel, repository: Repository, task: Task) -> LoadedModel:
    config, name = model.config, repository.name
    family = family_of(config, name)
    tokenizer = _fast_tokenizer(repository, name, family.inputs(config))
    check_vocabulary(name, tokenizer, int(config.vocab_size))
    sentence = None
    if task.is_encoder:
        # where sentence-transformers 6 writes the limit; older ones have max_seq_length
        positions, limit = family.position_limit(config), int(tokenizer.model_max_length)
        sentence = sentence_modules(repository, positions, int(config.hidden_size), limit)
    return LoadedModel(model, tokenizer, task, name, sentence)


def _checked_graph(name: str, task: Task) -> LoadedModel:
    loaded, graph = open_graph(name, task), Path(name).expanduser()
    refuse_not_finite(name, not_finite_in(read_graph(graph).graph, graph.parent))
    return loaded


def _fast_tokenizer(repository: Repository, name: str, inputs: list[str]) -> Any:
    with quiet(), one_sentence(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            repository.path,
            revision=repository.revision,
            trust_remote_code=False,
            model_input_names=inputs,
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{name}: there is no fast tokenizer (tokenizer.json). Save one in the model folder."
        )
    return tokenizer


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write a folder that plain transformers, and sentence-transformers for an encoder, load.

    Raises:
        NotFinite: The model holds NaN or infinity; nothing is written.
        OSError: The disk is full, or the folder cannot be written.
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
        write_text(target, text)


def with_model(loaded: LoadedModel, model: PreTrainedModel, name: str) -> LoadedModel:
    """Put another model into the same tokenizer, with its inputs, and sentence modules."""
    sentence = loaded.sentence
    if sentence is not None:
        sentence = resized(sentence, int(model.config.hidden_size))
    made = replace(loaded, model=model, sentence=sentence, name=name)
    if list(made.tokenizer.model_input_names) == made.inputs:
        return made
    # Setting the attribute is not saved; passing it to from_pretrained is.
    with tempfile.TemporaryDirectory() as folder, quiet():
        made.tokenizer.save_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, model_input_names=made.inputs)
    return replace(made, tokenizer=tokenizer)


def _class_for(
    task: Task, config: Any, labels: Sequence[str] | None, name: str
) -> tuple[Any, dict[str, Any]]:
    """Return transformers' class for a task, and its arguments."""
    if task.head is None or task.head == "cosine":
        return (AutoModelForMaskedLM if task == Task.MASKED_LM else AutoModel), {}
    auto: Any = getattr(transformers, f"AutoModel{ENDINGS[task.head]}")
    arguments: dict[str, Any] = {}
    if type(config) not in auto._model_mapping:
        raise ValueError(
            f"{name}: transformers has no class of the family {config.model_type} for {task}. Use "
            "a teacher of another family."
        )
    unnamed = is_unnamed(label_names(config))
    if labels is not None and (unnamed or not has_head(config, task.head)):
        arguments["id2label"] = dict(enumerate(labels))
        arguments["label2id"] = {label: number for number, label in enumerate(labels)}
    if task.problem_type is not None:
        arguments["problem_type"] = task.problem_type
    return auto, arguments


def _check_loaded(
    name: str, task: Task, model: Any, info: dict[str, Any], untrained_head: bool
) -> None:
    config = model.config
    missing = sorted(info["missing_keys"])
    mismatched = sorted(key for key, *_ in info["mismatched_keys"])
    if task.head is None or task.head == "cosine":
        what = "masked-LM head"
        head = [key for key in missing if key.startswith(family_of(config, name).lm_head)]
    else:
        what = f"{task} head"
        head = [key for key in (*missing, *mismatched) if is_task_head(key, model)]
        if head and not any(key.startswith(_last_name(model)) for key in head):
            head = []  # a pooler alone that is missing is no new head: something is wrong
        mismatched = [key for key in mismatched if key not in head]
    if head and not untrained_head:
        raise UntrainedHead(
            f"{name} holds no trained {what} (missing: {head[0]}). Train one with a finetune stage "
            f"of task {task} before distilling from it."
        )
    body = [key for key in missing if key not in head]
    if body:
        raise ValueError(
            f"{name}: {len(body)} weights are missing from the checkpoint, such as {body[0]}. Save "
            "the model again, or use the config of this checkpoint."
        )
    unread = info["unexpected_keys"]
    left = [key for key in unread if _layer_of(key) >= config.num_hidden_layers]
    if left:
        raise ValueError(
            f"{name}: config.json lists {config.num_hidden_layers} layers, but the checkpoint has "
            f"weights of layer {_layer_of(left[0])} (counted from 0). Use the config of this "
            "checkpoint."
        )
    # transformers 5 reads a BERT of relative positions as one of absolute ones, without a word;
    # buffers are computed anyway
    other = [
        key
        for key in unread
        if _layer_of(key) >= 0 and not key.endswith((".inv_freq", ".position_ids"))
    ]
    if other:
        raise ValueError(
            f"{name}: transformers has no place for {min(other)} of the checkpoint, so the model "
            "would differ from the trained one. Use a model of the plain architecture."
        )
    if mismatched:
        raise ValueError(
            f"{name}: {mismatched[0]} has another shape than config.json gives. Use the config of "
            "this checkpoint."
        )


def _last_name(model: Any) -> str:
    last = last_linear(model)
    return next(str(name) for name, module in model.named_modules() if module is last)


def _layer_of(key: str) -> int:
    """Return the number in a weight's name that counts layers; -1 without one."""
    found = re.search(r"\.layers?\.(\d+)\.", f".{key}")
    return int(found[1]) if found else -1


def check_vocabulary(name: str, tokenizer: Any, size: int) -> None:
    """Refuse a tokenizer of another model, or the empty one that transformers makes from nothing.

    Args:
        name: Names the model in messages.
        tokenizer: The tokenizer.
        size: The model's vocabulary size.

    Raises:
        ValueError: It is one of them.
    """
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= {"", *tokenizer.all_special_tokens}:
        raise ValueError(
            f"{name}: there is no tokenizer (no tokenizer.json or vocab.txt). Save one in the "
            "model folder."
        )
    if max(vocabulary.values()) >= size:
        raise ValueError(
            f"{name}: the tokenizer has {max(vocabulary.values()) + 1} tokens, but the model only "
            f"{size}. Use the tokenizer of this model."
        )
