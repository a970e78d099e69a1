import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.masks import expand, random_mask
from videomac_mm.sparse import PatchConv2d, VisiblePatches, cpu_kernels
from videomac_mm.sparse.functional import Gather, NormGelu, PairConv, ResponseNormMLP

needs_kernels = pytest.mark.skipif(
    cpu_kernels._library() is None, reason='no C++ compiler to build the CPU kernels with'
)
CHANNELS = (8, 24, 48)  # widest vectors or not, and lines of the cache or not


@pytest.fixture
def compile_again(monkeypatch, tmp_path):
    """As in a fresh process with an empty cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    cpu_kernels._library.cache_clear()
    yield tmp_path
    cpu_kernels._library.cache_clear()


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    used = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(used)


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(out, inputs, upstream.to(out))


@needs_kernels
@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('side', cpu_kernels.TILES)
@pytest.mark.parametrize('threads', [1, 2])
def test_depthwise__equals_the_conv_on_halos(side, channels, threads):
    mask = random_mask(2, (4, 5), 7)
    patches = VisiblePatches(mask)
    layers = [
        PatchConv2d(channels, channels, 7, padding=3, groups=channels, execution=execution)
        for execution in ('auto', 'halo')
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    tiles = torch.randn(14, side, side, channels).permute(0, 3, 1, 2).requires_grad_()
    with threads_of_torch(threads):
        results = [layer(tiles, patches) for layer in layers]
        grads = [
            gradients(out, [tiles, layer.weight, layer.bias]) for out, layer in zip(results, layers)
        ]

    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(*grads):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_depthwise__without_bias_and_twice_differentiated():
    patches = VisiblePatches(random_mask(1, (3, 3), 4))
    kernel, plain = (
        PatchConv2d(8, 8, 7, padding=3, groups=8, bias=False, execution=execution)
        for execution in ('auto', 'halo')
    )
    plain.load_state_dict(kernel.state_dict())
    tiles = torch.randn(4, 8, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()

    def second(layer: PatchConv2d) -> tuple[Tensor, ...]:
        (grad,) = torch.autograd.grad(
            layer(tiles, patches).square().sum(), tiles, create_graph=True
        )
        return torch.autograd.grad(grad.square().sum(), [tiles, layer.weight])

    for got, wanted in zip(second(kernel), second(plain)):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)


@needs_kernels
def test_depthwise__runs_agree_to_the_bit():
    patches = VisiblePatches(random_mask(3, (4, 4), 5))
    layer = PatchConv2d(16, 16, 7, padding=3, groups=16)
    tiles = torch.randn(15, 16, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()

    runs = [gradients(layer(tiles, patches), [tiles, layer.weight]) for _ in range(2)]

    assert all(torch.equal(*pair) for pair in zip(*runs))


CONVS = [  # with more than 384 outputs and 256 pairs at a tap; or more than 256 channels
    (16, 32, 8, dict(kernel_size=3, padding=1)),
    (48, 16, 4, dict(kernel_size=3, padding=1, bias=False)),
    (288, 32, 2, dict(kernel_size=3, padding=1)),
    (32, 272, 1, dict(kernel_size=3, padding=1)),
    (64, 96, 8, dict(kernel_size=3, padding=1, stride=2)),
    (32, 48, 2, dict(kernel_size=3, padding=1, stride=2, bias=False)),
    (16, 16, 4, dict(kernel_size=5, padding=2, stride=4)),
    (16, 32, 4, dict(kernel_size=7, padding=3, stride=2)),
]


@needs_kernels
@pytest.mark.parametrize('channels, channels_out, side, cfg', CONVS, ids=str)
@pytest.mark.parametrize('num_visible', [1, 7])  # alone, most taps are without pairs
def test_convolve_pairs__equals_dense_conv_on_zeroed_maps(
    monkeypatch, channels, channels_out, side, cfg, num_visible
):
    mask = random_mask(2, (4, 5), num_visible)
    patches = VisiblePatches(mask)
    conv = PatchConv2d(channels, channels_out, **cfg)
    maps = torch.randn(2, channels, 4 * side, 5 * side, requires_grad=True)
    inputs = [maps, *conv.parameters()]
    monkeypatch.delattr(VisiblePatches, 'windows')  # it is not by them

    sparse = patches.unpack(conv(patches.pack(maps), patches))
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    dense = F.conv2d(
        wide[0].masked_fill(expand(mask, maps.shape[-2:]), 0.0),
        *wide[1:],
        padding=conv.padding,
        stride=conv.stride,
    )
    dense = dense.masked_fill(expand(mask, dense.shape[-2:]), 0.0)

    torch.testing.assert_close(sparse.double(), dense, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(gradients(sparse, inputs), gradients(dense, wide)):
        torch.testing.assert_close(got.double(), wanted, atol=2e-4, rtol=1e-4)


@needs_kernels
def test_convolve_pairs__second_derivatives():
    patches = VisiblePatches(random_mask(1, (3, 3), 4))
    table, adjoint = patches.pairs(2, 3, 2, 1)
    narrow = [torch.randn(16, 16, requires_grad=True), torch.randn(32, 9, 16, requires_grad=True)]
    wide = [tensor.detach().double().requires_grad_() for tensor in narrow]

    def product(rows: Tensor, weight: Tensor) -> Tensor:
        taken = torch.cat([rows, rows.new_zeros(1, 16)])[table.long()]  # -1 is the last
        return torch.einsum('mtc,ntc->mn', taken, weight)

    def second(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    found = second(PairConv.apply(*narrow, table, adjoint), narrow)
    for got, wanted in zip(found, second(product(*wide), wide)):
        torch.testing.assert_close(got.double(), wanted, atol=1e-2, rtol=1e-4)


@needs_kernels
def test_convolve_pairs__agrees_to_the_bit_whatever_the_number_of_threads():
    patches = VisiblePatches(random_mask(3, (4, 4), 5))
    layer = PatchConv2d(32, 64, 3, padding=1)
    tiles = torch.randn(15, 32, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    runs = []
    for threads in (1, 1, 2, 3):
        with threads_of_torch(threads):
            out = layer(tiles, patches)
            runs.append([out, *gradients(out, [tiles, layer.weight])])

    assert all(torch.equal(*pair) for run in runs[1:] for pair in zip(runs[0], run))


def test_mixes__refuses_what_the_kernel_cannot_do():
    assert not cpu_kernels.mixes(torch.zeros(2, 8), 16)
    assert not cpu_kernels.mixes(torch.zeros(2, 16), 24)
    assert not cpu_kernels.mixes(torch.zeros(2, 16, dtype=torch.float64), 16)


@needs_kernels
@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('groups', [1, 3])
def test_response_norm_mlp__equals_its_parts(groups, channels):
    shapes = dict(x=(groups, 6, 16), weight1=(channels, 16), bias1=(channels,), gamma=(channels,))
    shapes |= dict(beta=(channels,), weight2=(10, channels), bias2=(10,))
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    wide = {name: value.requires_grad_() for name, value in values.items()}
    narrow = {name: value.detach().float().requires_grad_() for name, value in values.items()}

    def fused() -> Tensor:
        first = [narrow[name] for name in ('x', 'weight1', 'bias1', 'gamma', 'beta')]
        return ResponseNormMLP.apply(*first, 1e-6, narrow['weight2'], narrow['bias2'])

    got = fused()
    active = F.gelu(F.linear(wide['x'], wide['weight1'], wide['bias1']))
    response = active.square().sum(1, keepdim=True).sqrt()
    response = response / (response.mean(-1, keepdim=True) + 1e-6)
    normed = active * (1 + wide['gamma'] * response) + wide['beta']
    wanted = F.linear(normed, wide['weight2'], wide['bias2'])

    torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-5)
    for found, true in zip(
        gradients(got, list(narrow.values())), gradients(wanted, list(wide.values()))
    ):
        torch.testing.assert_close(found.double(), true, atol=1e-3, rtol=1e-4)
    for value in narrow.values():  # another way, in place of its own tensors
        value.requires_grad_(False)
    torch.testing.assert_close(fused(), got, atol=1e-5, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('with_residual', [False, True])
def test_norm_gelu__equals_its_parts(channels, with_residual):
    maps = 2, channels, 3, 2
    shapes = [maps, (channels,), (channels,), maps][: 3 + with_residual]
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    values[0] = values[0] * 3 + 5
    wide = [value.requires_grad_() for value in values]
    narrow = [value.detach().float().requires_grad_() for value in values]

    got = NormGelu.apply(*narrow, *[None] * (not with_residual), 1e-6)
    wanted = F.layer_norm(wide[0].movedim(1, -1), (channels,), *wide[1:3], 1e-6).movedim(-1, 1)
    wanted = F.gelu(wanted + wide[3] if with_residual else wanted)

    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)
    for found, true in zip(gradients(got, narrow), gradients(wanted, wide)):
        torch.testing.assert_close(found.double(), true, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_norm_gelu__lets_autograd_add_to_the_gradient_of_its_residual():
    x = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(8), torch.zeros(8)
    residual = x * 1.0
    out = NormGelu.apply(residual * 2.0, weight, bias, residual, 1e-6)
    with torch.profiler.profile() as profile:
        out.sum().backward()

    names = [event.name for event in profile.events()]
    assert 'aten::add_' in names and 'aten::add' not in names


@needs_kernels
def test_gelu__is_exact_everywhere():
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, 3.4e38])])
    x = F.pad(x, (0, -len(x) % 8)).view(1, -1, 8)
    out = torch.empty_like(x)

    bias, scale = torch.zeros(8), torch.ones(1, 1, 8)
    cpu_kernels.gelu_energy(x, bias, out)
    ones, zeros = torch.ones_like(x), torch.zeros_like(scale)
    slope, _ = cpu_kernels.gelu_backward_(ones, x, bias, scale, zeros)

    wide = x.double().requires_grad_()
    wanted = F.gelu(wide)
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), wide)
    torch.testing.assert_close(out.double(), wanted.detach(), atol=5e-7, rtol=5e-7)
    torch.testing.assert_close(slope.double(), wanted_slope, atol=1e-6, rtol=1e-6)


@needs_kernels
def test_gelu__lets_nan_through():
    x = torch.zeros(1, 2, 8)
    x[0, 0, 3] = float('nan')
    x[0, 1, 4] = float('inf')
    out = torch.empty_like(x)

    energy = cpu_kernels.gelu_energy(x, torch.zeros(8), out)

    assert out.isnan().nonzero().tolist() == [[0, 0, 3]]
    assert out[0, 1, 4] == float('inf')
    assert energy.isnan().nonzero().tolist() == [[0, 0, 3]]


@needs_kernels
def test_take__equals_gathering_in_torch():
    rows = torch.randn(5, 8, requires_grad=True)
    table = torch.tensor([[4], [0], [5], [2], [2], [1]])
    adjoint = torch.tensor([[1, 6], [5, 6], [3, 4], [6, 6], [0, 6]])

    def run(kernels: bool) -> tuple[Tensor, ...]:
        out = Gather.apply(rows, table, adjoint, -2.0, kernels)
        return out, *gradients(out, [rows])

    for found, wanted in zip(run(True), run(False)):
        torch.testing.assert_close(found, wanted)


def test_available__refuses_what_the_kernels_cannot_do():
    assert not cpu_kernels.available(torch.zeros(2, 8, dtype=torch.float64))
    assert not cpu_kernels.available(torch.zeros(2, 12))
    assert not cpu_kernels.available(torch.zeros(2, 8, device='meta'))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert not cpu_kernels.available(torch.zeros(2, 8))


@needs_kernels
@pytest.mark.parametrize(
    'weight',
    [torch.ones(8, dtype=torch.float64), torch.ones(8, dtype=torch.bfloat16), torch.ones(16)[::2]],
    ids=['float64', 'bfloat16', 'strided'],
)
def test_kernels__refuse_memory_that_they_would_misread(weight):
    with pytest.raises(TypeError, match='contiguous tensors of float32'):
        cpu_kernels.norm_gelu(torch.randn(3, 8), weight, torch.ones(8), None, 1e-6)


@needs_kernels
def test_library__is_compiled_once(compile_again):
    compiler = shutil.which('g++')
    library = cpu_kernels._build(compiler)
    time = library.stat().st_mtime_ns

    assert library.parent == compile_again / 'videomac_mm'
    assert cpu_kernels._build(compiler) == library
    assert library.stat().st_mtime_ns == time
    assert list(library.parent.iterdir()) == [library]


@needs_kernels
def test_library__is_compiled_by_gcc_where_cxx_cannot(monkeypatch, compile_again):
    compiler = compile_again / 'clang++'
    compiler.write_text('#!/bin/sh\necho "undefined reference to __kmpc" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))

    assert cpu_kernels.available(torch.zeros(2, 8))


@pytest.mark.parametrize('what', ['missing', 'broken'])
def test_library__that_cannot_be_had_is_named_and_done_without(monkeypatch, compile_again, what):
    compiler = compile_again / 'compiler'
    compiler.write_text('#!/bin/sh\necho "cannot compile" >&2\nexit 1\n')
    compiler.chmod(0o755)
    found = str(compiler) if what == 'broken' else None
    monkeypatch.setattr(cpu_kernels.shutil, 'which', lambda name: found)
    patches = VisiblePatches(random_mask(1, (3, 3), 3))
    layer = PatchConv2d(8, 8, 7, padding=3, groups=8)
    tiles = torch.randn(3, 8, 2, 2)

    reason = 'no C\\+\\+ compiler' if what == 'missing' else 'cannot compile'
    with pytest.warns(UserWarning, match=f'without its CPU kernels.*{reason}'):
        out = layer(tiles, patches)

    assert out.shape == tiles.shape
    assert not cpu_kernels.available(tiles.permute(0, 2, 3, 1))
