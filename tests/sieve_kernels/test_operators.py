"""What holds for every operator: gradients, memory, bits, torch's checks, its compiler, autocast, and bad arguments."""

import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from bad_arguments import BAD
from gradients import values_and_gradients
from operators import LAYERS, OPERATORS, Operator, outputs_of
from pairwise import pairwise

from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import training

LAYERS_AND_POPULATION = [*LAYERS, "lowrank_linear_population"] + [name for name in OPERATORS if "quantized" in name]


def pairs_of(names, among=None):
    """Each operator with each implementation that serves it (and is `among` some)."""
    return [(name, one) for name in names for one in OPERATORS[name].implementations if among is None or one in among]


def served(names):
    pairs = pairs_of(names)
    return pytest.mark.parametrize(("name", "implementation"), pairs, indirect=["implementation"])


every = served(OPERATORS)
layers = served(LAYERS_AND_POPULATION)
names = pytest.mark.parametrize("name", OPERATORS)


def subsets(operator: Operator, tensors) -> list[list[int]]:
    """Each tensor alone, and every second one."""
    leaves = operator.leaves(tensors)
    return [*([i] for i in leaves), leaves[::2], leaves[1::2] or leaves]


def laid_out(t: torch.Tensor | None, kind: str) -> torch.Tensor | None:
    """The same values with other strides."""
    if t is None or not t.dim():
        return t
    if kind == "every second":
        whole = torch.zeros([2 * size for size in t.shape], dtype=t.dtype, device=t.device)
        view = whole[(slice(None, None, 2),) * t.dim()]
        return view.copy_(t)
    if t.dim() == 1:
        return torch.stack([t, t], 1)[:, 0]
    if kind == "columns":
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    return torch.stack([t, t], -1)[..., 0] if t.dim() == 2 else t.transpose(0, 1).contiguous().transpose(0, 1)


@every
@pytest.mark.parametrize("kind", ["every second", "columns", "interleaved"])
def test_strided_arguments(name, implementation, kind, device):
    operator = OPERATORS[name]
    operator.check(*(laid_out(t, kind) for t in operator.make((5, 3), 72, 12, 5, device=device)))


@every
def test_rows_that_are_one(name, implementation, device):
    """x in which all rows are the same memory."""
    operator = OPERATORS[name]
    x, *rest = operator.make((4, 5), 40, 12, 5, device=device)
    operator.check(x[:1].expand(x.shape), *rest)


@every
def test_only_gradients_that_are_needed(name, implementation, device):
    operator = OPERATORS[name]
    tensors = operator.make((6,), 9, 5, 3, device=device)
    for wanted in subsets(operator, tensors):
        leaves = [t.detach().requires_grad_() if i in wanted else t for i, t in enumerate(tensors)]
        chosen = [leaves[i] for i in wanted]
        mine, theirs = (
            torch.autograd.grad(sum(y.sum() for y in outputs_of(f(*leaves))), chosen)
            for f in (operator.ours, operator.torchs)
        )
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other)


@names
def test_gradients_twice(name):
    operator = OPERATORS[name]
    tensors = operator.wide(operator.make((2, 2), 4, 3, 2))
    leaves = operator.leaves(tensors)

    def function(*trained):
        given = dict(zip(leaves, trained, strict=True))
        return tuple(outputs_of(operator.ours(*(given.get(i, t) for i, t in enumerate(tensors)))))

    trained = [tensors[i].requires_grad_() for i in leaves]
    assert torch.autograd.gradcheck(function, trained)
    assert torch.autograd.gradgradcheck(function, trained)


@layers
@pytest.mark.parametrize("rows", [(4,), (4, 3)])
@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
def test_nan_and_infinity_propagate(name, implementation, rows, device):
    operator = OPERATORS[name]
    x, *rest = operator.make(rows, 8, 6, 3, device=device)
    each = x.view(-1, x.shape[-1])
    bad, endless = len(each) // 3, len(each) // 2
    each[bad, 2], each[endless, 3] = torch.nan, torch.inf
    for y in outputs_of(operator.ours(x, *rest)):
        y = y.reshape(len(each), -1)
        assert y[bad].isnan().all()
        assert not y[endless].isfinite().any()
        assert y[[i for i in range(len(each)) if i not in (bad, endless)]].isfinite().all()


@layers
@pytest.mark.parametrize(
    ("dtype", "num_sms", "sizes"), [(torch.bfloat16, 1, ((66,), 33, 20, 9)), (torch.float32, 132, ((7,), 200, 12, 9))]
)
def test_same_input_same_bits(name, implementation, dtype, num_sms, sizes, pretend, device):
    """Of many rows, and of few with long inputs, whose sums are split where there are many processors."""
    operator = OPERATORS[name]
    pretend(num_sms=num_sms)
    tensors = operator.make(*sizes, dtype=dtype, device=device)
    upstreams = [torch.ones_like(y) for y in outputs_of(operator.ours(*tensors))]
    leaves = operator.leaves(tensors)
    first, second = (values_and_gradients(operator.ours, tensors, upstreams, leaves) for _ in range(2))
    assert all(map(torch.equal, first, second))


@layers
def test_offsets_beyond_32_bits(name, implementation):
    """A row 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    operator = OPERATORS[name]
    x, *rest = operator.make((3,), 16, 6, 3, dtype=torch.float16)
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided(x.shape, (1 << 30, *x.stride()[1:])).copy_(x)
    results = operator.ours(x, *rest), operator.definition(*operator.wide([x, *rest]))
    torchs = operator.torchs(x.contiguous(), *rest)
    for ours, exact, theirs in zip(*map(outputs_of, (*results, torchs)), strict=True):
        assert_accurate(ours, exact, theirs)


@names
def test_opcheck(name):
    operator = OPERATORS[name]
    tensors = operator.make((2, 5), 8, 6, 3)
    for i in operator.leaves(tensors):
        tensors[i].requires_grad_()
    for registered, arguments in operator.registered(tensors):
        torch.library.opcheck(getattr(torch.ops.sieve_kernels, registered), arguments)


@pytest.fixture
def trained(request, monkeypatch):
    """As if tensors were of many rows on a GPU, nothing asked for, and so many that kernels of ours serve."""
    if request.param:
        monkeypatch.delenv(dispatch.VARIABLE, raising=False)
        monkeypatch.setattr(training, "_many_on_gpu", lambda x: True)
        monkeypatch.setattr(training, "FEW_ELEMENTS", 0)
    return request.param


@pytest.mark.parametrize(
    ("name", "trained"),
    [*((name, False) for name in OPERATORS), *((name, True) for name in LAYERS)],
    indirect=["trained"],
)
def test_compiles_without_graph_breaks(name, trained):
    """One graph for every number of rows, our operator in it, forwards and backwards."""
    torch._dynamo.reset()  # which counts the graphs of a function, whatever it is given
    operator, graphs = OPERATORS[name], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def layer(x, *rest):
        return sum(y.square().sum() for y in outputs_of(operator.ours(x.relu(), *rest)))

    once = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (7, 9):  # unlike other sizes, which the compiler would take for the same
        tensors = operator.make((rows,), 12, 10, 3)
        leaves = [tensors[i].requires_grad_() for i in operator.leaves(tensors)]
        expected, result = layer(*tensors), compiled(*tensors)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(once(*tensors), expected)
        for one, other in zip(*(torch.autograd.grad(value, leaves) for value in (result, expected)), strict=True):
            torch.testing.assert_close(one, other)
    if not trained:
        assert len(graphs) == 1
        assert any("sieve_kernels." in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.parametrize("name", LAYERS_AND_POPULATION)
def test_autocast_as_linear(name):
    operator = OPERATORS[name]
    tensors = operator.make((4,), 8, 6, 3)
    leaves = [tensors[i].requires_grad_() for i in operator.leaves(tensors)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = outputs_of(operator.ours(*tensors))
        assert all(y.dtype == torch.float64 for y in outputs_of(operator.ours(*operator.wide(tensors))))
    narrow = [t.bfloat16() if i in operator.leaves(tensors) else t for i, t in enumerate(tensors)]
    exacts, torchs = operator.definition(*operator.wide(tensors)), operator.torchs(*narrow)
    for y, exact, theirs in zip(ys, outputs_of(exacts), outputs_of(torchs), strict=True):
        assert_accurate(y, exact, theirs)
    sum(y.float().sum() for y in ys).backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves)


@pairwise(
    name_and_implementation=pairs_of(OPERATORS, ("torch", "torch_gpu", "cpp")),
    dtype=[torch.bfloat16, torch.float32],
    rows=[(1, 1), (2, 3), (2, 80), (2, 600)],
)
def test_outputs_can_be_changed_in_place(name, implementation, rows, dtype, device):
    """Where gradients are wanted, as those of torch's own may."""
    if implementation == "torch_gpu" and rows == (2, 600):
        pytest.skip("blocks of tokens are the CPU's alone")
    operator = OPERATORS[name]
    x, *rest = operator.make(rows, 32, 24, 8, dtype=dtype, device=device)

    def gradient(tensors, in_place: bool) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        total = 0
        for output in outputs_of(operator.ours(leaf, *tensors)):
            changed = output.mul_(3).add_(1) if in_place else output * 3 + 1
            total = total + changed.float().square().sum()
        return torch.autograd.grad(total, leaf)[0]

    for tensors in (rest, operator.without_bias([x, *rest])[1:]):
        assert torch.equal(gradient(tensors, in_place=True), gradient(tensors, in_place=False))


@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, one) for name, refused in BAD.items() for one in refused.implementations],
    indirect=["implementation"],
)
def test_bad_arguments(name, implementation):
    refused = BAD[name]
    for error, change, text in refused.cases:
        with pytest.raises(error, match=text):
            refused.function(**refused.arguments() | change)
