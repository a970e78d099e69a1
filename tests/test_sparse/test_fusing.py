"""Layers that are computed together mean what they mean one by one."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from tests.masks import random_mask
from videomac_mm.registry import MODELS
from videomac_mm.sparse import LayerNorm2d, PatchConv2d, VisiblePatches, is_plain, set_backend

SIXTEENS = dict(depths=[1, 1, 1, 1], channels=[16, 16, 16, 16])
NETWORKS = dict(
    convnext=dict(type='SparseConvNeXt', arch=SIXTEENS, use_grn=True, stage_norm='inline'),
    convnext_v1=dict(type='SparseConvNeXt', arch=SIXTEENS, stage_norm='inline'),
    resnet=dict(
        type='SparseResNet', depth=18, base_channels=16, stem_channels=16, variant='videomac'
    ),
    resnet_standard=dict(type='SparseResNet', depth=18, base_channels=16, stem_channels=16),
)
MASK = random_mask(2, (3, 3), 4)


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Module:
    torch.manual_seed(0)
    network = MODELS.build(NETWORKS[request.param])
    for param in network.parameters():  # what starts at zero would hide mistakes
        nn.init.normal_(param, std=0.5 if param.ndim == 1 else 0.2)
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def leaves(network: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in network.named_modules() if not list(layer.children())}


def assert_near(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    scale = wanted.abs().max().clamp(min=1e-6)
    torch.testing.assert_close(got / scale, wanted / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize('mask', [MASK, None], ids=['masked', 'dense'])
def test_hooks__of_every_leaf_fire(network, images, mask):
    plain, fired = network(images, mask)[-1], set()
    for name, layer in leaves(network).items():
        layer.register_forward_hook(lambda *_, name=name: fired.add(name))
    hooked = network(images, mask)[-1]
    assert fired == set(leaves(network))
    assert_near(hooked, plain)


def test_hooks__for_all_modules_fire(network, images):
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: called.append(layer))
    try:
        network(images, MASK)
    finally:
        handle.remove()
    assert set(leaves(network).values()) <= set(called)


def test_hooks__that_change_values_count(network, images):
    name, layer = next(
        item for item in leaves(network).items() if isinstance(item[1], nn.GELU | nn.ReLU)
    )
    plain = network(images, MASK)[-1]
    layer.register_forward_hook(lambda _, args, out: out * 0.5)
    assert not torch.allclose(network(images, MASK)[-1], plain, rtol=1e-3)


class Adapter(nn.Linear):
    """A linear layer with one of low rank beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down @ self.up


def test_adapter__in_a_linear_layer_is_used_and_learns(images):
    torch.manual_seed(0)
    network = MODELS.build(NETWORKS['convnext'])
    nn.init.normal_(network.stages[2][0].grn.gamma)
    linear = network.stages[2][0].pointwise_conv1
    linear.__class__ = Adapter
    linear.down = nn.Parameter(torch.randn(16, 2) * 0.3)
    linear.up = nn.Parameter(torch.randn(2, 64) * 0.3)
    everything = torch.zeros(2, 3, 3, dtype=torch.bool)

    masked, dense = network(images, everything)[-1], network(images)[-1]
    assert_near(masked, dense)
    grads = [torch.autograd.grad(out.square().sum(), linear.up)[0] for out in (masked, dense)]
    assert grads[0].abs().sum() > 0
    assert_near(*grads, tolerance=1e-3)


@pytest.mark.parametrize('name', ['convnext', 'resnet'])
def test_activation__replaced_after_construction_is_used(name, images):
    torch.manual_seed(0)
    network = MODELS.build(NETWORKS[name]).eval()
    everything = torch.zeros(2, 3, 3, dtype=torch.bool)
    for module in network.modules():
        for child, layer in module.named_children():
            if isinstance(layer, nn.GELU):
                setattr(module, child, nn.SiLU())
    assert_near(network(images, everything)[-1], network(images)[-1])


@pytest.mark.parametrize('affine', [dict(bias=False), dict(elementwise_affine=False)], ids=str)
@pytest.mark.parametrize('name', ['convnext', 'resnet'])
def test_norm__without_parameters_is_no_crash(name, affine, images):
    torch.manual_seed(0)
    norm = dict(type='videomac_mm.LN2d', eps=1e-6, **affine)
    network = MODELS.build(dict(NETWORKS[name], norm_cfg=norm)).eval()
    everything = torch.zeros(2, 3, 3, dtype=torch.bool)
    masked, dense = network(images, everything)[-1], network(images)[-1]
    assert_near(masked, dense)
    masked.sum().backward()


def test_linear__without_bias_is_no_crash(images):
    torch.manual_seed(0)
    network = MODELS.build(NETWORKS['convnext'])
    for block in (stage[0] for stage in network.stages):
        nn.init.normal_(block.grn.gamma), nn.init.normal_(block.grn.beta)
        block.pointwise_conv1 = nn.Linear(16, 64, bias=False)
        block.pointwise_conv2 = nn.Linear(64, 16, bias=False)
    everything = torch.zeros(2, 3, 3, dtype=torch.bool)
    masked, dense = network(images, everything)[-1], network(images)[-1]
    assert_near(masked, dense)
    masked.sum().backward()
    assert network.stages[0][0].pointwise_conv1.weight.grad.isfinite().all()


@pytest.mark.parametrize('mask', [MASK, None], ids=['masked', 'dense'])
def test_second_derivatives__equal_those_of_plain_torch(network, images, mask):
    def second(network: nn.Module) -> list[Tensor]:
        x = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(network(x, mask)[-1].square().sum(), x, create_graph=True)
        params = [param for param in network.parameters() if param.requires_grad]
        grads = torch.autograd.grad(grad.square().sum(), params, allow_unused=True)
        return [grad for grad in grads if grad is not None]

    exact = copy.deepcopy(network).double()
    images, narrow = images.double(), images
    wanted = second(exact)
    images = narrow
    found = second(network)
    assert len(found) == len(wanted) > 10
    for got, want in zip(found, wanted):
        assert_near(got.double(), want, tolerance=2e-3)


@pytest.mark.parametrize('mask', [MASK, None], ids=['masked', 'dense'])
def test_functional__gradients_equal_those_of_autograd(network, images, mask):
    params = dict(network.named_parameters())

    def loss(params: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(network, params, (images, mask))[-1].square().mean()

    found = torch.func.grad(loss)(params)
    wanted = torch.autograd.grad(loss(params), list(params.values()))
    for got, want in zip(found.values(), wanted):
        assert_near(got, want)


@pytest.mark.parametrize('mask', [MASK, None], ids=['masked', 'dense'])
def test_forward_mode__equals_finite_differences(network, images, mask):
    network, images = network.double(), images.double()
    direction = torch.randn_like(images)

    def output(x: Tensor) -> Tensor:
        return network(x, mask)[-1]

    _, by_transform = torch.func.jvp(output, (images,), (direction,))
    with torch.autograd.forward_ad.dual_level():
        dual = output(torch.autograd.forward_ad.make_dual(images, direction))
        by_duals = torch.autograd.forward_ad.unpack_dual(dual).tangent
    step = 1e-6
    wanted = (output(images + step * direction) - output(images - step * direction)) / (2 * step)
    assert_near(by_transform, wanted)
    assert_near(by_duals, wanted)


@pytest.mark.parametrize('mask', [MASK, None], ids=['masked', 'dense'])
def test_fake_tensors__have_the_shapes_of_real_ones_and_leave_nothing(network, images, mask):
    from torch._subclasses.fake_tensor import FakeTensorMode

    wanted = network(images, mask)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mask if mask is None else VisiblePatches.with_count(mode.from_tensor(mask), 4)
        outs = network(mode.from_tensor(images), fake)
        outs[-1].sum().backward()
    assert [out.shape for out in outs] == [out.shape for out in wanted]
    assert [out.stride() for out in outs] == [out.stride() for out in wanted]
    network.zero_grad()
    assert torch.equal(network(images, mask)[-1], wanted[-1])


def test_copies__and_pickled_networks_agree(network, images):
    wanted = network(images, MASK)[-1]
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(images, MASK)[-1], wanted)


def test_flops__of_a_mask_are_the_visible_share(network, images):
    counts = []
    for mask in (MASK, None):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(images, mask)
        counts.append(counter.get_total_flops())
    assert counts[0] / counts[1] == pytest.approx(4 / 9, rel=1e-3)


@pytest.mark.parametrize('mask', [MASK, None], ids=['masked', 'dense'])
def test_compile__makes_one_graph_with_equal_results(network, images, mask):
    from torch._dynamo.utils import counters

    patches = mask if mask is None else VisiblePatches(mask)
    wanted = network(images, patches)[-1]
    wanted_grads = torch.autograd.grad(wanted.square().sum(), list(network.parameters()))
    torch._dynamo.reset()
    counters.clear()

    found = torch.compile(network, backend='aot_eager')(images, patches)[-1]
    grads = torch.autograd.grad(found.square().sum(), list(network.parameters()))

    assert counters['stats']['unique_graphs'] == 1 and not counters['graph_break']
    assert_near(found, wanted)
    for got, want in zip(grads, wanted_grads):
        assert_near(got, want)


def test_backend__torch_equals_the_operators(network, images):
    results = []
    for backend in ('auto', 'torch'):
        set_backend(network, backend)
        out = network(images, MASK)[-1]
        results.append([out, *torch.autograd.grad(out.square().sum(), network.parameters())])
    for got, want in zip(*results):
        assert_near(got, want)


def test_is_plain__is_refused_by_whatever_changes_a_call():
    assert is_plain(nn.Linear(2, 2), nn.Linear)
    assert not is_plain(LayerNorm2d(2), nn.LayerNorm)
    assert not is_plain(PatchConv2d(2, 2, 1), nn.Conv2d)
    changes = [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
        lambda layer: setattr(layer, 'forward', F.relu),
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
        lambda layer: prune.l1_unstructured(layer, 'weight', 1),
    ]
    for change in changes:
        layer = nn.Linear(2, 2)
        change(layer)
        assert not is_plain(layer, nn.Linear)
