"""rms_norm and rotary: values and gradients against float64, transformers' own rounding, and behaviour inside torch."""

import pytest
import torch
from gradients import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES
from pairwise import pairwise

from sieve_kernels import act_mul, channel_sums, rms_norm, rotary
from sieve_kernels.pointwise import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("torch", "cpp", "triton")
every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)


def norm_inputs(rows, n, dtype=torch.float32):
    return [torch.randn(*rows, n, device=DEVICE).to(dtype), torch.rand(n, device=DEVICE).to(dtype)]


def rotary_inputs(b, h, g, t, d, dtype=torch.float32, angles=1):
    """q and k as attention has them: heads behind tokens in memory."""
    q, k = (torch.randn(b, t, heads, d, device=DEVICE).to(dtype).transpose(1, 2) for heads in (h, g))
    return [q, k, *(turn(torch.randn(angles, t, d, device=DEVICE)).to(dtype) for turn in (torch.cos, torch.sin))]


def check_norm(tensors):
    check_gradients(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: reference.rms_norm(x, w, 1e-5), tensors)


@pairwise(
    implementation=IMPLEMENTATIONS,
    dtype=DTYPES,
    rows_and_n=[((2, 17), 50), ((1,), 576), ((), 33), ((0,), 4), ((5,), 1)],
)
def test_norm(implementation, dtype, rows, n):
    check_norm(norm_inputs(rows, n, dtype))


@pairwise(
    implementation=IMPLEMENTATIONS,
    dtype=DTYPES,
    shape_and_angles=[((2, 4, 2, 5, 16), 2), ((3, 2, 1, 20, 6), 1), ((1, 1, 1, 1, 2), 1)],
)
def test_rotary(implementation, dtype, shape, angles):
    check_gradients(rotary, reference.rotary, rotary_inputs(*shape, dtype=dtype, angles=angles))


@pairwise(
    implementation=IMPLEMENTATIONS,
    dtype=DTYPES,
    activation=reference.ACTIVATIONS,
    shape=[(2, 17, 50), (1, 1, 600), (33,), (0, 4)],
)
def test_act_mul(implementation, dtype, activation, shape):
    """Of two tensors, and of the halves of one."""
    gate, up = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    functions = [lambda *t, f=f: f(*t, activation) for f in (act_mul, reference.act_mul)]
    check_gradients(*functions, [gate, up])
    check_gradients(*functions, torch.cat([gate, up], -1).chunk(2, -1))


@given(rows=st.lists(st.integers(0, 5), max_size=3), n=st.integers(1, 90))
@settings(max_examples=30, deadline=None)
def test_norm_of_any_shape(rows, n):
    check_norm(norm_inputs(rows, n, torch.float64))


@every
def test_many_rows(implementation):
    """Those that threads share on a CPU; the interpreter takes its time."""
    rows = 300 if implementation == "triton" and DEVICE == "cpu" else 3000
    check_norm(norm_inputs((rows,), 400))
    check_gradients(rotary, reference.rotary, rotary_inputs(4, 9, 3, rows // 10, 64))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_are_those_of_transformers(implementation, dtype):
    """Bit for bit where a rounding to 16 bits follows each step."""
    theirs_of = pytest.importorskip("transformers.models.llama.modeling_llama")
    norm = theirs_of.LlamaRMSNorm(64, eps=1e-5).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(40, 64, device=DEVICE).to(dtype)
    ours, theirs = rms_norm(x, norm.weight, 1e-5), norm(x)
    # On a GPU each sum has an order of its own: another last digit now and then, before the weight and behind it.
    torch.testing.assert_close(ours, theirs, rtol=max(2e-6, 2 * torch.finfo(dtype).eps), atol=1e-5)
    if dtype == torch.bfloat16:
        assert (ours != theirs).float().mean() <= (0.01 if DEVICE == "cuda" else 0)
    q, k, cos, sin = rotary_inputs(2, 4, 2, 9, 16, dtype)
    tolerance = {"rtol": 0, "atol": 0} if dtype == torch.bfloat16 else {}
    for ours, theirs in zip(rotary(q, k, cos, sin), theirs_of.apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
        assert ours.stride() == theirs.stride()


@every
def test_strided_arguments(implementation):
    x, weight = norm_inputs((30, 4), 40)
    check_norm([x.transpose(0, 1), torch.stack([weight, weight], 1)[:, 0]])
    check_norm([x[::2, :, ::2], weight[::2]])
    q, k, cos, sin = rotary_inputs(2, 4, 2, 10, 16)
    check_gradients(
        rotary,
        reference.rotary,
        [q[:, ::2], k[..., ::2, :].repeat(1, 1, 2, 1), cos.expand(2, -1, -1), sin.repeat(2, 1, 1)],
    )
    check_gradients(rotary, reference.rotary, [q[..., ::2], k[..., ::2], cos[..., ::2], sin[..., ::2].contiguous()])


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity_propagate(implementation, dtype):
    x, weight = norm_inputs((4,), 8, dtype)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    y, theirs = rms_norm(x, weight), reference.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(y, theirs, equal_nan=True)
    assert y[1].isnan().all()
    q, k, cos, sin = rotary_inputs(1, 2, 1, 4, 8, dtype)
    q[0, 0, 1, 2] = torch.nan
    turned, _ = rotary(q, k, cos, sin)
    assert turned.isnan().nonzero().tolist() == [[0, 0, 1, 2], [0, 0, 1, 6]]


@pairwise(
    implementation=("torch", "cpp"),
    dtype=DTYPES,
    shape=[(2, 3, 17), (1, 576), (0, 5), (4000, 130)],
    masked=[True, False],
)
def test_channel_sums(implementation, dtype, shape, masked):
    x = (torch.randn(shape, device=DEVICE) + 0.5).to(dtype)
    mask = torch.rand(x[..., 0].numel(), device=DEVICE) < 0.6 if masked else None
    exact = reference.channel_sums(x.double(), mask)
    for tokens in (x, torch.stack([x, x], -1)[..., 0]):
        sums = channel_sums(tokens, mask)
        assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(sums.double(), exact, rtol=1e-4, atol=1e-2)


def test_channel_sums_of_what_is_no_number():
    x = torch.ones(9, 4)
    x[2, 1], x[3, 2] = torch.nan, -torch.inf
    assert channel_sums(x).isfinite().tolist() == [[True, False, False, True]] * 3


def test_compiles_without_graph_breaks():
    def layer(x, weight, q, k, cos, sin):
        q, k = rotary(q, k, cos, sin)
        return rms_norm(act_mul(x, x), weight).sum() + (q * 2).sum() + k.square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for t in (4, 7):
        tensors = [x.requires_grad_() for x in norm_inputs((t,), 10) + rotary_inputs(2, 2, 1, t, 8)]
        expected, result = layer(*tensors), compiled(*tensors)
        torch.testing.assert_close(result, expected)
        for one, other in zip(*(torch.autograd.grad(value, tensors) for value in (result, expected)), strict=True):
            torch.testing.assert_close(one, other)
