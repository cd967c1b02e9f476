"""What is set aside of a former configuration."""

from __future__ import annotations

import pytest

from potstill.pipeline.replaced import set_aside_results
from potstill.storage import RunFolder


@pytest.mark.parametrize("model", [True, False])
def test_a_suite_goes_where_the_model_goes_that_it_is_of(tmp_path, model):
    run = RunFolder(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("suite.json", "metrics.json"):
        (tmp_path / name).write_text("{}")
    [said] = set_aside_results(run, model=model)
    assert (tmp_path / "suite.json").exists() is not model
    assert ("model, suite.json, metrics.json" in said) is model
    (kept,) = (tmp_path / "replaced").glob("results-*")
    assert (kept / "suite.json").exists() is model
    assert (kept / "metrics.json").exists()
