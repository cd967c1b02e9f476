"""Students made from a teacher's own weights: fewer layers, narrower ones, another class."""

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

from potstill.compression.narrowing import Choice, Widths, narrow_config, narrowed, widths_of
from potstill.compression.shapes import Shape, choose_shape
from potstill.models import families
from potstill.models.finite import not_finite, refuse_not_finite
from potstill.recipe import LayerRule, Student, StudentFamily, checked


def make_student(
    teacher: PreTrainedModel,
    layers: LayerRule | Sequence[int] = "alternate",
    *,
    depth: int | None = None,
    width: int | None = None,
    ffn: int | None = None,
    at_most: int | str | None = None,
    ratio: float | str | None = None,
    initialize: Literal["teacher", "random"] = "teacher",
    family: StudentFamily | None = None,
    pairs: bool = False,
    sample: Sequence[Sequence[int]] | None = None,
    initialise: Literal["teacher", "random"] | None = None,
) -> PreTrainedModel:
    """A student with some of the teacher's layers, every weight copied from the teacher.

    A masked-LM BERT teacher gives a DistilBertForMaskedLM with the head copied; a headless one a
    headless DistilBertModel; a task teacher keeps its own family unless `family` asks. Token types
    are folded into the positions (row 0), so single texts get what the teacher's layers would give;
    pairs do not. Teachers of all other families keep their class. A narrower student has a
    selection of the teacher's weights (see narrowing).

    Args:
        teacher: a transformers encoder; it is not changed.
        layers, depth: see `layer_maps.layer_map`; layers of several types (ModernBERT's full and
            sliding attention): see `layer_maps.typed_layer_map`.
        width, ffn: hidden size and inner width of the FFN; None: the teacher's, the FFN in
            proportion to the width.
        at_most: parameters that the student may have, as a number or "15 M"; its depth and widths
            are chosen (see shapes).
        ratio: likewise, but the share of the teacher's computation a token may cost, as a number
            or "half".
        initialize: "random" leaves the student as its class initializes it, from torch's own
            generator: to compare with.
        family: the student's family; None chooses.
        pairs: the teacher reads text pairs: token types must stay, so BERT stays BERT, with a
            warning. So it does where DistilBERT can't express the teacher.
        sample: for a narrower student, some texts as token ids with their special tokens, of which
            it keeps the most; None: random tokens serve, less well.
        initialise: The former name of `initialize`; None: not given.

    Returns:
        A transformers model in eval mode, in the teacher's dtype.

    Raises:
        ValueError: layers or widths out of range, a budget too small, a family that can't express
            the teacher, or a teacher whose weights are not finite.
    """
    refuse_not_finite("the teacher", not_finite(teacher.state_dict()))
    wanted = checked(
        Student,
        {
            "layers": layers if isinstance(layers, str) else list(layers),
            **{"depth": depth, "width": width, "ffn": ffn, "at_most": at_most, "ratio": ratio},
            **{"initialize": initialise or initialize, "family": family, "pairs": pairs},
        },
    )
    return build_student(teacher, wanted, student_shape(teacher, wanted), sample)


def student_shape(teacher: PreTrainedModel, wanted: Student) -> Shape:
    """The shape that a student asked for so gets: see shapes.choose_shape.

    Raises:
        ValueError: as `make_student`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # building it warns
        converts = _to_distilbert(teacher, wanted)

    last = int(teacher.config.num_hidden_layers) - 1

    def count(depth: int, widths: Widths) -> int:
        # more layers than the teacher has may be asked for, to tell what one of them takes
        config = _shallow_config(teacher, converts, [min(i, last) for i in range(depth)])
        with torch.device("meta"):
            blank = _class_of(teacher, converts)(
                narrow_config(config, widths), **_constructor_options(teacher, converts)
            )
        return int(blank.num_parameters())

    return choose_shape(teacher.config, wanted, count)


def build_student(
    teacher: PreTrainedModel,
    wanted: Student,
    shape: Shape,
    sample: Sequence[Sequence[int]] | None = None,
    choice: Choice | None = None,
) -> PreTrainedModel:
    """`make_student` for a shape that has been chosen, and what a narrower one keeps."""
    converts = _to_distilbert(teacher, wanted)
    options = _constructor_options(teacher, converts)
    student: PreTrainedModel
    if wanted.initialize == "random" or teacher.device.type == "meta":  # which has no weights
        config = _shallow_config(teacher, converts, shape.layers)
        with teacher.device:
            student = _class_of(teacher, converts)(narrow_config(config, shape.widths), **options)
    else:
        build = _distilbert_from_bert if converts else _slice
        student = build(teacher, shape.layers)
        if widths_of(student.config) != shape.widths:
            student = narrowed(student, shape.widths, sample, choice, **options)
    torch.nn.Module.to(student, teacher.dtype)
    student.eval()
    return student


def _to_distilbert(teacher: PreTrainedModel, wanted: Student) -> bool:
    """Whether to convert BERT to DistilBERT; complains where it was asked for and can't be."""
    model_type = families.family_of(teacher.config, type(teacher).__name__).model_type
    family = wanted.family
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
                stacklevel=4,
            )
        return False
    if wanted.pairs:
        if family == "distilbert":
            raise ValueError(
                "family: DistilBERT has no token types to tell the two texts of a pair apart; "
                "leave pairs out, or use family bert"
            )
        warnings.warn(
            "the teacher reads text pairs, which DistilBERT (no token types) can't tell apart: "
            "the student stays BERT",
            stacklevel=4,
        )
        return False
    return family == "distilbert" or type(teacher).__name__ in _WITHOUT_TASK


_WITHOUT_TASK = ("BertModel", "BertForMaskedLM", "BertForPreTraining")


def _not_expressible(teacher: PreTrainedModel) -> str | None:
    config = teacher.config
    if config.layer_norm_eps != families.DISTILBERT_EPS:
        return f"its layer_norm_eps is {config.layer_norm_eps:g}, DistilBERT's is fixed at 1e-12"
    if type(teacher).__name__ not in families.DISTILBERT_CLASS:
        return f"the head of {type(teacher).__name__} is another function there"
    return None


def _class_of(teacher: PreTrainedModel, converts: bool) -> Any:
    if not converts:
        return type(teacher)
    return getattr(transformers, families.DISTILBERT_CLASS[type(teacher).__name__])


def _constructor_options(teacher: PreTrainedModel, converts: bool) -> dict[str, Any]:
    """What the student's class is told beside its config."""
    has_pooler = families.FAMILIES[teacher.config.model_type].has_pooler
    if not converts and teacher.base_model is teacher and has_pooler:
        return {"add_pooling_layer": getattr(teacher, "pooler", None) is not None}
    return {}


def _shallow_config(teacher: PreTrainedModel, converts: bool, layers: list[int]) -> Any:
    """The config of a student with these of the teacher's layers, as wide as the teacher."""
    if converts:
        return _distilbert_config(teacher.config, len(layers))
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    types = getattr(teacher.config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[layer] for layer in layers]
    return config


def _slice(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """The same class with fewer layers."""
    config = _shallow_config(teacher, False, layers)
    types = getattr(teacher.config, "layer_types", None)
    if types is not None and config.layer_types != types[: len(layers)]:
        warnings.warn(
            f"layers {layers} break the pattern of the teacher's layer types: config.json says "
            "each layer's type, but readers that know only the pattern get it wrong",
            stacklevel=4,
        )
    student = type(teacher)(config, **_constructor_options(teacher, converts=False))
    _load(student, _renumber(_state(teacher), families.layer_prefix(teacher), layers))
    return student


def _distilbert_from_bert(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    state = _state(teacher)
    if teacher.base_model is teacher:
        state = {f"bert.{name}": value for name, value in state.items()}
    state = _renumber(state, "bert.encoder.layer.", layers)
    # A single text's token types are all 0: position + type vector 0 is one table.
    state[families.POSITIONS] = state[families.POSITIONS] + state[families.TOKEN_TYPES][0]
    student: PreTrainedModel = _class_of(teacher, converts=True)(
        _distilbert_config(teacher.config, len(layers))
    )
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
