"""The kernels run in Triton's interpreter, and on a GPU where there is one."""

import importlib.util
import sys

import pytest
import torch
from torch import Tensor

from tests.masks import random_mask
from videomac_mm.sparse import PatchConv2d, VisiblePatches, ops, set_backend
from videomac_mm.sparse.ops import triton_depthwise

without_triton = pytest.mark.skipif(
    not triton_depthwise._SUPPORTED, reason='Triton is missing, or older than 3.3'
)
# The interpreter counts with arrays of one element, which NumPy would rather not convert.
pytestmark = pytest.mark.filterwarnings('ignore:Conversion of an array with ndim > 0')

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')


@pytest.fixture(
    params=[
        pytest.param('cpu', marks=without_triton),
        pytest.param('cuda', marks=[without_triton, without_gpu]),
    ]
)
def device(request, monkeypatch) -> str:
    if request.param == 'cpu':
        monkeypatch.setenv('TRITON_INTERPRET', '1')
    else:
        monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    return request.param


def layer_and_tiles(
    device: str,
    kernel: int,
    side: int,
    mask: Tensor,
    channels: int = 3,
    dtype: torch.dtype = torch.float64,
) -> tuple[PatchConv2d, Tensor, VisiblePatches]:
    patches = VisiblePatches(mask.to(device))
    conv = PatchConv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    conv = conv.to(device, dtype)
    set_backend(conv, 'torch')
    shape = patches.batch_size * patches.num_visible, channels, side, side
    tiles = torch.randn(shape, device=device, dtype=dtype)
    return conv, tiles.to(memory_format=torch.channels_last).requires_grad_(), patches


def depthwise_conv2d(
    tiles: Tensor, weight: Tensor, bias: Tensor | None, patches: VisiblePatches
) -> Tensor:
    before, groups = weight.shape[-1] // 2, len(weight)
    assert triton_depthwise.fits(tiles, weight, 1, before, 1, groups)
    return ops.conv2d(tiles, weight, bias, patches, before=before, groups=groups)


def values_and_gradients(out: Tensor, upstream: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize(
    'kernel, side, mask',
    [
        *[(kernel, side, random_mask(2, (2, 3), 3)) for kernel in (3, 5, 7) for side in (1, 2)],
        (7, 1, random_mask(1, (2, 4), 4)),  # reaches three tiles far
        (5, 3, random_mask(1, (2, 2), 2)),
        *[(kernel, 4, random_mask(1, (2, 2), 2)) for kernel in (3, 5, 7)],
        # Tiles of several blocks of 4×4, and of 5×5 blocks of one site.
        (3, 8, random_mask(1, (1, 2), 2)),
        *[(kernel, 8, random_mask(1, (1, 2), 1)) for kernel in (5, 7)],
        (3, 16, random_mask(1, (1, 2), 1)),
        (5, 5, random_mask(1, (1, 2), 1)),
    ],
    ids=lambda value: '' if isinstance(value, Tensor) else None,
)
def test_conv__equals_torch(device, monkeypatch, kernel, side, mask):
    monkeypatch.setattr(triton_depthwise, '_PROGRAMS', 2)  # so that sums go over many blocks
    conv, tiles, patches = layer_and_tiles(device, kernel, side, mask)
    wanted, upstream = conv(tiles, patches), torch.randn_like(tiles)
    got = depthwise_conv2d(tiles, conv.weight, conv.bias, patches)
    assert got.is_contiguous(memory_format=torch.channels_last)
    inputs = tiles, conv.weight, conv.bias
    torch.testing.assert_close(
        values_and_gradients(got, upstream, *inputs),
        values_and_gradients(wanted, upstream, *inputs),
    )


@pytest.mark.parametrize('channels, side, programs', [(5, 2, 2048), (33, 2, 1), (128, 3, 8)])
def test_conv__with_any_number_of_channels_and_programs(
    device, monkeypatch, channels, side, programs
):
    monkeypatch.setattr(triton_depthwise, '_PROGRAMS', programs)
    mask = random_mask(1, (1, 3), 2)
    conv, tiles, patches = layer_and_tiles(device, 3, side, mask, channels)
    upstream, inputs = torch.randn_like(tiles), (tiles, conv.weight)
    got = depthwise_conv2d(tiles, conv.weight, None, patches)
    wanted = conv(tiles, patches) - conv.bias[:, None, None]
    torch.testing.assert_close(
        values_and_gradients(got, upstream, *inputs),
        values_and_gradients(wanted, upstream, *inputs),
    )


def test_conv__of_a_batch_is_that_of_its_images(device):
    mask = random_mask(2, (2, 2), 3)
    conv, tiles, patches = layer_and_tiles(device, 5, 1, mask)
    weight, bias = conv.weight, conv.bias
    images = [
        depthwise_conv2d(image, weight, bias, VisiblePatches(one.to(device)))
        for image, one in zip(tiles.chunk(2), mask.split(1))
    ]
    batch = depthwise_conv2d(tiles, weight, bias, patches)
    assert torch.equal(batch, torch.cat(images))


def test_conv__takes_any_memory(device):
    mask = random_mask(1, (1, 2), 2)
    conv, tiles, patches = layer_and_tiles(device, 3, 2, mask)
    weight, bias = conv.weight, conv.bias
    wanted = depthwise_conv2d(tiles, weight, bias, patches)
    wanted = values_and_gradients(wanted, torch.ones_like(wanted), tiles, weight, bias)
    spread = tiles.detach().repeat(1, 2, 1, 2)[:, :3, :, ::2].copy_(tiles).requires_grad_()
    for other in (tiles.detach().contiguous().requires_grad_(), spread):
        got = depthwise_conv2d(other, weight, bias, patches)
        upstream = torch.ones((), device=device, dtype=got.dtype).expand_as(got)
        got = values_and_gradients(got, upstream, other, weight, bias)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_conv__sums_in_float32(device, dtype):
    mask = random_mask(1, (2, 2), 2)
    conv, tiles, patches = layer_and_tiles(device, 7, 2, mask, dtype=dtype)
    upstream, inputs = torch.randn_like(tiles), (tiles, conv.weight, conv.bias)
    got = depthwise_conv2d(*inputs, patches)
    got = values_and_gradients(got, upstream, *inputs)
    exact = PatchConv2d(3, 3, 7, padding=3, groups=3).to(device, torch.float64)
    exact.load_state_dict(conv.state_dict())
    tiles = tiles.detach().double().requires_grad_()
    wanted = exact(tiles, patches)
    wanted = values_and_gradients(wanted, upstream.double(), tiles, exact.weight, exact.bias)
    for one, other in zip(got, wanted):
        assert one.dtype == dtype
        # What is left is the rounding of the result, and in float32 that of the sum.
        rtol = {torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_conv__under_autocast_casts_tiles_and_keeps_weights(device, dtype):
    mask = random_mask(1, (2, 2), 2)
    conv, tiles, patches = layer_and_tiles(device, 3, 2, mask, dtype=torch.float32)
    inputs = tiles, conv.weight, conv.bias
    with torch.autocast(device, dtype):
        got = depthwise_conv2d(*inputs, patches)
    wanted = depthwise_conv2d(tiles.to(dtype), conv.weight, conv.bias, patches)
    assert got.dtype == dtype
    upstream = torch.randn_like(got)
    got = values_and_gradients(got, upstream, *inputs)
    wanted = values_and_gradients(wanted, upstream, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))
    assert {grad.dtype for grad in got[1:]} == {torch.float32}
    with torch.autocast(device, dtype):
        assert depthwise_conv2d(tiles.double(), *inputs[1:], patches).dtype == torch.float64


def test_conv__first_and_second_derivatives(device):
    conv, tiles, patches = layer_and_tiles(device, 3, 1, random_mask(1, (1, 2), 2), channels=1)
    inputs = tiles, conv.weight, conv.bias
    assert torch.autograd.gradcheck(
        lambda *args: depthwise_conv2d(*args, patches), inputs, fast_mode=True
    )
    assert torch.autograd.gradgradcheck(
        lambda *args: depthwise_conv2d(*args, patches).square(), inputs, fast_mode=True
    )


def test_operators__are_what_torch_expects(device):
    conv, tiles, patches = layer_and_tiles(device, 3, 1, random_mask(1, (2, 2), 2))
    near, window, operators = patches.neighbours(1), (1, 1, 1, 3), torch.ops.videomac_mm
    args = tiles, conv.weight, conv.bias, near, *window
    torch.library.opcheck(operators.conv2d.default, args)
    grad = torch.randn_like(tiles)
    torch.library.opcheck(operators.conv2d_input.default, (grad, conv.weight, near, 1, *window))
    torch.library.opcheck(operators.conv2d_weight.default, (tiles, grad, near, 3, *window))


@pytest.mark.parametrize('side', [1, 4])
@without_triton
def test_kernels__compile_for_gpus(monkeypatch, side):
    # The interpreter accepts more Python than the compiler, which needs no GPU.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    common = dict(C=96, P=side, S=triton_depthwise._block(side), K=3, REACH=1, LANES=32)
    for kernel, types in [
        (
            triton_depthwise._convolve_kernel,
            dict(tiles='*bf16', taps='*fp32', neighbours='*i32', out='*bf16'),
        ),
        (
            triton_depthwise._correlate_kernel,
            dict(tiles='*bf16', grads='*bf16', neighbours='*i32', out='*fp32', num='i32')
            | dict(steps='i32'),
        ),
    ]:
        source = ASTSource(
            triton_depthwise._compiled(kernel, False),
            signature=types | dict.fromkeys(common, 'constexpr'),
            constexprs=common,
        )
        built = triton_depthwise.triton.compile(
            source, target=GPUTarget('cuda', 90, 32), options=dict(num_warps=1)
        )
        assert built.asm['cubin'].startswith(b'\x7fELF')


def test_fits__asks_for_a_gpu_or_the_interpreter(monkeypatch):
    given = torch.zeros(1, 2, 1, 1), torch.zeros(2, 1, 3, 3), 1, 1, 1, 2
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    assert not triton_depthwise.fits(*given)
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert triton_depthwise.fits(*given) == triton_depthwise._SUPPORTED
    for other in ((1, 2, 1, 1), (1, 1, 2, 1), (2, 1, 1, 1), (1, 1, 1, 1)):
        assert not triton_depthwise.fits(*given[:2], *other)


def test_fits__without_triton_is_false(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setitem(sys.modules, 'triton', None)  # makes imports of it fail
    spec = importlib.util.spec_from_file_location('bare', triton_depthwise.__file__)
    bare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bare)
    assert not bare.fits(torch.zeros(1, 2, 1, 1), torch.zeros(2, 1, 3, 3), 1, 1, 1, 2)
