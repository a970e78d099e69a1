"""What all algorithms share: masks, inputs, and steps that never wait for the device."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.masks import random_mask
from tests.test_models import test_cmae_v, test_videomae
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches

CONVNEXT = dict(
    type='videomac_mm.SparseConvNeXt',
    arch=dict(depths=[1, 1, 1, 1], channels=[4, 6, 8, 16]),
    use_grn=True,
    layer_scale_init_value=0.0,
    stage_norm='inline',
)
RESNET = dict(type='videomac_mm.SparseResNet', depth=18, base_channels=2, stem_channels=4)
CONV_VIT = dict(
    type='videomac_mm.ConvVisionTransformer',
    img_size=48,
    embed_dims=(8, 12, 12),
    depths=(1, 1, 1),
    num_heads=3,
    num_frames=4,
    multi_scale_fusion=True,
    use_mean_pooling=False,
)


def videomac(backbone: dict) -> dict:
    return dict(
        type='videomac_mm.VideoMAC',
        backbone=backbone,
        neck=dict(type='videomac_mm.MaskTokenDecoder', in_channels=16, embed_dims=8),
        head=dict(type='videomac_mm.PixelHead'),
    )


def without_preprocessor(cfg: dict, kind: str) -> dict:
    del cfg['data_preprocessor']
    return dict(cfg, type=kind)


def videomae(**parts: dict) -> dict:
    return without_preprocessor(test_videomae.parts(**parts), 'videomac_mm.VideoMAE')


def motionmae() -> dict:
    cfg = videomae(neck=dict(pred_dims=(384, 192)), head=test_videomae.BOTH)
    return dict(cfg, type='videomac_mm.MotionMAE')


def cmae_v() -> dict:
    return without_preprocessor(test_cmae_v.parts(), 'videomac_mm.CMAEV')


def cmae_v_of_convs(kernel: tuple[int, int, int]) -> dict:
    patches = dict(patch_size=16)
    cfg = test_cmae_v.parts(neck=dict(pred_dims=(1536,)), head=patches, mask_generator=patches)
    cfg['backbone'] = dict(CONV_VIT, conv_kernel=kernel)
    return without_preprocessor(cfg, 'videomac_mm.CMAEV')


# Configs, shapes of inputs, grids of masks.
CASES = {
    'VideoMAC-ConvNeXt': (videomac(CONVNEXT), (2, 1, 3, 2, 96, 64), (3, 2)),
    'VideoMAC-ResNet': (videomac(RESNET), (2, 1, 3, 2, 96, 64), (3, 2)),
    'VideoMAE': (videomae(), (2, 1, 3, 4, 24, 24), (2, 3, 3)),
    'MotionMAE': (motionmae(), (2, 1, 3, 4, 24, 24), (2, 3, 3)),
    'CMAE-V': (cmae_v(), (3, 2, 3, 4, 24, 24), (2, 3, 3)),
    'CMAE-V-ConvViT': (cmae_v_of_convs((1, 5, 5)), (3, 2, 3, 4, 48, 48), (2, 3, 3)),
    'CMAE-V-ConvViT-3d': (cmae_v_of_convs((3, 5, 5)), (3, 2, 3, 4, 48, 48), (2, 3, 3)),
}


@pytest.fixture(params=CASES)
def case(request) -> tuple[nn.Module, Tensor, tuple[int, ...]]:
    """A small model, its inputs, and the grid of its masks."""
    cfg, shape, grid = CASES[request.param]
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    return model.train().double(), torch.randn(shape, dtype=torch.float64), grid


# -------------------------------------------------------------- waiting for the device


class Watch(TorchDispatchMode):
    """Note operators for which the CPU would wait, if the tensors were on a GPU."""

    READS = ('_local_scalar_dense', 'nonzero', 'nonzero_static', 'equal', 'masked_select')

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function: Callable, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        used = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        by_bool = name.startswith('index') and any(x.dtype == torch.bool for x in used)
        # Copies from the CPU wait too, as it has no pinned memory here.
        is_copy = used and len({x.device for x in (*used, *made)}) > 1
        if name in self.READS or by_bool or is_copy:
            self.found.append(str(function))
        return out


def test_watch__finds_what_waits():
    x = torch.arange(4.0)
    for wait in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: torch.equal(x, x),
        lambda: x.masked_select(x > 1),
        lambda: x.to('meta'),
    ):
        with Watch() as watch:
            wait()
        assert watch.found
    with Watch() as watch:
        x.where(x > 1, 0).sum().exp()
        x[torch.tensor([1, 2])]
    assert not watch.found


def test_step__reads_no_number_from_the_device(case):
    model, inputs, _ = case
    with Watch() as watch:
        sum(model.loss(inputs).values()).backward()
    assert not watch.found


def test_step__runs_where_there_are_no_numbers_and_copies_nothing_there(case):
    # Tensors on the meta device have a shape and no values: reading one raises, by ``tolist``
    # too, which is no operator that `Watch` could see.
    model, inputs, _ = case
    model.to('meta')
    with Watch() as watch:
        losses = model.loss(inputs.to('meta', copy=True))
        sum(losses.values()).backward()
    assert watch.found == ['aten._to_copy.default']  # that of the inputs
    for name, param in model.named_parameters():
        assert param.grad.shape == param.shape, name


@pytest.mark.parametrize('name', ['VideoMAC-ConvNeXt', 'VideoMAE'])
def test_compile__makes_one_graph_with_the_same_gradients(name):
    cfg, shape, _ = CASES[name]
    model, inputs = MODELS.build(copy.deepcopy(cfg)), torch.randn(shape)
    model.init_weights()
    torch._dynamo.reset()
    found = torch._dynamo.explain(model.loss)(inputs)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    torch._dynamo.reset()
    results = []
    for loss in (model.loss, torch.compile(model.loss, backend='aot_eager')):
        torch.manual_seed(1)  # the same mask
        losses = loss(inputs)
        grads = torch.autograd.grad(sum(losses.values()), list(model.parameters()))
        results.append([*losses.values(), *grads])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('name', ['VideoMAC-ConvNeXt', 'VideoMAE'])
def test_compile__of_the_steps_of_a_run_makes_one_graph_for_all(name):
    cfg, shape, _ = CASES[name]
    model, inputs = MODELS.build(copy.deepcopy(cfg)), torch.randn(shape)
    model.init_weights()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model.loss, backend='aot_eager')
    losses = []
    for step in range(3):
        model.set_step(seed=0, step=step)
        got = compiled(inputs)
        model.set_step(seed=0, step=step)
        for key, value in model.loss(inputs).items():
            torch.testing.assert_close(got[key], value)
        losses.append(sum(got.values()).item())
    assert len(set(losses)) == 3
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1
    assert not torch._dynamo.utils.counters['graph_break']


# -------------------------------------------------------------------------------- masks


def test_step__of_a_run_has_its_own_mask_and_reads_no_number(case):
    model, inputs, _ = case
    model.set_step(seed=0, step=1)
    first = model.loss(inputs)
    torch.rand(1)
    with Watch() as watch:
        model.set_step(seed=0, step=2)
        second = model.loss(inputs)
        model.set_step(seed=0, step=1)
        again = model.loss(inputs)
    assert not watch.found
    assert first == again != second
    model.forget_step()
    assert model.loss(inputs) != first


def test_step__of_a_run_leaves_generators_of_your_own_alone(case):
    model, inputs, grid = case
    slots = grid[0] if len(grid) == 3 else 1
    mask = random_mask(len(inputs) * slots, grid[-2:], 2).view(-1, *grid)
    model.mask_generator = lambda _: mask
    model.set_step(seed=0, step=1)
    assert model.step_noise is None
    model.loss(inputs)


def test_loss__that_is_not_finite_makes_all_gradients_so(case):
    """Finite ones are those of mmengine, bit for bit."""
    model, inputs, _ = case
    parsed, _ = model.parse_losses(dict(loss_a=torch.tensor(0.3), loss_b=torch.tensor([0.1, 0.4])))
    assert parsed == torch.tensor(0.3) + torch.tensor([0.1, 0.4]).mean()
    weight = torch.ones(3, requires_grad=True)
    for bad in (torch.inf, torch.nan):
        total, log_vars = model.parse_losses(dict(loss_a=weight.sum(), loss_b=torch.tensor(bad)))
        total.backward()
        assert weight.grad.isnan().all()
        weight.grad = None


def test_mask__may_be_given_as_its_geometry(case):
    model, inputs, grid = case
    slots = grid[0] if len(grid) == 3 else 1  # as many patches are visible in each
    mask = random_mask(len(inputs) * slots, grid[-2:], 2).view(-1, *grid)
    losses = [model.loss(inputs, mask=given) for given in (mask, VisiblePatches(mask))]
    assert losses[0] == losses[1]
    model.eval()
    pictures = [model.reconstruct(inputs, given) for given in (mask, VisiblePatches(mask))]
    for name, picture in pictures[0].items():
        assert torch.equal(picture, pictures[1][name])
        assert picture.min() >= 0 and picture.max() <= 1


def test_generator__of_your_own_may_return_a_plain_mask(case):
    model, inputs, grid = case
    slots = grid[0] if len(grid) == 3 else 1
    mask = random_mask(len(inputs) * slots, grid[-2:], 2).view(-1, *grid)
    wanted = model.loss(inputs, mask=mask)
    model.mask_generator = lambda _: mask
    assert model.loss(inputs) == wanted
    model.mask_generator = lambda _: mask.float()
    with pytest.raises(TypeError, match='mask must be bool.*torch.float32'):
        model.loss(inputs)


# ------------------------------------------------------------------- data preprocessor


def test_preprocessor__has_a_default_that_normalises_by_imagenet(case):
    model, _, _ = case  # of a config without one
    preprocessor = model.data_preprocessor
    assert type(preprocessor).__name__ == 'ActionDataPreprocessor'
    assert preprocessor.format_shape == 'NCTHW'
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_preprocessor__that_is_given_is_used_as_it_is():
    cfg, plain = CASES['VideoMAE'][0], dict(type='mmaction.ActionDataPreprocessor')
    own = MODELS.build(dict(plain, mean=[1, 2, 3], std=[4, 5, 6], format_shape='NCTHW'))
    assert MODELS.build(dict(cfg, data_preprocessor=own)).data_preprocessor is own
    assert not MODELS.build(dict(cfg, data_preprocessor=plain)).data_preprocessor._enable_normalize
