"""Students made from a teacher's own layers: layer maps, and the surgery that applies them."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from potstill import families
from potstill.recipe import LayerRule

StudentFamily = Literal["bert", "distilbert"]


def layer_map(
    rule: LayerRule | Sequence[int], teacher_depth: int, depth: int | None = None
) -> list[int]:
    """Which teacher layer each student layer starts as.

    Args:
        rule: `alternate` spreads over the whole depth, ends included (of 12 the [0, 2, 4, 7, 9,
            11] of the DistilBERT reference); `uniform` takes the last layer of each of `depth`
            equal blocks (PKD's skip, Sun et al. 2019); `first`, `last`; or the numbers themselves,
            counted from 0.
        depth: layers of the student, for a rule; None: half of the teacher's, rounded up.

    Raises:
        ValueError: a depth or a number out of range, or a layer named twice.
    """
    if not isinstance(rule, str):
        return _checked(list(rule), teacher_depth, depth)
    depth = (teacher_depth + 1) // 2 if depth is None else depth
    if not 1 <= depth <= teacher_depth:
        raise ValueError(f"depth: {depth} is out of range: the teacher has {teacher_depth} layers")
    match rule:
        case "first":
            return list(range(depth))
        case "last":
            return list(range(teacher_depth - depth, teacher_depth))
        case "uniform":
            return [(i + 1) * teacher_depth // depth - 1 for i in range(depth)]
        case "alternate":
            # Python rounds halves to even, which gives [0, 2, 5] of 6
            return [round(i * (teacher_depth - 1) / max(depth - 1, 1)) for i in range(depth)]


def typed_layer_map(
    rule: LayerRule | Sequence[int], types: Sequence[str], depth: int | None = None
) -> list[int]:
    """`layer_map` for layers of several types, whose first one is of a kind of its own.

    A rule gives each student layer one of the type that the teacher has at that place, so that the
    pattern goes on as it was: `alternate` takes those nearest to where it would take them without
    types, in order.

    Raises:
        ValueError: as `layer_map`, or a map whose first layer isn't layer 0, or has it elsewhere.
    """
    if rule == "alternate":
        wanted = layer_map("first", len(types), depth)  # checks depth
        return _nearest_of_type([types[i] for i in wanted], types)
    chosen = layer_map(rule, len(types), depth)
    if chosen[0] != 0:
        named = f"'{rule}' begins" if isinstance(rule, str) else f"{chosen} begins"
        raise ValueError(
            f"layers: {named} with layer {chosen[0]}, but the first layer has no attention norm "
            "and only layer 0 fits there: take alternate, first, or numbers that begin with 0"
        )
    return chosen


def _nearest_of_type(wanted: Sequence[str], types: Sequence[str]) -> list[int]:
    """Rising teacher layers of the wanted types, from 0 on, as near as can be to an even spread.

    Exact, by dynamic programming over (student layer, teacher layer): the sum of distances.
    """
    spread = [i * (len(types) - 1) / max(len(wanted) - 1, 1) for i in range(len(wanted))]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}  # by the teacher layer taken last
    for i in range(1, len(wanted)):
        following: dict[int, tuple[float, list[int]]] = {}
        for layer, kind in enumerate(types):
            before = [found for last, found in best.items() if last < layer]
            if kind == wanted[i] and before:
                cost, path = min(before)
                following[layer] = (cost + abs(layer - spread[i]), [*path, layer])
        best = following
    return min(best.values())[1]


def chosen_layers(
    config: Any, layers: LayerRule | Sequence[int], depth: int | None = None
) -> list[int]:
    """The layer map of a teacher's config: `layer_map`, or `typed_layer_map` where types differ.

    Raises:
        ValueError: as those.
    """
    family = families.family_of(config, config.model_type)
    if family.first_layer_is_special:
        return typed_layer_map(layers, config.layer_types, depth)
    return layer_map(layers, config.num_hidden_layers, depth)


def _checked(layers: list[int], teacher_depth: int, depth: int | None) -> list[int]:
    wrong = [layer for layer in layers if not 0 <= layer < teacher_depth]
    if wrong:
        raise ValueError(
            f"layers: {wrong[0]} is out of range: the teacher's {teacher_depth} layers are 0 "
            f"to {teacher_depth - 1}"
        )
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers: {layers} must name at least one layer and none twice")
    if depth is not None and depth != len(layers):
        raise ValueError(f"depth is {depth}, but layers names {len(layers)}: leave one of them out")
    return layers


def make_student(
    teacher: PreTrainedModel,
    layers: LayerRule | Sequence[int] = "alternate",
    *,
    depth: int | None = None,
    family: StudentFamily | None = None,
    pairs: bool = False,
) -> PreTrainedModel:
    """A student with some of the teacher's layers, every weight copied from the teacher.

    A masked-LM BERT teacher gives a DistilBertForMaskedLM with the head copied; a headless one a
    headless DistilBertModel; a task teacher keeps its own family unless `family` asks. Token types
    are folded into the positions (row 0), so single texts get what the teacher's layers would give;
    pairs do not. Teachers of all other families keep their class.

    Args:
        teacher: a transformers encoder; it is not changed.
        layers, depth: see `layer_map`; layers of several types (ModernBERT's full and sliding
            attention): see `typed_layer_map`.
        family: the student's family; None chooses.
        pairs: the teacher reads text pairs: token types must stay, so BERT stays BERT, with a
            warning. So it does where DistilBERT can't express the teacher.

    Returns:
        A transformers model in eval mode, in the teacher's dtype.

    Raises:
        ValueError: layers out of range, a family that can't express the teacher.
    """
    model_type = families.family_of(teacher.config, type(teacher).__name__).model_type
    chosen = chosen_layers(teacher.config, layers, depth)
    if _to_distilbert(teacher, model_type, family, pairs):
        student = _distilbert_from_bert(teacher, chosen)
    else:
        student = _slice(teacher, chosen)
    torch.nn.Module.to(student, teacher.dtype)
    student.eval()
    return student


def _to_distilbert(
    teacher: PreTrainedModel, model_type: str, family: StudentFamily | None, pairs: bool
) -> bool:
    """Whether to convert BERT to DistilBERT; complains where it was asked for and can't be."""
    if family is not None and family != model_type and model_type != "bert":
        raise ValueError(
            f"family: a teacher of the family {model_type} can't give a {family} student; leave "
            "family out"
        )
    if model_type != "bert" or family == "bert":
        return False
    problem = _not_expressible(teacher)
    if problem is not None:
        if family == "distilbert":
            raise ValueError(
                f"family: DistilBERT can't express this teacher: {problem}; use family bert"
            )
        if type(teacher).__name__ in _WITHOUT_TASK:
            warnings.warn(
                f"DistilBERT can't express this teacher: {problem}; the student stays BERT",
                stacklevel=3,
            )
        return False
    if pairs:
        warnings.warn(
            "the teacher reads text pairs, which DistilBERT (no token types) can't tell apart: "
            "the student stays BERT",
            stacklevel=3,
        )
        return False
    return family == "distilbert" or type(teacher).__name__ in _WITHOUT_TASK


_WITHOUT_TASK = ("BertModel", "BertForMaskedLM", "BertForPreTraining")


def _not_expressible(teacher: PreTrainedModel) -> str | None:
    config = teacher.config
    if config.layer_norm_eps != families.DISTILBERT_EPS:
        return f"its layer_norm_eps is {config.layer_norm_eps:g}, DistilBERT's is fixed at 1e-12"
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return f"its positions are {config.position_embedding_type}, DistilBERT's are absolute"
    if type(teacher).__name__ not in families.DISTILBERT_CLASS:
        return f"the head of {type(teacher).__name__} is another function there"
    return None


def _slice(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """The same class with fewer layers."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    types = getattr(teacher.config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[layer] for layer in layers]
        if config.layer_types != types[: len(layers)]:
            warnings.warn(
                f"layers {layers} break the pattern of the teacher's layer types: config.json says "
                "each layer's type, but readers that know only the pattern get it wrong",
                stacklevel=3,
            )
    extra = _constructor_options(teacher)
    student = type(teacher)(config, **extra)
    _load(student, _renumber(_state(teacher), families.layer_prefix(teacher), layers))
    return student


def _constructor_options(teacher: PreTrainedModel) -> dict[str, Any]:
    if teacher.base_model is teacher and families.FAMILIES[teacher.config.model_type].has_pooler:
        return {"add_pooling_layer": getattr(teacher, "pooler", None) is not None}
    return {}


def _distilbert_from_bert(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    state = _state(teacher)
    if teacher.base_model is teacher:
        state = {f"bert.{name}": value for name, value in state.items()}
    state = _renumber(state, "bert.encoder.layer.", layers)
    # A single text's token types are all 0: position + type vector 0 is one table.
    state[families.POSITIONS] = state[families.POSITIONS] + state[families.TOKEN_TYPES][0]
    student_class = getattr(transformers, families.DISTILBERT_CLASS[type(teacher).__name__])
    student: PreTrainedModel = student_class(_distilbert_config(teacher.config, len(layers)))
    prefix = "distilbert." if student.base_model is student else ""
    _load(
        student,
        {_renamed(name).removeprefix(prefix): v for name, v in state.items() if _has_place(name)},
    )
    return student


def _distilbert_config(config: Any, depth: int) -> transformers.DistilBertConfig:
    kept = {
        name: getattr(config, name)
        for name in (
            "id2label",
            "label2id",
            "problem_type",
            "tie_word_embeddings",
            "initializer_range",
        )
        if getattr(config, name, None) is not None
    }
    return transformers.DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        n_layers=depth,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        pad_token_id=config.pad_token_id,
        **kept,
    )


def _has_place(name: str) -> bool:
    return not name.startswith(families.NOT_IN_DISTILBERT)


def _renamed(name: str) -> str:
    for old, new in families.DISTILBERT_FROM_BERT:
        name = name.replace(old, new)
    return name


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    # Clones: a student must not share storage with its teacher, nor train it.
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _renumber(state: dict[str, Tensor], prefix: str, layers: list[int]) -> dict[str, Tensor]:
    """Keep the layers of a state dict that are in the map, under their new numbers."""
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.(.*)", re.DOTALL)
    kept = {}
    for name, value in state.items():
        match = numbered.fullmatch(name)
        if match is None:
            kept[name] = value
        elif int(match[1]) in layers:
            kept[f"{prefix}{layers.index(int(match[1]))}.{match[2]}"] = value
    return kept


def _load(student: PreTrainedModel, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        missing, unexpected = student.load_state_dict(state, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    student.tie_weights()
