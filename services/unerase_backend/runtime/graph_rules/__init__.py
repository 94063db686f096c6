"""Operations of networks as graphs of onnxruntime have them (`graph_writer`).

An operation without a rule, or with arguments that its rule does not know, leaves the module to torch.
"""

from typing import Any

import torch

from unerase_backend.runtime.graph_rules import elements, layers, places
from unerase_backend.runtime.graph_writer import Rule

_aten = torch.ops.aten

RULES: dict[Any, Rule] = elements.RULES | places.RULES | layers.RULES
"""What writes an operation (`graph_writer.Rule`), by the operation."""

CONSTANT = frozenset(
    {_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default, _aten.new_zeros.default}
)
"""The operations of which only the sizes of their arguments count."""
