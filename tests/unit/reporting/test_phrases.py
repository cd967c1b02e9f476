"""Clauses about stages, against sentences written by hand."""

from __future__ import annotations

from typing import get_args

from potstill.recipe import Objective, Relations, SoftTargets
from potstill.reporting import phrases
from potstill.tasks import score_names


def test_effort():
    result = {"steps": 1234, "tokens": 812345, "seconds": 90, "stopped_early": True}
    assert phrases.effort(result) == "1,234 steps, 812,345 tokens, 1.5 minutes, stopped early"
    assert phrases.effort({}) == ""
    best = {"steps": 90, "best": {"score": 0.9, "step": 60}}
    kept = {"training": {"keep": "best"}}
    assert phrases.effort(best, kept) == "90 steps, the best weights kept, of step 60"
    assert phrases.effort(best, {"training": {"keep": "last"}}) == "90 steps"


def test_objectives_are_named_with_what_tells_them_apart():
    kinds = [
        get_args(model.model_fields["kind"].annotation)[0]
        for model in get_args(get_args(Objective)[0])
    ]
    assert {kind for kind in kinds if kind not in score_names.OBJECTIVES} == set()
    soft = SoftTargets(weight=5, temperature=8, schedule="cosine", final_temperature=1)
    note = phrases.objective_note(soft.model_dump())
    assert note == "weight 5, T = 8 to 1, cosine"
    assert phrases.objective_note(SoftTargets().model_dump()) == "weight 1, T = 2"
    pairs = Relations(pairs=["qk", "vv"]).model_dump()
    assert phrases.objective_note(pairs) == "weight 1, of qk, vv"
