import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Conv2dAdaptivePadding, ConvModule, ConvWS2d, DropPath
from mmpretrain.models.utils.norm import GRN
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from tests.masks import expand, random_mask
from videomac_mm.models import SparseResNet
from videomac_mm.sparse import MaskAware, VisiblePatches, sparsify
from videomac_mm.sparse.masked_dense import masked_dense

LAYERS = {
    '3x3': lambda: nn.Conv2d(8, 8, 3, padding=1),
    '3x3-stride2': lambda: nn.Conv2d(8, 8, 3, 2, 1),
    '5x5-depthwise-dilated': lambda: nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
    '1x5': lambda: nn.Conv2d(8, 8, (1, 5), padding=(0, 2)),
    '5x3-stride2-dilated': lambda: nn.Conv2d(8, 8, (5, 3), 2, (4, 2), 2, groups=8),
    'same': lambda: nn.Conv2d(8, 8, 3, padding='same'),
    'same-even': lambda: nn.Conv2d(8, 8, (2, 4), padding='same'),
    'transposed': lambda: nn.ConvTranspose2d(8, 8, 2, 2),
    'standardised': lambda: ConvWS2d(8, 8, 3, padding=1),
    'subclass': lambda: LowRankConv2d(8, 8, 3, padding=1),
    'adaptive': lambda: Conv2dAdaptivePadding(8, 8, 3, 2, 1),
    'adaptive-5x5-depthwise': lambda: Conv2dAdaptivePadding(8, 8, 5, 2, 2, groups=8),
    'adaptive-stride1': lambda: Conv2dAdaptivePadding(8, 8, 3, 1, 1),
    'adaptive-1x1': lambda: Conv2dAdaptivePadding(8, 8, 1, 2),
    'max-pool': lambda: nn.MaxPool2d(3, 2, 1),
    'max-pool-ceil': lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    'max-pool-clipped': lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    'avg-pool-overlapping': lambda: nn.AvgPool2d(3, 1, 1),
    'avg-pool-of-visible': lambda: nn.AvgPool2d(5, 2, 2, count_include_pad=False),
    'avg-pool': lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    'upsample': lambda: nn.Upsample(scale_factor=2),
    'batch-norm': lambda: nn.BatchNorm2d(8),
    'squeeze-excite': lambda: SqueezeExcite(),
    'squeeze-excite-as-code': lambda: SqueezeExciteAsCode(),
    'group-norm': lambda: nn.GroupNorm(2, 8),
    'instance-norm': lambda: nn.InstanceNorm2d(8, affine=True),
    'grn': lambda: GRN(8),
    'grn-channels-last': lambda: ChannelsLast(LastGRN(8), nn.Linear(8, 8)),
    'attention': lambda: Tokens(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)),
    'attention-5d': lambda: Branches(),
    'linear': lambda: ChannelsLast(nn.Linear(8, 8), nn.LayerNorm(8)),
    'empty': lambda: nn.Sequential(),
}


class LowRankConv2d(nn.Conv2d):
    """With an adapter, as LoRA has it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.down, self.up = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class SqueezeExciteAsCode(nn.Module):
    """Squeeze-excite as timm has it."""

    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        gate = 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)
        return x * self.fc2(self.act(self.fc1(gate))).sigmoid()


class Gated(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return x * self.pool(x).view(*x.shape[:2], 1, 1)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x * self.conv(self.pool(x)).sigmoid()


class ChannelsLast(nn.Sequential):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LastGRN(GRN):
    def forward(self, x):
        return super().forward(x, data_format='channel_last')


class Tokens(nn.Module):
    """Sites in a row."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        tokens = self.layer(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Branches(nn.Module):
    """Selective kernels: branches of convs, weighted by what is pooled over all of them."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Conv2d(8, 16, 1)

        def forward(self, x):  # (B, 2, C, H, W)
            weights = self.fc(x.sum(1).mean((2, 3), keepdim=True))
            return weights.unflatten(1, (2, 8)).softmax(1)

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=d, dilation=d) for d in (1, 2))
        self.attention = self.Attention()

    def forward(self, x):
        x = torch.stack([conv(x) for conv in self.convs], 1)
        return (x * self.attention(x)).sum(1)


class RowNoise(nn.Module):
    """Random, and the same for the sites of a row."""

    def forward(self, x):
        return x * torch.rand(*x.shape[:3], 1, dtype=x.dtype) if self.training else x


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


@pytest.mark.parametrize('layer', [nn.AdaptiveAvgPool2d(1), Code(lambda x: x.mean((2, 3)))])
def test_pooling__averages_the_visible_sites_of_an_image(layer):
    block = Code(lambda x: x, nn.Conv2d(3, 8, 1), Gated(layer))
    net = sparsify(nn.Sequential(block)).double()
    images, mask = pictures()
    seen = []
    layer.register_forward_hook(lambda layer, args, out: seen.append(out.flatten(1)))
    net(images, mask)
    maps = block.layers[0](images).permute(0, 2, 3, 1)
    means = [image[visible].mean(0) for image, visible in zip(maps, ~expand(mask, (24, 16))[:, 0])]
    per_image = seen[0].unflatten(0, (2, -1))  # or the same for each tile of an image
    torch.testing.assert_close(per_image, torch.stack(means)[:, None].expand_as(per_image))


@pytest.mark.parametrize('layer', [DropPath(0.5), StochasticDepth(0.5, 'row')])
def test_drop_path__drops_images(layer):
    net = sparsify(nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), layer))
    nn.init.ones_(net[0].weight)
    kept = net(torch.ones(64, 3, 8, 8), random_mask(64, (2, 2), 2)).flatten(1)
    assert set(kept.sum(1).tolist()) == {0.0, 2 * 3 * 32.0}


def test_dropout2d__drops_channels_of_images():
    net = sparsify(nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Dropout2d(0.5)))
    nn.init.ones_(net[0].weight)
    kept = net(torch.ones(64, 3, 8, 8), random_mask(64, (2, 2), 2)).flatten(2)
    assert set(kept.sum(2).flatten().tolist()) == {0.0, 2 * 3 * 32.0}


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
    with pytest.raises((RuntimeError, ValueError)):
        net(images[:, :1], mask)  # fails inside
    with pytest.raises(ValueError, match='patches of 1 pixels are no whole multiple.*stride of 2'):
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
    net[2].forward = partial(checkpoint, net[2].forward, use_reentrant=False)
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
        (nn.Conv2d(8, 8, 3, (1, 2), 1), r'2 \(Conv2d\): .*square strides'),
        (nn.Conv2d(8, 8, 3, 1, 1, padding_mode='reflect'), r'2 \(Conv2d\): .*reflect'),
        (nn.ConvTranspose2d(8, 8, 4, 2, 1), r'2 \(ConvTranspose2d\): its own code works neither'),
        (nn.Sequential(nn.ReflectionPad2d(1)), r'2\.0 \(ReflectionPad2d\): its own code works'),
        (nn.AdaptiveAvgPool2d(2), r'2 \(AdaptiveAvgPool2d\): only pooling to one site'),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), r'2 \(AvgPool2d\): .*ceil_mode'),
        (RowNoise(), r'2 \(RowNoise\): in training it works neither'),
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
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.flip(2),
        lambda x: x.cumsum(3),
        lambda x: x[:, :, :1].expand_as(x),
    ],
    ids=['pool', 'batch', 'flip', 'sum', 'row'],
)
def test_code_that_looks_across_sites__is_named(function):
    block = nn.Sequential(nn.ReLU(), Code(function, nn.Conv2d(8, 8, 1)))
    with pytest.raises(ValueError, match=r'2\.1 \(Code\): its own code works neither site by'):
        sparsify(network(block))
    inside = Code(lambda x: x, Code(function, nn.ReLU()), nn.Conv2d(8, 8, 1))
    with pytest.raises(ValueError, match=r'2\.layers\.0 \(Code\): its own code works neither'):
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


def test_networks_without_convs_and_those_that_take_a_mask__are_refused():
    with pytest.raises(ValueError, match='needs a network with convs, got Sequential'):
        sparsify(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match='needs a network with convs, got Conv2d'):
        sparsify(nn.Conv2d(3, 3, 1))
    with pytest.raises(TypeError, match='SparseResNet takes a mask by itself'):
        sparsify(SparseResNet(18, base_channels=4, stem_channels=4))


# ------------------------------------------------------- what users do with modules afterwards


def test_derived_class__is_named_after_what_it_adds():
    net = sparsify(network())
    assert type(net).__name__ == 'MaskAwareSequential' and isinstance(net, MaskAware)
    assert {type(layer) for layer in net} <= {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}
    assert type(sparsify(net)) is type(net)


def test_zeros_in_parameters__hide_nothing():
    grn = GRN(8)  # the identity, at first
    net = sparsify(nn.Sequential(nn.Conv2d(3, 8, 1), grn)).double()
    nn.init.normal_(grn.gamma)
    images, mask = pictures()
    with masked_dense(net, mask):
        want = net(images)
    torch.testing.assert_close(net(images, mask), want)


def test_hooks__see_all_layers_and_may_change_their_results():
    net = sparsify(network(SqueezeExcite(), SqueezeExciteAsCode())).eval()
    seen = set()
    leaves = {name: layer for name, layer in net.named_modules() if not [*layer.children()]}
    for name, layer in leaves.items():
        layer.register_forward_hook(lambda layer, args, out, name=name: seen.add(name))
    images, mask = pictures()
    before = net(images, mask)
    assert seen == set(leaves)
    net[0].register_forward_pre_hook(lambda layer, args: seen.add(layer.patches))
    patches = VisiblePatches(mask)
    net(images, patches)
    assert patches in seen and not hasattr(net[0], 'patches')
    handle = net[2].conv.register_forward_hook(lambda layer, args, out: out + 1)
    assert not torch.allclose(net(images, mask), before)
    handle.remove()
    assert torch.equal(net(images, mask), before)


class Adapted(nn.Module):
    """A layer with a low-rank path beside it, as PEFT replaces layers."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 72))

    def forward(self, weight):
        return weight + (self.down @ self.up).view_as(weight)


@pytest.mark.parametrize('kind', ['module', 'parametrization'])
def test_adapters__work_if_they_are_added_later(kind):
    net = sparsify(network(nn.Conv2d(8, 8, 3, padding=1), SqueezeExcite()))
    images, mask = pictures()
    without = net(images, mask)
    if kind == 'module':
        net[2] = Adapted(net[2])
    else:
        parametrize.register_parametrization(net[2], 'weight', LowRank())
    net.double()
    sparse = net(images, mask)
    assert not torch.allclose(sparse, without)
    with masked_dense(net, mask):
        dense = net(images)
    torch.testing.assert_close(sparse, dense)
    sparse.sum().backward()
    assert all(param.grad is not None and param.grad.any() for param in net[2].parameters())
    everything = torch.zeros_like(mask)
    torch.testing.assert_close(net.eval()(images, everything), net(images))


def test_replaced_modules__are_proved_anew():
    net = sparsify(network(nn.ReLU())).eval()
    images, mask = pictures()
    net[2] = nn.Tanh()
    with masked_dense(net, mask):
        want = net(images)
    torch.testing.assert_close(net(images, mask), want)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    torch.testing.assert_close(net(images, mask), want)
    net[2] = nn.ReflectionPad2d(1)
    with pytest.raises(ValueError, match=r'cannot carry 2 \(ReflectionPad2d\)'):
        net(images, mask)


def test_settings__are_read_at_each_call():
    net = sparsify(network(nn.Conv2d(8, 8, 3, 1, 1))).eval()
    images, mask = pictures()
    net[0].stride = (1, 1)
    with masked_dense(net, mask):
        want = net(images)
    torch.testing.assert_close(net(images, mask), want)
    net[2].padding = (0, 0)
    with pytest.raises(ValueError, match='maps n.stride sites to n'):
        net(images, mask)
    pickle.loads(pickle.dumps(net))


def test_modules_that_only_run_in_training__are_not_trusted():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(2, 8)

        def forward(self, x):
            return self.norm(x) if self.training else x

    net = sparsify(network(Auxiliary())).eval()
    images, mask = pictures()
    net(images, mask)
    with pytest.raises(RuntimeError, match=r'2\.norm \(GroupNorm\) runs under a mask, but did not'):
        net.train()(images, mask)


def test_own_method_as_forward__is_that_of_the_copy():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.forward = self.forward_once

        def forward_once(self, x):
            return self.conv(x)

    net = sparsify(network(Chooses()))
    images, mask = pictures()
    with masked_dense(net, mask):
        want = net(images)
    torch.testing.assert_close(net(images, mask), want)


def test_functional_call__takes_other_parameters():
    net = sparsify(network(nn.Conv2d(8, 8, 3, padding=1), SqueezeExciteAsCode())).eval()
    images, mask = pictures()
    params = dict(net.named_parameters())
    others = {name: param.detach() * 0.5 for name, param in params.items()}

    def loss(params):
        return functional_call(net, params, (images, mask)).square().mean()

    before = loss(params)
    grads = torch.func.grad(loss)(others)
    assert loss(params) == before
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(others[name])
    net(images, mask).square().mean().backward()
    for name, param in params.items():
        torch.testing.assert_close(grads[name], param.grad)


def test_second_derivative__equals_that_of_masked_dense():
    net = sparsify(network(nn.Conv2d(8, 8, 3, padding=1), SqueezeExcite())).eval()
    images, mask = pictures()
    params = [*net.parameters()]

    def second(out):
        grads = torch.autograd.grad(out.square().sum(), params, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), params)

    sparse = second(net(images, mask))
    with masked_dense(net, mask):
        dense = second(net(images))
    for got, want in zip(sparse, dense):
        torch.testing.assert_close(got, want)


def test_fake_tensors__have_the_shapes_of_real_ones():
    net = sparsify(network(SqueezeExcite()))
    images, mask = pictures()
    patches = VisiblePatches(mask)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = net(mode.from_tensor(images), patches)
    assert out.shape == net(images, mask).shape
