"""The model card: front matter that the hub reads, a body in which names stay text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fake_run import RECIPE, fake_run, fake_suite, make_student_result, stage
from huggingface_hub import InferenceClient, ModelCard, metadata_load, metadata_save, repocard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from potstill.recipe import Report
from potstill.recipe import files as recipe_files
from potstill.reporting import model_card
from potstill.tasks import score_names


def model_folder(run: Path) -> Path:
    folder = run / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    modules = [
        {"type": f"sentence_transformers.models.{name}"} for name in ("Pooling", "Normalize")
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_front_matter(tmp_path):
    folder = model_folder(fake_run(tmp_path))
    path = model_card.write_card(tmp_path, folder, Report(language="en", license="apache-2.0"))
    assert path == folder / "README.md"
    data = ModelCard.load(path).data
    assert data.base_model == "example-org/all-MiniLM-L6-v2"
    assert data.base_model_relation == "finetune"
    assert (data.language, data.license) == ("en", "apache-2.0")
    assert (data.library_name, data.pipeline_tag) == (
        "sentence-transformers",
        "sentence-similarity",
    )
    assert {"potstill", "knowledge-distillation"} <= set(data.tags)
    assert data.datasets is None
    assert data.metrics == ["mrr", "recall_at_1", "accuracy"]
    assert data.model_name == "fake-news"
    # likeness to the teacher (similarity, hidden cosine) is no result of the model alone
    assert [(r.task_type, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("information-retrieval", "mrr", 0.8645),
        ("information-retrieval", "recall_at_1", 0.7905),
        ("text-classification", "accuracy", 0.9743),
    ]


def test_the_hub_s_own_checks_accept_the_front_matter(tmp_path, monkeypatch):
    """What huggingface_hub checks itself, and what it would send to the hub to be checked there."""
    run = fake_run(tmp_path)
    path = model_card.write_card(
        run, model_folder(run), Report(language="en", license="apache-2.0")
    )
    card = ModelCard.load(path)  # refuses a model-index that is not one
    front = metadata_load(path)
    name, results = model_index_to_eval_results(front["model-index"])
    assert eval_results_to_model_index(name, results) == front["model-index"]
    told = {(result.unique_identifier, result.metric_type) for result in results}
    assert len(told) == len(results)  # no score twice
    # written anew by the library, nothing is lost
    metadata_save(path, front)
    assert ModelCard.load(path).data.to_dict() == card.data.to_dict()
    for repo in (front["base_model"], *front.get("datasets", [])):
        validate_repo_id(repo)
    sent = []

    class Answer:
        def raise_for_status(self):
            pass

    class Session:
        def post(self, url, json, headers):
            sent.append((url, json))
            return Answer()

    monkeypatch.setattr(repocard, "get_session", Session)
    card.validate(repo_type="model")
    [(url, body)] = sent
    assert url.endswith("/api/validate-yaml")
    assert body == {"repoType": "model", "content": str(card)}


@pytest.mark.parametrize("task", sorted(score_names.CARD_TASKS))
def test_pipelines_are_ones_that_the_hub_knows(task):
    tag = score_names.CARD_TASKS[task]
    if tag != "information-retrieval":  # a task of scores alone, never the model's pipeline
        assert hasattr(InferenceClient, tag.replace("-", "_"))


def test_steps_stand_in_the_card(tmp_path):
    run = fake_run(tmp_path)
    lines = model_card.write_card(run, model_folder(run), Report()).read_text().splitlines()
    start = lines.index("## Step by step") + 2
    assert lines[start].count("|") == lines[start + 1].count("|") == 7
    # 17.24 of 22.71 million parameters; 84.0% kept, never timed
    minus = "\N{MINUS SIGN}"
    told = f"17.2 M ({minus}24%) |  |  |  | 84.0% ({minus}16.0 points)"
    assert lines[start + 3] == f"| untrained: 3 of 6 layers | {told} |"


def test_a_suites_scores_stand_in_the_card(tmp_path):
    run = fake_run(tmp_path)
    folder = model_folder(run)
    assert "GLUE" not in model_card.write_card(run, folder, Report()).read_text()
    (run / "suite.json").write_text(json.dumps(fake_suite()))
    lines = model_card.write_card(run, folder, Report()).read_text().splitlines()
    start = lines.index("## GLUE, a part of it")
    assert lines[start + 2] == ("A quick look, not the suite: 2 of 9 tasks; 3 seeds instead of 5.")
    dash = "\N{EN DASH}"
    assert lines[start + 4 : start + 9] == [
        "| | big | small |",
        "| :-- | --: | --: |",
        f"| CoLA, Matthews' correlation | 51.0 (50.0{dash}52.0) "
        f"| 45.9 (44.9{dash}46.9, 90.0% kept) |",
        f"| WNLI, accuracy, a small set | 60.0 (50.0{dash}60.0) | 60.0 (50.0{dash}60.0) |",
        "| Average of 2 tasks | 55.5 | 53.0 (95.0% kept) |",
    ]


def test_several_teachers_are_named(tmp_path):
    run = fake_run(tmp_path)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["teachers"] = {name: {"model": f"org/{name}"} for name in ("large", "unread")}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = run / "stages/02-distill/config.json"
    config = json.loads(path.read_text())
    config["stage"]["teacher"] = [{"model": "large", "weight": 2.0}, {"model": "teacher"}]
    path.write_text(json.dumps(config))
    text = ModelCard.load(model_card.write_card(run, model_folder(run), Report())).text
    assert "distilled with Potstill from example-org/all-MiniLM-L6-v2 and org/large." in text


def test_body(tmp_path):
    folder = model_folder(fake_run(tmp_path))
    text = ModelCard.load(model_card.write_card(tmp_path, folder, Report())).text
    assert "\n# fake-news\n" in text
    assert "The student keeps 98.1% of the teacher's MRR" in text
    assert (
        "3 of the teacher's 6 layers were copied. Layers: 0, 2, 5, counted from 0; "
        "bert to distilbert." in text
    )
    assert (
        "soft targets (weight 5, T = 2); hard targets (weight 2); hidden cosine (weight 1). "
        "400 steps, 812,345 tokens, 6.1 minutes." in text
    )
    lines = text.splitlines()
    start = lines.index("| | teacher | student |")
    assert lines[start + 1] == "| :-- | --: | --: |"
    assert lines[start + 2] == "| Parameters (millions) | 22.7 | 17.2 |"
    table = lines[start : lines.index("", start)]
    assert len(table) == 23
    assert all(line.count("|") == 4 for line in table)
    assert "SentenceTransformer(" in text
    assert "embeddings = (hidden * mask).sum(1) / mask.sum(1)" in text
    assert "torch.nn.functional.normalize(embeddings, dim=-1)" in text
    assert "No license was stated" in text


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "max"}, None),
    ],
)
def test_plain_example_pools_as_the_model_does(tmp_path, config, pooling):
    folder = model_folder(fake_run(tmp_path))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    text = model_card.write_card(tmp_path, folder, Report()).read_text()
    assert ("mask.sum(1)" in text) is (pooling == "mean")
    assert ("hidden[:, 0]" in text) is (pooling == "cls")
    for block in text.split("```python\n")[1:]:
        compile(block.partition("```")[0], "card", "exec")


def test_masked_lm_folder(tmp_path):
    folder = fake_run(tmp_path) / "model"
    folder.mkdir()
    card = ModelCard.load(model_card.write_card(tmp_path, folder, Report()))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "fill-mask")
    assert 'pipeline("fill-mask"' in card.text
    assert "SentenceTransformer" not in card.text
    compile(card.text.split("```python\n")[1].partition("```")[0], "card", "exec")


def test_hub_data_sets_are_named_and_paths_are_not(tmp_path):
    run = fake_run(tmp_path)
    home = tmp_path / "private" / "teacher-model"
    tree = {
        **RECIPE,
        "teacher": {"model": str(home)},
        "corpus": {
            "sources": [
                {"kind": "hub", "name": "example-org/words"},
                str(tmp_path / "private" / "notes.txt"),
            ]
        },
    }
    (run / "recipe.yaml").write_text(
        recipe_files.dump_recipe(recipe_files.parse_recipe(tree, "test"))
    )
    card = ModelCard.load(model_card.write_card(run, model_folder(run), Report()))
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()
    assert card.data.datasets == ["example-org/words"]
    assert str(tmp_path) not in card.content
    assert "distilled with Potstill from teacher-model." in card.text
    assert "- Text: example-org/words, notes.txt." in card.text


def test_names_with_markup_stay_text(tmp_path):
    run = fake_run(tmp_path)
    evil = "<img src=x onerror=alert(1)>|`a` [b](c)\n\n# d\n---\n"
    config = run / "stages" / "02-distill" / "config.json"
    stored = json.loads(config.read_text())
    stored["stage"]["writes"] = evil
    config.write_text(json.dumps(stored))
    for number in ("03-evaluate", "04-benchmark"):
        path = run / "stages" / number / "result.json"
        path.write_text(path.read_text().replace('"student"', json.dumps(evil)))
    card = ModelCard.load(model_card.write_card(run, model_folder(run), Report(title=evil)))
    assert "<img" not in card.text
    assert "`a`" not in card.text
    assert "[b](c)" not in card.text
    escaped = "&lt;img src=x onerror=alert(1)&gt;\\|\\`a\\` \\[b\\](c) \\# d ---"
    assert f"\n# {escaped}\n" in card.text
    assert f"| | teacher | {escaped} |" in card.text
    # and the front matter is still one block of YAML
    front = yaml.safe_load(card.content.split("\n---\n")[0])
    assert front["model-index"][0]["name"] == " ".join(evil.split())
    assert len(front["model-index"][0]["results"]) == 2


def test_escape_markdown():
    assert model_card.escape_markdown("a_b*c & <d>") == "a\\_b\\*c &amp; &lt;d&gt;"
    assert model_card.escape_markdown("one\ntwo|") == "one two\\|"
    assert model_card.escape_markdown(3) == "3"


def test_missing_folder(tmp_path):
    run = fake_run(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere: the folder does not exist"):
        model_card.write_card(run, tmp_path / "nowhere", Report())


def test_the_start_is_that_of_the_published_student(tmp_path):
    """Two students were made; the last one is another."""
    run = fake_run(tmp_path)
    other = make_student_result() | {"layers": [1, 3], "to_type": "bert"}
    stage(run, "05-make_student", {"teacher": "teacher", "writes": "other"}, other)
    folder = run / "model"
    folder.mkdir(exist_ok=True)
    text = model_card.write_card(run, folder, Report()).read_text()
    assert "Layers: 0, 2, 5, counted from 0; bert to distilbert." in text


def test_the_card_is_of_the_weights_beside_it(tmp_path):
    """A student whose vocabulary was trimmed under another name: what lies there scores less."""
    run = fake_run(tmp_path)
    trimmed = {
        "from": "student",
        "pieces": {"before": 30522, "after": 19031},
        "parameters": {"before": 17_241_216, "after": 12_822_912},
        "coverage": {},
        "warnings": [],
    }
    stage(run, "06-trim_vocabulary", {"model": "student", "writes": "trimmed"}, trimmed)
    (run / "stages/03-evaluate").rename(run / "stages/07-evaluate")  # after it
    path = run / "stages/07-evaluate/result.json"
    found = json.loads(path.read_text())
    found["models"]["trimmed"] = {"retrieval": {"mrr": 0.8601}}
    found["retention"]["trimmed"] = {"retrieval.mrr": 0.8601 / 0.8812}
    path.write_text(json.dumps(found))
    card = ModelCard.load(model_card.write_card(run, model_folder(run), Report()))
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("mrr", 0.8601)]
    assert "The student keeps 97.6% of the teacher's MRR" in card.text
    assert "| | teacher | trimmed |" in card.text
    assert "19,031 of 30,522 word pieces kept" in card.text
    assert "soft targets" in card.text  # how it was distilled before
