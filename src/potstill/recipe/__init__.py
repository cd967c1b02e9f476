"""Describe a run as data: pydantic models of the YAML.

A recipe names a task, a teacher, text and an ordered list of stages. Each file holds one part of
it; `recipe.py` puts them together, and `files.py` finds, reads and explains a recipe file. Nothing
here imports torch, so a mistake in a recipe shows within a second. What ships is in `shipped/`.
"""

from __future__ import annotations

from potstill.recipe import objectives
from potstill.recipe.compression import (
    Export,
    GraphPruning,
    LayerRule,
    MakeStudent,
    Prune,
    Quantize,
    Student,
    StudentFamily,
    TrimVocabulary,
)
from potstill.recipe.config import Config
from potstill.recipe.data import Corpus, DatasetFolder, Files, HubDataset, Masking, Source, TaskData
from potstill.recipe.files import (
    RecipeError,
    checked,
    dump_recipe,
    load_recipe,
    parse_recipe,
    parse_yaml,
    shipped_recipes,
)
from potstill.recipe.measuring import Benchmark, Evaluate, Report, ScoredPairs, TextPass
from potstill.recipe.objectives import *  # noqa: F403
from potstill.recipe.recipe import Recipe, Teacher
from potstill.recipe.stages import (
    Stage,
    lineage,
    main_model,
    plain_twin,
    published_chain,
    repeated,
)
from potstill.recipe.tasks import ENDINGS, Head, Task
from potstill.recipe.training import Distill, Finetune, InBatch, Training, WeightedTeacher

__all__ = [
    "ENDINGS",
    "Benchmark",
    "Config",
    "Corpus",
    "DatasetFolder",
    "Distill",
    "Evaluate",
    "Export",
    "Files",
    "Finetune",
    "GraphPruning",
    "Head",
    "HubDataset",
    "InBatch",
    "LayerRule",
    "MakeStudent",
    "Masking",
    "Prune",
    "Quantize",
    "Recipe",
    "RecipeError",
    "Report",
    "ScoredPairs",
    "Source",
    "Stage",
    "Student",
    "StudentFamily",
    "Task",
    "TaskData",
    "Teacher",
    "TextPass",
    "Training",
    "TrimVocabulary",
    "WeightedTeacher",
    "checked",
    "dump_recipe",
    "lineage",
    "load_recipe",
    "main_model",
    "parse_recipe",
    "parse_yaml",
    "plain_twin",
    "published_chain",
    "repeated",
    "shipped_recipes",
]
__all__ += objectives.__all__
