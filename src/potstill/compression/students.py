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

from potstill.compression.narrowing import Choice, largest, load_state, narrow_config, narrowed
from potstill.compression.parts import Encoder, Widths, widths_of
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
    """Make a student of some of the teacher's layers, every weight copied from the teacher.

    A masked-LM BERT teacher gives a DistilBertForMaskedLM with the head copied; a headless one a
    headless DistilBertModel; a task teacher keeps its own family unless `family` asks. Token types
    are folded into the positions (row 0), so single texts get what the teacher's layers would give;
    pairs do not. Teachers of all other families keep their class. A narrower student has a
    selection of the teacher's weights (see narrowing).

    Args:
        teacher: A transformers encoder; it is not changed.
        layers: The teacher layers that are kept: a rule, or numbers from 0; see `layer_map`.
        depth: The number of layers, for a rule; None: half of the teacher's, rounded up.
        width: The hidden size; None: the teacher's.
        ffn: The intermediate (FFN) size; None: in proportion to the width.
        at_most: Parameters that the student may have, as a number or "15 M"; its depth and widths
            are chosen (see shapes).
        ratio: The same as a fraction of the teacher's computation per token: a number or "half".
        initialize: "random" leaves the student as its class initializes it, from torch's own
            generator: to compare with.
        family: The student's family; None chooses.
        pairs: The teacher reads text pairs: token types must stay, so BERT stays BERT, with a
            warning. So it does where DistilBERT can't express the teacher.
        sample: Some texts as token ids with their special tokens, of which a narrower student keeps
            the most; None: random tokens serve, less well.
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
    encoder = Encoder(teacher, families.family_of(teacher.config, type(teacher).__name__))
    surgery = Surgery(encoder, wanted)
    return surgery.build(surgery.shape(), sample)


class Surgery:
    """Make students of one teacher: choose their class and shape, and build them.

    Raises:
        ValueError: a family that can't express the teacher.
    """

    def __init__(self, teacher: Encoder, wanted: Student) -> None:
        self.teacher, self.wanted = teacher, wanted
        model, self.family = teacher.model, teacher.family
        self.converts = _to_distilbert(teacher, wanted)
        self.student_class: Any = type(model)
        self.options: dict[str, Any] = {}  # of the class, besides its config
        if self.converts:
            self.family = families.FAMILIES["distilbert"]
            name = families.DISTILBERT_CLASS[type(model).__name__]
            self.student_class = getattr(transformers, name)
        elif model.base_model is model and self.family.has_pooler:
            self.options = {"add_pooling_layer": getattr(model, "pooler", None) is not None}

    def shape(self) -> Shape:
        """Choose the student's shape: see shapes.choose_shape.

        Raises:
            ValueError: layers or widths out of range, or a budget that no student keeps.
        """
        last = int(self.teacher.model.config.num_hidden_layers) - 1

        def count(depth: int, widths: Widths) -> int:
            # more layers than the teacher has may be asked for, to see what one of them takes
            with torch.device("meta"):
                blank = self._blank([min(i, last) for i in range(depth)], widths)
            return int(blank.num_parameters())

        return choose_shape(self.teacher, self.wanted, count)

    def build(
        self,
        shape: Shape,
        sample: Sequence[Sequence[int]] | None = None,
        choice: Choice | None = None,
    ) -> PreTrainedModel:
        """Build a student of this shape, in eval mode, in the teacher's dtype.

        Args:
            sample: See `make_student`.
            choice: What a narrower student keeps; None: what is largest on the sample.
        """
        teacher = self.teacher.model
        if self.wanted.initialize == "random" or teacher.device.type == "meta":  # no weights
            with teacher.device:
                student = self._blank(shape.layers, shape.widths)
        else:
            student = self._with_layers(shape.layers)
            if widths_of(student.config, self.family) != shape.widths:
                wide = Encoder(student, self.family)
                choice = choice or largest(wide, shape.widths.hidden, sample)
                student = narrowed(wide, shape.widths, choice, **self.options)
        torch.nn.Module.to(student, teacher.dtype)
        student.eval()
        return student

    def _blank(self, layers: list[int], widths: Widths) -> PreTrainedModel:
        """Make a student as its class initializes it."""
        config = narrow_config(self._config(layers), self.family, widths)
        student: PreTrainedModel = self.student_class(config, **self.options)
        return student

    def _with_layers(self, layers: list[int]) -> PreTrainedModel:
        """Make a student as wide as the teacher, with weights of these layers."""
        teacher, config = self.teacher.model, self._config(layers)
        types = getattr(teacher.config, "layer_types", None)
        if types is not None and config.layer_types != types[: len(layers)]:
            warnings.warn(
                f"layers: {layers} break the pattern of the teacher's layer types. Readers of "
                "config.json that know only the pattern get the types wrong.",
                stacklevel=4,
            )
        student: PreTrainedModel = self.student_class(config, **self.options)
        # Clones: a student must not share storage with its teacher, nor train it.
        state = {name: value.detach().clone() for name, value in teacher.state_dict().items()}
        if self.converts and teacher.base_model is teacher:
            state = {f"bert.{name}": value for name, value in state.items()}
        prefix = (
            "bert.encoder.layer." if self.converts else self.teacher.family.layer_prefix(teacher)
        )
        state = _renumbered(state, prefix, layers)
        if self.converts:
            state = _as_distilbert(state, student.base_model is student)
        load_state(student, state)
        return student

    def _config(self, layers: list[int]) -> Any:
        """Return the config of a student with these layers, as wide as the teacher."""
        config: Any = self.teacher.model.config
        if self.converts:
            return _distilbert_config(config, len(layers))
        shallow = copy.deepcopy(config)
        shallow.num_hidden_layers = len(layers)
        if getattr(config, "layer_types", None) is not None:
            shallow.layer_types = [config.layer_types[layer] for layer in layers]
        return shallow


_WITHOUT_TASK = ("BertModel", "BertForMaskedLM", "BertForPreTraining")


def _to_distilbert(teacher: Encoder, wanted: Student) -> bool:
    """Decide whether BERT becomes DistilBERT; refuse it where it was asked for and can't be."""
    own, family, called = teacher.family.model_type, wanted.family, type(teacher.model).__name__
    if family not in (None, own) and own != "bert":
        raise ValueError(
            f"family: a teacher of the family {own} can't give a {family} student. Omit family."
        )
    if own != "bert" or family == "bert":
        return False
    problem, config, warned = None, teacher.model.config, called in _WITHOUT_TASK
    if config.layer_norm_eps != families.DISTILBERT_EPS:
        problem = f"its layer_norm_eps is {config.layer_norm_eps:g}, DistilBERT's is fixed at 1e-12"
    elif called not in families.DISTILBERT_CLASS:
        problem = f"the head of {called} is another function there"
    elif wanted.pairs:
        problem, warned = "it reads text pairs, and DistilBERT has no token types", True
    if problem is not None and family == "distilbert":
        raise ValueError(
            f"family: DistilBERT can't express this teacher: {problem}. Set family to bert."
        )
    if problem is not None and warned:
        warnings.warn(
            f"DistilBERT can't express this teacher: {problem}. The student stays BERT.",
            stacklevel=4,
        )
    return problem is None and (family == "distilbert" or called in _WITHOUT_TASK)


def _as_distilbert(state: dict[str, Tensor], headless: bool) -> dict[str, Tensor]:
    """Name BERT's parameters as DistilBERT does, its token types folded into its positions."""
    # A single text's token types are all 0: position + type vector 0 is one table.
    state[families.POSITIONS] = state[families.POSITIONS] + state[families.TOKEN_TYPES][0]
    renamed = {}
    for name, value in state.items():
        if not name.startswith(families.NOT_IN_DISTILBERT):
            for old, new in families.DISTILBERT_FROM_BERT:
                name = name.replace(old, new)
            renamed[name.removeprefix("distilbert.") if headless else name] = value
    return renamed


def _distilbert_config(config: Any, depth: int) -> transformers.DistilBertConfig:
    names = ("id2label", "label2id", "problem_type", "tie_word_embeddings", "initializer_range")
    kept = {name: getattr(config, name, None) for name in names}
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
        **{name: value for name, value in kept.items() if value is not None},
    )


def _renumbered(state: dict[str, Tensor], prefix: str, layers: list[int]) -> dict[str, Tensor]:
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
