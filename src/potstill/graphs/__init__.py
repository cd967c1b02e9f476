"""ONNX graphs: written, compared with their source, quantized.

`graph.py` writes a model as a graph, head and pooling included; `parity.py` is the gate that it
must pass; `quantization.py` has one function per method; `sensitivity.py` finds the layers that
must stay in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.graphs.graph import write_graph
    from potstill.graphs.parity import check_parity

__all__ = ["check_parity", "write_graph"]

__getattr__, __dir__ = lazily(__name__, {"graph": ("write_graph",), "parity": ("check_parity",)})
