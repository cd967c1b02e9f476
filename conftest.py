"""Tests never reach for the hub. Libraries read this when they are imported, so it comes first."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
