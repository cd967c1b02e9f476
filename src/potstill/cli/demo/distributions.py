"""Soften distributions of several models over the same choices by a temperature."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax

TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0)
CANDIDATES = 8  # choices that are shown where there are more; the others count together
EACH = 3  # choices that each other model adds, its likeliest


@dataclass(frozen=True)
class Distribution:
    """Hold one distribution that a model predicts.

    Attributes:
        title: The thing that is predicted, for people: "mask 1", a word.
        keys: The choices; the same choice has the same key in every model.
        logits_C: float64, one per key.
        shown: The text that people read in place of a key.
        apart: Each choice is a yes or no by itself (the sigmoid of its logit), as in multi-label.
    """

    title: str
    keys: Sequence[Hashable]
    logits_C: np.ndarray
    shown: Mapping[Hashable, str] = field(default_factory=dict)
    apart: bool = False

    @property
    def order(self) -> list[int]:
        """Return the numbers of the choices, the likeliest first."""
        return [int(n) for n in np.argsort(-self.logits_C, kind="stable")]

    def log_shares(self, temperature: float) -> np.ndarray:
        """Return the logarithms of softmax(z / T), or of sigmoid(z / T) where apart [C]."""
        scaled_C = self.logits_C / temperature
        found_C: np.ndarray = -np.logaddexp(0.0, -scaled_C) if self.apart else log_softmax(scaled_C)
        return found_C


def soften(
    models: Mapping[str, Distribution], temperatures: Sequence[float] = TEMPERATURES
) -> dict[str, Any]:
    """Soften the same distribution of several models by several temperatures.

    Args:
        models: Name -> distribution; divergences are from the first one.
        temperatures: The temperatures.

    Returns:
        `title`, `apart`, `candidates` (the text of each, the first model's likeliest first), and
        for each of `models`: `shares` [temperatures x candidates], None for a choice that the model
        lacks; `rest` [temperatures], the share of all other choices together; `divergence`
        [temperatures], nats: KL(first || this one), the mean of choices apart; None where the two
        models have other choices.
    """
    first = next(iter(models.values()))
    chosen = _candidates(models)
    shown = {key: text for each in models.values() for key, text in each.shown.items()}
    return {
        "title": first.title,
        "apart": first.apart,
        "candidates": [shown.get(key, str(key)) for key in chosen],
        "models": {
            name: _softened(found, first, chosen, temperatures) for name, found in models.items()
        },
    }


def _candidates(models: Mapping[str, Distribution]) -> list[Hashable]:
    """Return the choices that are shown: each model's likeliest, or all where there are few."""
    first, *others = models.values()
    ordered = [first.keys[n] for n in first.order]
    wanted = ordered if len(ordered) <= CANDIDATES + 2 else ordered[:CANDIDATES]
    more = [other.keys[n] for other in others for n in other.order[:EACH]]
    place = {key: number for number, key in enumerate(ordered)}
    return sorted(dict.fromkeys([*wanted, *more]), key=lambda key: place.get(key, len(place)))


def _softened(
    found: Distribution,
    first: Distribution,
    chosen: Sequence[Hashable],
    temperatures: Sequence[float],
) -> dict[str, Any]:
    place = {key: number for number, key in enumerate(found.keys)}
    numbers = [place.get(key) for key in chosen]
    comparable = place.keys() == set(first.keys)
    if comparable:
        aligned = np.array([place[key] for key in first.keys])
    shares, rest, divergence = [], [], []
    for temperature in temperatures:
        log_C = found.log_shares(temperature)
        row = [None if n is None else float(np.exp(log_C[n])) for n in numbers]
        shares.append(row)
        rest.append(0.0 if found.apart else max(0.0, 1.0 - sum(p or 0.0 for p in row)))
        if comparable:
            own = Distribution("", first.keys, found.logits_C[aligned], apart=found.apart)
            divergence.append(_kl(first, own, temperature))
    return {"shares": shares, "rest": rest, "divergence": divergence or None}


def _kl(first: Distribution, other: Distribution, temperature: float) -> float:
    """Return KL(first || other) of the softened distributions, in nats; the mean where apart."""
    log_p, log_q = first.log_shares(temperature), other.log_shares(temperature)
    total_C = np.exp(log_p) * (log_p - log_q)
    if not first.apart:
        return float(total_C.sum())
    # log(1 - sigmoid(z)) is the log of sigmoid(-z)
    no_p, no_q = log_p - first.logits_C / temperature, log_q - other.logits_C / temperature
    return float((total_C + expit(-first.logits_C / temperature) * (no_p - no_q)).mean())
