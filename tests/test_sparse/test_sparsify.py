import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Conv2dAdaptivePadding, ConvModule, DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.masks import expand, random_mask
from videomac_mm.sparse import VisiblePatches, sparsify
from videomac_mm.sparse.masked_dense import masked_dense

LAYERS = {
    '3x3': lambda: nn.Conv2d(8, 8, 3, padding=1),
    '3x3-stride2': lambda: nn.Conv2d(8, 8, 3, 2, 1),
    '5x5-depthwise-dilated': lambda: nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
    'same': lambda: nn.Conv2d(8, 8, 3, padding='same'),
    'adaptive': lambda: Conv2dAdaptivePadding(8, 8, 3, 2, 1),
    'adaptive-5x5-depthwise': lambda: Conv2dAdaptivePadding(8, 8, 5, 2, 2, groups=8),
    'adaptive-stride1': lambda: Conv2dAdaptivePadding(8, 8, 3, 1, 1),
    'adaptive-1x1': lambda: Conv2dAdaptivePadding(8, 8, 1, 2),
    'max-pool': lambda: nn.MaxPool2d(3, 2, 1),
    'max-pool-ceil': lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    'avg-pool': lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    'upsample': lambda: nn.Upsample(scale_factor=2),
    'batch-norm': lambda: nn.BatchNorm2d(8),
    'squeeze-excite': lambda: SqueezeExcite(),
    'linear': lambda: ChannelsLast(nn.Linear(8, 8), nn.LayerNorm(8)),
    'empty': lambda: nn.Sequential(),
}


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x * self.conv(self.pool(x)).sigmoid()


class ChannelsLast(nn.Sequential):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Code(nn.Module):
    """A layer whose own code does something."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.function(x)


def network(*layers: nn.Module) -> nn.Sequential:
    """The layers between a stem and a last conv; random parameters and statistics."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), *layers, nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1)
    )
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5) if 'var' in name else nn.init.normal_(value, 0, 0.5)
    return net.double()


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 24, 16, dtype=torch.float64), random_mask(2, (3, 2), 2)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('layer', LAYERS)
def test_sparse__equals_masked_dense(layer, training):
    net = sparsify(network(LAYERS[layer]())).train(training)
    images, mask = pictures()
    sparse = net(images, mask)
    with masked_dense(net, mask):
        dense = net(images)
    params = list(net.parameters())
    grads = [torch.autograd.grad(out.square().sum(), params) for out in (sparse, dense)]
    assert len(params) >= 6
    for got, want in zip([sparse, *grads[0]], [dense, *grads[1]]):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('layer', LAYERS)
def test_dense__is_unchanged_bit_for_bit(layer):
    net = network(LAYERS[layer]()).float()
    sparse = sparsify(copy.deepcopy(net))
    assert list(sparse.state_dict()) == list(net.state_dict())
    images = torch.randn(2, 3, 23, 17)
    for training in (False, True):
        net.train(training), sparse.train(training)
        assert torch.equal(sparse(images), net(images))
    for first, second in zip(sparse.state_dict().values(), net.state_dict().values()):
        assert torch.equal(first, second)


def test_sparsify__works_in_place_and_keeps_class_parameters_and_mode():
    net = network(SqueezeExcite()).eval()
    params = dict(net.named_parameters())
    sparse = sparsify(net)
    assert sparse is net and isinstance(sparse, nn.Sequential) and not sparse.training
    assert all(param is params[name] for name, param in sparse.named_parameters())
    assert sparse.train() is sparse and sparse[1].training


def test_squeeze_excite__averages_the_visible_sites_of_an_image():
    net = sparsify(network(SqueezeExcite()))
    pool, patches = net[2].pool, VisiblePatches(random_mask(3, (2, 3), 2))
    tiles = torch.randn(6, 8, 4, 4, dtype=torch.float64)
    means = pool(tiles, patches)
    assert means.shape == (6, 8, 1, 1)
    wanted = tiles.view(3, 2, 8, 16).mean((1, 3))
    torch.testing.assert_close(means[::2, :, 0, 0], wanted)
    assert torch.equal(means[::2], means[1::2])


def test_drop_path__drops_images():
    net = sparsify(nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), DropPath(0.5)))
    nn.init.ones_(net[0].weight)
    kept = net(torch.ones(64, 3, 8, 8), random_mask(64, (2, 2), 2)).flatten(1)
    assert set(kept.sum(1).tolist()) == {0.0, 2 * 3 * 32.0}


def test_batch_norm__moves_its_statistics_by_visible_sites():
    net = sparsify(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=1.0))).double()
    images, mask = pictures()
    sites = net[0](images).permute(0, 2, 3, 1)[~expand(mask, (24, 16))[:, 0]]
    net(images, mask)
    torch.testing.assert_close(net[1].running_mean, sites.mean(0))
    torch.testing.assert_close(net[1].running_var, sites.var(0))


def test_mask__is_no_state():
    net = sparsify(network(SqueezeExcite())).eval()
    images, mask = pictures()
    wanted, dense = net(images, mask), net(images)
    before = {name: dict(layer.__dict__) for name, layer in net.named_modules()}
    with pytest.raises(RuntimeError):
        net(images[:, :1], mask)  # fails inside
    with pytest.raises(ValueError, match='tiles of side 1 cannot be strided by 2'):
        net(images[:, :, :3, :2], mask)
    assert torch.equal(net(images), dense)
    other = net(images, random_mask(2, (3, 2), 2, seed=3))
    assert torch.equal(net(images, mask), wanted) and not torch.equal(other, wanted)
    assert before == {name: dict(layer.__dict__) for name, layer in net.named_modules()}


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpoint__inside_recomputes_with_the_mask_of_its_forward(reentrant):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    plain = sparsify(network(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), SqueezeExcite())))
    cheap = sparsify(network(Checkpointed(nn.Conv2d(8, 8, 3, padding=1), SqueezeExcite())))
    cheap.load_state_dict(plain.state_dict())
    images, mask = pictures()
    grads = []
    for net in (plain, cheap):
        out = net(images, mask)
        net(images, random_mask(2, (3, 2), 2, seed=5)), net(images)  # before backward
        out.square().sum().backward()
        grads.append([param.grad for param in net.parameters()])
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want)


def test_checkpoint__of_a_replaced_forward_is_refused():
    net = sparsify(network(SqueezeExcite()))
    net[2].forward = net[2].forward
    images, mask = pictures()
    with pytest.raises(RuntimeError, match='forward of SqueezeExcite has been replaced.*with_cp'):
        net(images, mask)


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies__are_independent(duplicate):
    net = sparsify(network(SqueezeExcite())).eval()
    images, mask = pictures()
    wanted = net(images, mask)
    twin = duplicate(net)
    assert type(twin) is type(net)
    assert torch.equal(twin(images, mask), wanted)
    for param in net.parameters():
        param.data.zero_()
    assert torch.equal(twin(images, mask), wanted)


def test_hooks_and_compiled_modules__keep_working():
    net = sparsify(network(SqueezeExcite())).eval()
    images, mask = pictures()
    wanted, seen = net(images, mask), []
    net[2].compile(backend='aot_eager')
    net[2].conv.register_forward_hook(lambda layer, args, out: seen.append(out.shape))
    assert torch.equal(net(images, mask), wanted)
    assert seen == [(4, 8, 1, 1)]


def test_compile__gives_the_same():
    net = sparsify(network(SqueezeExcite())).eval()
    images, mask = pictures()
    compiled = torch.compile(net, backend='aot_eager')
    torch.testing.assert_close(compiled(images, mask), net(images, mask))
    torch.testing.assert_close(compiled(images), net(images))


@pytest.mark.parametrize(
    'layer, message',
    [
        (nn.Conv2d(8, 8, 3), r'2 \(Conv2d\): .*kernel 3, stride 1, padding 0'),
        (nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), r'2 \(Conv2d\): .*square windows'),
        (nn.Conv2d(8, 8, 2, padding='same'), r'2 \(Conv2d\): .*both sides'),
        (nn.Conv2d(8, 8, 3, 1, 1, padding_mode='reflect'), r'2 \(Conv2d\): .*reflect'),
        (nn.ConvTranspose2d(8, 8, 2, 2), r'2 \(ConvTranspose2d\): .*none of the known'),
        (nn.Sequential(nn.GroupNorm(2, 8)), r'2\.0 \(GroupNorm\): .*none of the known'),
        (nn.InstanceNorm2d(8), r'2 \(InstanceNorm2d\)'),
        (nn.Dropout2d(), r'2 \(Dropout2d\)'),
        (nn.AdaptiveAvgPool2d(2), r'2 \(AdaptiveAvgPool2d\): pooling to 2 sites'),
        (nn.AvgPool2d(3, 1, 1), r'2 \(AvgPool2d\): .*overlapping'),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), r'2 \(MaxPool2d\): .*ceil_mode'),
        (nn.Upsample(scale_factor=2, mode='bilinear'), r'2 \(Upsample\): .*nearest'),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else '',
)
def test_layer_that_cannot_be_carried__is_named(layer, message):
    net = network(layer)
    kinds = [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match='sparsify cannot carry ' + message):
        sparsify(net)
    assert kinds == [type(module) for module in net.modules()]
    assert not any('forward' in module.__dict__ for module in net.modules())


@pytest.mark.parametrize(
    'function',
    [
        lambda x: x * F.adaptive_avg_pool2d(x, 1),
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.flip(2),
        lambda x: x.flatten(2).softmax(-1).view_as(x),
    ],
    ids=['gate', 'pool', 'batch', 'flip', 'softmax'],
)
def test_code_that_looks_across_sites__is_named(function):
    block = nn.Sequential(nn.ReLU(), Code(function, nn.Conv2d(8, 8, 1)))
    with pytest.raises(ValueError, match=r'2\.1 \(Code\): its own code does not work site by'):
        sparsify(network(block))
    inside = Code(lambda x: x, Code(function, nn.ReLU()), nn.Conv2d(8, 8, 1))
    with pytest.raises(ValueError, match=r'2\.layers\.0 \(Code\): its own code does not work'):
        sparsify(network(inside))


def test_layers_outside_of_the_module_tree__are_noticed():
    class Hiding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.convs = [self.conv]

        def forward(self, x):
            return self.convs[0](x)

    with pytest.raises(ValueError, match=r'2\.conv \(Conv2d\): .*other ways than as a'):
        sparsify(network(Hiding()))


def test_convs_fused_with_their_norm__are_refused():
    fused = ConvModule(8, 8, 3, padding=1, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True)
    with pytest.raises(ValueError, match=r'2 \(ConvModule\): its forward has been replaced'):
        sparsify(network(fused))
    net = sparsify(network(ConvModule(8, 8, 3, padding=1, norm_cfg=dict(type='BN'))))
    net[2].turn_on_efficient_conv_bn_eval()
    images, mask = pictures()
    with pytest.raises(RuntimeError, match='forward of ConvModule has been replaced after'):
        net(images, mask)


def test_classifier__is_refused_by_its_global_pooling():
    layers = [*network(), nn.AdaptiveAvgPool2d(1)]
    with pytest.raises(ValueError, match=r'4 \(AdaptiveAvgPool2d\): .*pooled globally'):
        sparsify(nn.Sequential(*layers))
    with pytest.raises(ValueError, match=r'layers\.4 \(AdaptiveAvgPool2d\): .*pooled globally'):
        sparsify(Code(lambda x: x.flatten(1), *layers))


def test_patches__smaller_than_the_stride_are_named():
    net = network(nn.MaxPool2d(7, 7))
    with pytest.raises(ValueError, match='with patches of 32 pixels it fails'):
        sparsify(net)
    net = sparsify(net, patch_size=28)
    images = torch.randn(1, 3, 28, 28).double()
    assert net(images, random_mask(1, (2, 2), 1)).shape == (1, 4, 2, 2)


def test_networks_without_convs_and_sparsified_ones__are_refused():
    with pytest.raises(ValueError, match='needs a network with convs, got Sequential'):
        sparsify(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match='needs a network with convs, got Conv2d'):
        sparsify(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match=r'cannot carry 0 \(PatchConv2d\)'):
        sparsify(sparsify(network()))
