import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN

from tests.masks import expand, random_mask
from videomac_mm.registry import MODELS
from videomac_mm.sparse import PatchConv2d, PatchDropPath, VisiblePatches
from videomac_mm.sparse.masked_dense import masked_dense
from videomac_mm.sparse.ops import library, spconv

EIGHTS = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])  # what the kernels want
TINY = dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 20])
BACKBONES = {
    'convnext-v1': dict(type='SparseConvNeXt', arch=TINY, layer_scale_init_value=0.5),
    'convnext-v2': dict(type='SparseConvNeXt', arch=TINY, use_grn=True),
    'convnext-v2-batch-grn': dict(
        type='SparseConvNeXt', arch=TINY, use_grn=True, grn_scope='batch'
    ),
    'convnext-conv-pw': dict(type='SparseConvNeXt', arch=TINY, use_grn=True, linear_pw_conv=False),
    'videomac-convnext-v2': dict(
        type='SparseConvNeXt',
        arch=TINY,
        use_grn=True,
        layer_scale_init_value=0.0,
        stage_norm='inline',
    ),
    'isotropic': dict(
        type='SparseConvNeXt',
        arch=dict(depths=[3], channels=[16], stem_patch_size=16),
        stage_norm='inline',
    ),
    'resnet18': dict(type='SparseResNet', depth=18, base_channels=8, stem_channels=8),
    'resnet50': dict(type='SparseResNet', depth=50, base_channels=4, stem_channels=8),
    'videomac-resnet18': dict(
        type='SparseResNet', depth=18, base_channels=8, stem_channels=8, variant='videomac'
    ),
    'videomac-resnet50': dict(
        type='SparseResNet', depth=50, base_channels=4, stem_channels=8, variant='videomac'
    ),
}
UPSTREAM = {
    'convnext-v1': dict(type='ConvNeXt', arch=TINY, layer_scale_init_value=0.5),
    'convnext-v2': dict(type='ConvNeXt', arch=TINY, use_grn=True),
    'convnext-conv-pw': dict(type='ConvNeXt', arch=TINY, use_grn=True, linear_pw_conv=False),
    'resnet18': dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    'resnet50': dict(type='ResNet', depth=50, base_channels=4, stem_channels=8),
}


def build(name: str, **kwargs) -> torch.nn.Module:
    """A backbone without a zero, or otherwise special, parameter."""
    cfg = dict(BACKBONES[name], **kwargs)
    if 'ConvNeXt' in cfg['type']:
        cfg.setdefault('gap_before_final_norm', False)
    backbone = MODELS.build(cfg)
    for param in backbone.parameters():
        torch.nn.init.normal_(param, std=0.3 if param.ndim == 1 else param[0].numel() ** -0.5)
        if param.ndim == 1:
            param.data += 0.5
    return backbone.double()


def masks(grid: tuple) -> list:
    """Random masks, one of them with an empty last row and column."""
    corner = torch.ones(2, *grid, dtype=torch.bool)
    corner[:, 0, 0] = corner[:, 1, 0] = False
    return [random_mask(2, grid, 3), random_mask(2, grid, 2, seed=1), corner]


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('which', range(3))
def test_sparse__equals_masked_dense(name, which):
    backbone = build(name, out_indices=[0] if name == 'isotropic' else [0, 1, 2, 3])
    mask = masks((3, 2))[which]
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with masked_dense(backbone, mask):
        dense = backbone(images)
    sparse = backbone(images, mask)
    params = list(backbone.parameters())
    grads = [
        torch.autograd.grad(sum(out.square().mean() for out in outs), params)
        for outs in (sparse, dense)
    ]
    for got, want in zip([*sparse, *grads[0]], [*dense, *grads[1]]):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('name', BACKBONES)
def test_sparse__takes_the_geometry_in_place_of_the_mask(name):
    backbone = build(name)
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    patches = VisiblePatches(mask)
    for _ in range(2):  # the second time, every table is there
        assert torch.equal(backbone(images, patches)[-1], backbone(images, mask)[-1])


@pytest.mark.parametrize('name', BACKBONES)
def test_sparse__hidden_pixels_change_nothing(name):
    backbone = build(name)
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    other = images.where(~expand(mask, (64, 64)), 100 * torch.randn_like(images))
    results = []
    for inputs in (images, other):
        (out,) = backbone(inputs, mask)
        grads = torch.autograd.grad(out.square().sum(), list(backbone.parameters()))
        results.append([out, *grads])
    for first, second in zip(*results):
        assert torch.equal(first, second)
    hidden = expand(mask, out.shape[-2:]).expand_as(out)
    assert (out[hidden] == 0).all()
    assert (out[~hidden] != 0).any()


@pytest.mark.parametrize('name', BACKBONES)
def test_sparse__batch_mates_change_nothing(name):
    if name == 'convnext-v2-batch-grn':
        pytest.skip('pools over the batch on purpose')
    backbone = build(name).eval()
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    alone = backbone(images[:1], mask[:1])[-1]
    torch.testing.assert_close(backbone(images, mask)[-1][:1], alone)


def test_batch_grn__couples_batch_mates():
    backbone = build('convnext-v2-batch-grn')
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    alone = backbone(images[:1], mask[:1])[-1]
    assert (backbone(images, mask)[-1][:1] - alone).abs().max() > 1e-3


@pytest.mark.parametrize('name', UPSTREAM)
def test_dense__equals_mmpretrain_key_by_key(name):
    backbone = MODELS.build(BACKBONES[name])
    upstream = MMPRETRAIN.build(UPSTREAM[name])
    for param in upstream.parameters():
        torch.nn.init.normal_(param, std=0.1)
    backbone.load_state_dict(upstream.state_dict(), strict=True)
    assert list(backbone.state_dict()) == list(upstream.state_dict())
    backbone, upstream = backbone.double(), upstream.double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for mode in (False, True):
        backbone.train(mode), upstream.train(mode)
        for got, want in zip(backbone(images), upstream(images)):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize('arch', ['atto', 'tiny'])
def test_dense__default_settings_equal_mmpretrain(arch):
    upstream = MMPRETRAIN.build(dict(type='ConvNeXt', arch=arch))
    backbone = MODELS.build(dict(type='SparseConvNeXt', arch=arch))
    backbone.load_state_dict(upstream.state_dict(), strict=True)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone(images)[0], upstream(images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('depth', [18, 34, 50, 101])
def test_dense__every_resnet_has_the_keys_of_mmpretrain(depth):
    upstream = MMPRETRAIN.build(dict(type='ResNet', depth=depth))
    backbone = MODELS.build(dict(type='SparseResNet', depth=depth))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (upstream, backbone)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('name', ['videomac-convnext-v2', 'resnet50', 'isotropic'])
def test_sparse__fully_visible_equals_dense(name):
    backbone = build(name).eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    visible = torch.zeros(2, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(backbone(images, visible), backbone(images))


@pytest.mark.parametrize('name', ['videomac-convnext-v2', 'videomac-resnet50', 'resnet18'])
def test_checkpointing__gives_the_same_gradients(name):
    plain, cheap = build(name), build(name, with_cp=True)
    cheap.load_state_dict(plain.state_dict())
    assert_same_gradients(plain, cheap)


def test_compile__gives_the_same_gradients():
    # Two small stages, one for each execution, since compiling takes its time.
    plain = build('videomac-convnext-v2', arch=dict(depths=[1, 1], channels=[4, 8]))
    assert_same_gradients(plain, torch.compile(plain, backend='aot_eager'))


def assert_same_gradients(first, second):
    mask = random_mask(2, (2, 2), 1)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    grads = []
    for network in (first, second):
        out = network(images, mask)[-1]
        network(images, random_mask(2, (2, 2), 1, seed=5))  # another mask before backward
        grads.append(torch.autograd.grad(out.square().sum(), list(network.parameters())))
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['videomac-convnext-v2', 'videomac-resnet18'])
def test_autocast__stays_close_to_float32(name, dtype):
    backbone = build(name).float()
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64)
    wanted = backbone(images, mask)[-1]
    with torch.autocast('cpu', dtype):
        out = backbone(images, mask)[-1]
    out.float().sum().backward()
    error = (out.float() - wanted).norm() / wanted.norm()
    assert error < 0.05
    assert all(param.grad.isfinite().all() for param in backbone.parameters())


@pytest.mark.parametrize('name', BACKBONES)
def test_gradient_reaches_every_parameter(name):
    backbone = build(name)
    backbone(torch.randn(2, 3, 64, 64).double(), random_mask(2, (2, 2), 2))[
        -1
    ].square().sum().backward()
    for key, param in backbone.named_parameters():
        assert param.grad is not None and param.grad.abs().sum() > 0, key


def test_gap__averages_visible_sites():
    backbone = build('convnext-v2', gap_before_final_norm=True)
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    (vector,) = backbone(images, mask)
    assert vector.shape == (2, 20)
    backbone.gap_before_final_norm = False
    backbone.norm3, norm = torch.nn.Identity(), backbone.norm3
    (maps,) = backbone(images, mask)
    torch.testing.assert_close(vector, norm((maps.sum((2, 3)) / 2)[..., None, None]).flatten(1))


def test_frozen_stages__take_no_gradient_and_stay_in_eval_mode():
    convnext = build('convnext-v2', frozen_stages=2).train()
    resnet = build('resnet18', frozen_stages=1).train()
    assert not any(p.requires_grad for p in convnext.stages[:2].parameters())
    assert all(p.requires_grad for p in convnext.stages[2:].parameters())
    assert not convnext.stages[0].training and convnext.stages[2].training
    assert not any(p.requires_grad for p in resnet.layer1.parameters())
    assert not resnet.norm1.training and resnet.layer2.training


def test_drop_path__grows_with_depth():
    backbone = build('convnext-v2', drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in backbone.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_frozen_stages__take_inline_norms_along():
    backbone = build('videomac-convnext-v2', frozen_stages=2, drop_path_rate=0.5).train()
    trainable = {name.split('.')[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert 'norm2' in trainable and not {'norm0', 'norm1'} & trainable
    assert not backbone.norm1.training
    for net in ('videomac-convnext-v2', 'convnext-v2'):
        backbone = build(net, frozen_stages=4, drop_path_rate=0.5).train()
        assert not any(p.requires_grad for p in backbone.parameters()), net
        assert not any(x.training for x in backbone.modules() if isinstance(x, PatchDropPath))


@pytest.mark.parametrize(
    'net',
    [dict(type='ConvNeXt', arch=arch) for arch in ('tiny', 'small')]
    + [dict(type='ResNet', depth=depth) for depth in (34, 50, 101, 152)],
    ids=str,
)
def test_layer_depth__is_that_of_mmpretrain(net):
    backbone = MODELS.build(dict(net, type='Sparse' + net['type']))
    upstream = MMPRETRAIN.build(net)
    keys = ['head.fc.weight', *('backbone.' + name for name, _ in upstream.named_parameters())]
    for key in keys:
        expected = upstream.get_layer_depth(key, 'backbone.')
        assert backbone.get_layer_depth(key, 'backbone.') == expected, key


def test_layer_depth__of_single_blocks():
    """The formula of the official ConvNeXt V2 code, where it tells layers from each other."""
    backbone = build('convnext-v2')  # depths 1, 1, 2, 1
    expected = {
        'downsample_layers.0.0.weight': 1,
        'stages.0.0.norm.weight': 1,
        'downsample_layers.2.1.weight': 3,
        'stages.2.0.grn.gamma': 3,
        'stages.2.1.pointwise_conv1.weight': 4,
        'stages.3.0.norm.weight': 5,
        'norm3.weight': 6,
    }
    for name, layer in expected.items():
        assert backbone.get_layer_depth(name, '', 'single') == (layer, 7), name
    assert backbone.get_layer_depth('head.norm0.weight', 'backbone.', 'single') == (6, 7)

    resnet = build('resnet18')
    names = ['conv1.weight', 'layer1.0.conv1.weight', 'layer4.1.bn2.bias', 'x.layer1.0.weight']
    layers = [resnet.get_layer_depth(name, '', 'single')[0] for name in names]
    assert layers == [0, 1, 8, 0]
    layers = [resnet.get_layer_depth(name) for name in names]
    assert layers == [(0, 6), (1, 6), (4, 6), (0, 6)]
    assert resnet.get_layer_depth('head.layer1.0.weight', 'backbone.', 'single') == (9, 10)


@pytest.mark.parametrize('layer_decay_type', ['group', 'single'])
def test_layer_depth__inline_norms_go_with_the_block_before_them(layer_decay_type):
    backbone = build('videomac-convnext-v2')
    for stage, depth in enumerate(backbone.depths[:-1]):
        names = [f'b.norm{stage}.weight', f'b.stages.{stage}.{depth - 1}.norm.weight']
        norm, block = (backbone.get_layer_depth(name, 'b.', layer_decay_type) for name in names)
        assert norm == block
    last = backbone.get_layer_depth('b.norm3.weight', 'b.', layer_decay_type)
    assert last == backbone.get_layer_depth('head.fc.weight', 'b.', layer_decay_type)


def test_layer_depth__isotropic_networks_count_blocks():
    isotropic = build('isotropic')
    names = ['downsample_layers.0.0.weight', 'stages.0.1.norm.weight', 'norm0.weight']
    assert [isotropic.get_layer_depth(name) for name in names] == [(0, 5), (2, 5), (4, 5)]
    assert isotropic.get_layer_depth('head.weight', 'backbone.') == (4, 5)


@pytest.mark.parametrize('net', ['convnext-v2', 'resnet18'])
def test_layer_depth__unknown_type(net):
    with pytest.raises(ValueError, match="'single' or 'group', got 'pairs'"):
        build(net).get_layer_depth('conv1.weight', '', 'pairs')


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(type='SparseConvNeXt', arch='gigantic'), "unknown arch 'gigantic'.*'atto'"),
        (dict(type='SparseConvNeXt', arch=dict(depths=[1])), 'depths and channels'),
        (dict(type='SparseConvNeXt', arch='atto', stage_norm='out'), "got 'out'"),
        (dict(type='SparseConvNeXt', arch='atto', out_indices=4), r'must lie in \[-4, 3\]'),
        (dict(type='SparseConvNeXt', arch='atto', frozen_stages=5), r'in \[0, 4\], got 5'),
        (dict(type='SparseConvNeXt', use_grn=True, grn_scope='all'), "got 'all'"),
        (
            dict(type='SparseConvNeXt', stage_norm='inline', gap_before_final_norm=True),
            'inline norm',
        ),
        (dict(type='SparseResNet', depth=19), 'unknown depth 19.*18, 34, 50'),
        (dict(type='SparseResNet', depth=18, variant='slim'), "got 'slim'"),
        (dict(type='SparseResNet', depth=50, avg_down=True), 'avg_down.*cannot be set'),
    ],
)
def test_bad_arguments__are_named(cfg, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


@pytest.mark.parametrize('name', ['convnext-v2', 'resnet18'])
def test_bad_sizes__are_named(name):
    backbone = build(name)
    mask = random_mask(1, (2, 2), 2)
    with pytest.raises(ValueError, match=r'\(1, 3, 60, 65\) do not fit a mask'):
        backbone(torch.zeros(1, 3, 60, 65).double(), mask)
    with pytest.raises(ValueError, match='patches of 16 pixels are no.*stride of 32'):
        backbone(torch.zeros(1, 3, 32, 32).double(), mask)


def has_spconv() -> bool:
    try:
        spconv.check_available()
    except ImportError:
        return False
    return True


@pytest.mark.parametrize('backend', ['auto', 'torch', 'spconv'])
@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='SparseConvNeXt', arch=EIGHTS, use_grn=True, stage_norm='inline'),
        dict(
            type='SparseConvNeXt', arch=EIGHTS, use_grn=True, stage_norm='inline', grn_scope='batch'
        ),
        dict(type='SparseResNet', depth=18, base_channels=8, variant='videomac', stem_channels=8),
        dict(type='SparseResNet', depth=50, base_channels=8, variant='videomac', stem_channels=8),
    ],
    ids=['convnext', 'convnext-batch', 'resnet18', 'resnet50'],
)
def test_backend__equals_the_masked_dense_network_in_single_precision(cfg, backend):
    if backend == 'spconv' and not has_spconv():
        pytest.skip('spconv is not installed')
    torch.manual_seed(0)
    network = MODELS.build(dict(cfg, backend=backend, out_indices=(1, 3)))
    for param in network.parameters():  # what starts at zero would hide mistakes
        torch.nn.init.normal_(param, std=0.5 if param.ndim == 1 else 0.1)
    mask = random_mask(2, (3, 3), 4)
    images = torch.randn(2, 3, 96, 96)

    def run(*args) -> tuple[list, list]:
        outs = network(images, *args)
        weights = [torch.linspace(-1, 1, out.numel()).view_as(out) for out in outs]
        loss = sum((out * weight).sum() for out, weight in zip(outs, weights))
        return list(outs), list(torch.autograd.grad(loss, list(network.parameters())))

    sparse, sparse_grads = run(mask)
    with masked_dense(network, mask):
        dense, dense_grads = run()

    for got, wanted in zip(sparse + sparse_grads, dense + dense_grads):
        scale = wanted.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(got / scale, wanted / scale, atol=1e-4, rtol=0)


@pytest.mark.skipif(not library.is_available(), reason='no C++ compiler')
@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='SparseConvNeXt', arch=EIGHTS, use_grn=True),
        dict(type='SparseResNet', depth=50, base_channels=8, variant='videomac', stem_channels=8),
    ],
    ids=['convnext', 'resnet50'],
)
def test_backend__torch_runs_no_kernel(monkeypatch, cfg):
    call, ran = library.call, dict(auto=set(), torch=set())
    for backend, names in ran.items():

        def record(name: str, *args, names=names) -> None:
            names.add(name)
            call(name, *args)

        monkeypatch.setattr(library, 'call', record)
        network = MODELS.build(dict(cfg, backend=backend))
        network(torch.randn(1, 3, 64, 64), random_mask(1, (2, 2), 1))[0].sum().backward()

    assert ran['torch'] == set()
    assert len(ran['auto']) > 2


def test_backend__of_another_name_is_refused():
    with pytest.raises(ValueError, match="backend must be one of .*, got 'minkowski'"):
        MODELS.build(dict(type='SparseResNet', depth=18, backend='minkowski'))


@pytest.mark.parametrize(
    'cfg', [dict(type='SparseResNet', depth=18), dict(type='SparseConvNeXt', arch=EIGHTS)]
)
def test_backend__is_also_known_by_its_earlier_name(cfg):
    with pytest.warns(DeprecationWarning, match='conv_backend'):
        network = MODELS.build(dict(cfg, conv_backend='torch'))
    convs = [layer for layer in network.modules() if isinstance(layer, PatchConv2d)]
    assert convs and all(conv.backend == 'torch' for conv in convs)


@pytest.mark.parametrize('kind', ['SparseResNet', 'SparseConvNeXt'])
def test_mask__is_refused_by_norms_that_mix_sites(kind):
    cfg = dict(depth=18, base_channels=8, stem_channels=8)
    cfg = cfg if kind == 'SparseResNet' else dict(arch=EIGHTS)
    norm = dict(type='GN', num_groups=2)
    network = MODELS.build(dict(cfg, type=kind, norm_cfg=norm)).eval()
    images = torch.randn(1, 3, 64, 64)
    network(images)
    with pytest.raises(ValueError, match='norms of .* mix the sites of an image'):
        network(images, random_mask(1, (2, 2), 1))
