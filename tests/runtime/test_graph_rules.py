"""Each rule against torch's operation, with other numbers of rows than it was written with."""

from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from unerase_backend.runtime import graphs
from unerase_backend.runtime.graph_rules import RULES
from unerase_backend.runtime.graph_writer import ROWS, GraphWriter, UnknownOperationError, Value

aten = torch.ops.aten

Operation = Callable[[Tensor, Tensor], Tensor]


def in_place(pixels: Tensor, tokens: Tensor) -> Tensor:
    changed = pixels * 2
    changed += -3 * pixels
    return changed.mul_(0.5).add_(1.0).relu_()


def gates(pixels: Tensor, tokens: Tensor) -> Tensor:
    value, gate = LINEAR(tokens).chunk(2, dim=-1)
    return value * functional.gelu(gate)


def heads(tokens: Tensor) -> Tensor:
    return tokens.view(len(tokens), -1, 2, 4).transpose(1, 2)


def attention(pixels: Tensor, tokens: Tensor) -> Tensor:
    x = heads(tokens)
    return functional.scaled_dot_product_attention(x, x * 2, x + 1).transpose(1, 2).reshape(len(tokens), -1, 8)


def causal(pixels: Tensor, tokens: Tensor) -> Tensor:
    x = heads(tokens)
    return functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def masked(pixels: Tensor, tokens: Tensor) -> Tensor:
    x = heads(tokens)
    mask = (tokens.mean(-1) * 9)[:, None, None, :].expand(-1, 2, 5, -1)
    return functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def class_token(pixels: Tensor, tokens: Tensor) -> Tensor:
    """As vision transformers begin: the same token for all rows, before those of each."""
    whole = torch.cat([TOKEN.expand(len(tokens), -1, -1), tokens], 1) + EMBEDDING(torch.arange(6))[None]
    return whole[:, 0]


def probe(pixels: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([TOKEN.repeat(len(tokens), 1, 1), tokens], dim=1)


torch.manual_seed(0)
LINEAR, EMBEDDING = nn.Linear(8, 12), nn.Embedding(6, 8)
TOKEN = nn.Parameter(torch.randn(1, 1, 8))
GROUPED, LAYERED, BATCHED = nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.BatchNorm2d(4)
CONVOLUTION, DEPTHWISE = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, groups=4)
MODULE = nn.ModuleList(
    [LINEAR, EMBEDDING, GROUPED, LAYERED, BATCHED, CONVOLUTION, DEPTHWISE, nn.ParameterList([TOKEN])]
)
for each in (GROUPED, LAYERED, BATCHED):
    nn.init.normal_(each.weight)
    nn.init.normal_(each.bias)
MODULE.eval().requires_grad_(False)

OPERATIONS: dict[str, Operation] = {
    "sums": lambda pixels, tokens: 1 - (pixels + 2) * pixels / (pixels.square().mean(1, keepdim=True) + 1),
    "numbers": lambda pixels, tokens: aten.div.Scalar(aten.mul.Scalar(aten.sub.Scalar(pixels, 1.5), 3), 2) + 1,
    "added numbers": lambda pixels, tokens: aten.add.Scalar(pixels, 2.5).sum((2, 3)),
    "copies": lambda pixels, tokens: aten._to_copy(aten.alias(pixels.clone().detach()), dtype=torch.float32),
    "functions": lambda pixels, tokens: pixels.sin() + pixels.cos() * pixels.exp() - pixels.tanh().sigmoid().neg(),
    "roots": lambda pixels, tokens: (pixels.square() + 1).rsqrt() + (pixels.square() + 2).sqrt(),
    "activations": lambda pixels, tokens: functional.silu(pixels) + pixels.relu() + functional.relu6(3 * pixels),
    "gelu": lambda pixels, tokens: functional.gelu(pixels) + functional.gelu(pixels * 3, approximate="tanh"),
    "in place": in_place,
    "pieces": lambda pixels, tokens: torch.cat([*pixels.split([1, 3], 1)[::-1], pixels[:, 1:3]], 1),
    "columns": lambda pixels, tokens: torch.stack((*tokens.unbind(1)[:2], tokens[:, -1]), -1),
    "rows of a stack": lambda pixels, tokens: torch.stack([tokens, tokens * 2], 1).flatten(1, 2),
    "axes": lambda pixels, tokens: pixels.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1).squeeze(1),
    "borders": lambda pixels, tokens: functional.pad(pixels, (1, 2, 3, 0), value=0.5),
    "enlarged": lambda pixels, tokens: functional.interpolate(pixels, scale_factor=2.0, mode="nearest"),
    "shuffled": lambda pixels, tokens: functional.pixel_shuffle(pixels, 2),
    "gates": gates,
    "linear": lambda pixels, tokens: LINEAR(tokens) + functional.linear(tokens, LINEAR.weight),
    "convolution": lambda pixels, tokens: CONVOLUTION(pixels),
    "depthwise": lambda pixels, tokens: DEPTHWISE(pixels),
    "largest": lambda pixels, tokens: functional.max_pool2d(pixels, 3, stride=2, padding=1),
    "means": lambda pixels, tokens: functional.avg_pool2d(pixels, 2) + functional.avg_pool2d(pixels, 3, 2, 1),
    "batch norm": lambda pixels, tokens: BATCHED(pixels),
    "layer norm": lambda pixels, tokens: LAYERED(tokens) + functional.layer_norm(tokens, (8,)),
    "group norm": lambda pixels, tokens: GROUPED(pixels) + functional.group_norm(pixels, 2),
    "attention": attention,
    "masked attention": masked,
    "softmax": lambda pixels, tokens: tokens.softmax(-1) @ tokens.transpose(1, 2).softmax(1),
    "attention without heads": lambda pixels, tokens: functional.scaled_dot_product_attention(tokens, tokens, tokens),
    "class token": class_token,
    "probe": probe,
}


def drawn(rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    sizes = {"pixels": (rows, 4, 6, 6), "tokens": (rows, 5, 8)}
    return {name: torch.randn(size, generator=draw) for name, size in sizes.items()}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_rule_writes_what_torch_computes(name: str) -> None:
    operation = OPERATIONS[name]
    graph = graphs.open_graph(graphs.written(operation, MODULE, drawn(ROWS)), MODULE, drawn(ROWS), 1)
    for rows in (1, 2, 7, ROWS + 1):
        given = drawn(rows)
        torch.testing.assert_close(graph(given), operation(**given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        (
            lambda pixels, tokens: functional.scaled_dot_product_attention(*[heads(tokens)] * 3, is_causal=True),
            "causal",
        ),
        (lambda pixels, tokens: functional.avg_pool2d(pixels, 2, divisor_override=3), "divisor"),
        (lambda pixels, tokens: pixels.repeat(1, 2, 1, 1), "repetition"),
        (lambda pixels, tokens: functional.batch_norm(pixels, None, None, training=True), "batch norm"),
        (lambda pixels, tokens: torch.zeros(ROWS, 4, 6, 6).add_(pixels), "add_"),
        (lambda pixels, tokens: tokens.view(1, ROWS, 40).repeat(1, 1, ROWS).view(ROWS, ROWS, 40), "repetition"),
        (lambda pixels, tokens: (tokens @ tokens.flatten(0, 1).t()).view(-1, 5, ROWS, 5), "do not tell which"),
        (lambda pixels, tokens: pixels + torch.arange(ROWS)[:, None, None, None], "different rows"),
    ],
)
def test_what_a_rule_does_not_know_is_refused(operation: Operation, what: str) -> None:
    with pytest.raises(UnknownOperationError, match=what):
        graphs.written(operation, MODULE, drawn(ROWS))


def test_every_rule_is_compared_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def watched(operation: object) -> Callable[..., object]:
        def write(*given: object, **named: object) -> object:
            used.add(operation)
            return rule(*given, **named)

        rule = RULES[operation]
        return write

    for operation in list(RULES):
        monkeypatch.setitem(RULES, operation, watched(operation))
    for operation in OPERATIONS.values():
        graphs.written(operation, MODULE, drawn(ROWS))
    assert " ".join(sorted(map(str, set(RULES) - used))) == ""


def test_one_shape_after_another_is_written_once() -> None:
    def operation(pixels: Tensor, tokens: Tensor) -> Tensor:
        return tokens.flatten(0, 1).view(-1, 5, 8).flatten(1).view(-1, 4, 10) + 1

    content = graphs.written(operation, MODULE, drawn(ROWS))
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert kinds == ["Reshape", "Add", "Identity"]
    graph = graphs.open_graph(content, MODULE, drawn(ROWS), 1)
    assert torch.equal(graph(drawn(3)), operation(**drawn(3)))


def test_what_has_unknown_sizes_is_brought_into_those_of_a_number() -> None:
    writer = GraphWriter()
    writer.reshaped(Value(writer, "of one element"), ())
    assert [node.op_type for node in writer.nodes] == ["Reshape"]
