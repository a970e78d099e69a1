import copy
import pickle

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmpretrain.models.backbones import EfficientNet, MobileNetV3
from mmpretrain.registry import MODELS as MMPRETRAIN

from tests.masks import expand, random_mask
from videomac_mm.models import SparseConvNeXt, SparseResNet, TargetNetwork, VideoMAC
from videomac_mm.registry import MODELS
from videomac_mm.sparse import MaskAware, sparsify
from videomac_mm.sparse.masked_dense import masked_dense


class TinyMobileNetV3(MobileNetV3):
    arch_settings = {
        'squeeze-excite': [[3, 16, 16, True, 'ReLU', 2], [5, 48, 24, True, 'HSwish', 2]],
        'small': [
            [3, 16, 16, False, 'ReLU', 2],
            [3, 36, 24, False, 'ReLU', 2],
            [5, 48, 24, False, 'HSwish', 2],
            [5, 48, 24, False, 'HSwish', 2],
        ],
    }


class TinyEfficientNet(EfficientNet):
    arch_settings = {'es': (0.25, 0.3, 224), 'b0': (0.25, 0.3, 224)}


REGNET = dict(
    type='mmpretrain.RegNet', arch=dict(w0=8, wa=8, wm=2, group_w=4, depth=6, bot_mul=1.0)
)
RESNEXT = dict(type='mmpretrain.ResNeXt', depth=50, groups=2, width_per_group=4, base_channels=8)
RESNET = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
    gap_before_final_norm=False,
)
BACKBONES = {
    'regnet': dict(REGNET, out_indices=(0, 1, 2, 3)),
    'resnext': dict(RESNEXT, stem_channels=8),
    'resnet-deep-stem': dict(
        type='mmpretrain.ResNet', depth=18, base_channels=4, stem_channels=8, deep_stem=True,
        avg_down=True,
    ),
    'mobilenet-v2': dict(type='mmpretrain.MobileNetV2', widen_factor=0.1, out_indices=(3, 7)),
    'mobilenet-v3': dict(type=TinyMobileNetV3, arch='small', out_indices=(5,)),
    'mobilenet-v3-se': dict(type=TinyMobileNetV3, arch='squeeze-excite', out_indices=(3,)),
    'efficientnet-lite': dict(type=TinyEfficientNet, arch='es'),
    'efficientnet-b0': dict(type=TinyEfficientNet, arch='b0'),
    'vgg': dict(type='mmpretrain.VGG', depth=11),
    'vgg-bn': dict(type='mmpretrain.VGG', depth=11, num_stages=3, out_indices=(2,),
                   dilations=(1, 1, 1), norm_cfg=dict(type='BN')),
    'densenet': dict(
        type='mmpretrain.DenseNet',
        arch=dict(growth_rate=4, depths=[2, 2, 2, 2], init_channels=8),
    ),
    'shufflenet-v2': dict(type='mmpretrain.ShuffleNetV2', widen_factor=0.5),
    'resnet-group-norm': dict(RESNET, norm_cfg=dict(type='GN', num_groups=2)),
    'res2net': dict(
        type='mmpretrain.Res2Net', depth=50, scales=2, base_width=8, base_channels=8,
        stem_channels=8,
    ),
    'convnext-v2': dict(CONVNEXT, use_grn=True, layer_scale_init_value=0.0),
    'convnext-v2-conv': dict(CONVNEXT, use_grn=True, linear_pw_conv=False),
    'poolformer': dict(
        type='mmpretrain.PoolFormer', frozen_stages=-1,
        arch=dict(
            layers=[1] * 4, embed_dims=[8, 12, 16, 24], mlp_ratios=[2] * 4,
            layer_scale_init_value=1e-5,
        ),
    ),
}  # fmt: skip


def dense(name: str, **kwargs) -> torch.nn.Module:
    """mmpretrain's network without a zero, or otherwise special, parameter or statistic."""
    return randomise(MODELS.build(dict(BACKBONES[name], **kwargs)))


def randomise(backbone: torch.nn.Module) -> torch.nn.Module:
    for param in backbone.parameters():
        torch.nn.init.normal_(param, std=0.3 if param.ndim == 1 else param[0].numel() ** -0.5)
        if param.ndim == 1:
            param.data += 0.5
    for key, value in backbone.named_buffers():
        if 'running_mean' in key:
            torch.nn.init.normal_(value, std=0.3)
        elif 'running_var' in key:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return backbone


def build(name: str, **kwargs) -> torch.nn.Module:
    backbone = dense(name, **kwargs)
    return MODELS.build(dict(type='videomac_mm.Sparsified', backbone=backbone)).double()


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', BACKBONES)
def test_sparse__equals_masked_dense(name, training):
    backbone = build(name).train(training)
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with masked_dense(backbone, mask):
        wanted = backbone(images)
    sparse = backbone(images, mask)
    assert isinstance(sparse, tuple) and len(sparse) == len(wanted)
    params = list(backbone.parameters())
    grads = [
        torch.autograd.grad(sum(out.square().mean() for out in outs), params)
        for outs in (sparse, wanted)
    ]
    for got, want in zip([*sparse, *grads[0]], [*wanted, *grads[1]]):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('name', BACKBONES)
def test_sparse__hidden_pixels_change_nothing(name):
    backbone = build(name).train()
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    other = images.where(~expand(mask, (64, 64)), 100 * torch.randn_like(images))
    params = list(backbone.parameters())
    results = []
    for inputs in (images, other):
        out = backbone(inputs, mask)[-1]
        results.append([out, *torch.autograd.grad(out.square().sum(), params)])
    for first, second in zip(*results):
        assert torch.equal(first, second)
    hidden = expand(mask, out.shape[-2:]).expand_as(out)
    assert (out[hidden] == 0).all()
    assert (out[~hidden] != 0).any()


@pytest.mark.parametrize('name', BACKBONES)
def test_dense__is_mmpretrain_bit_for_bit_and_key_by_key(name):
    upstream = dense(name)
    backbone = MODELS.build(dict(type='videomac_mm.Sparsified', backbone=copy.deepcopy(upstream)))
    assert isinstance(backbone, type(upstream)) and isinstance(backbone, MaskAware)
    assert list(backbone.state_dict()) == list(upstream.state_dict())
    upstream.load_state_dict(backbone.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 96)
    for training in (False, True):
        upstream.train(training), backbone.train(training)
        for got, want in zip(backbone(images), upstream(images)):
            assert torch.equal(got, want)


OWN = {
    'resnet18': (RESNET, SparseResNet),
    'resnet50': (dict(RESNET, depth=50, drop_path_rate=0.1, frozen_stages=1), SparseResNet),
    'resnet-outputs': (dict(RESNET, out_indices=(0, 2), frozen_stages=1), SparseResNet),
    'resnet-norm': (dict(RESNET, norm_cfg=dict(type='SyncBN', requires_grad=False)), SparseResNet),
    'resnet-caffe': (dict(RESNET, depth=50, style='caffe', dilations=(1, 1, 1, 2)), SparseResNet),
    'convnext': (dict(CONVNEXT, out_indices=[1, -1], drop_path_rate=0.1), SparseConvNeXt),
    'convnext-vector': (dict(CONVNEXT, gap_before_final_norm=True), SparseConvNeXt),
    'convnext-outputs': (dict(CONVNEXT, out_indices=[0, 2], frozen_stages=2), SparseConvNeXt),
    'convnext-v2': (
        dict(CONVNEXT, use_grn=True, norm_cfg=dict(type='LN2d', eps=1e-3), linear_pw_conv=False),
        SparseConvNeXt,
    ),
}


@pytest.mark.parametrize('name', OWN)
def test_own_networks__stand_behind_configs_of_mmpretrain(name):
    cfg, kind = OWN[name]
    upstream = randomise(MODELS.build(copy.deepcopy(cfg)))
    own = MODELS.build(dict(type='Sparsified', backbone=copy.deepcopy(cfg)))
    assert type(own) is kind
    state = upstream.state_dict()
    last = max(own.out_indices)
    if last < 3:
        idle = f'layer{last + 2}', f'stages.{last + 1}', f'downsample_layers.{last + 1}'
        state = {key: value for key, value in state.items() if not key.startswith(idle)}
        assert len(state) < len(upstream.state_dict())
    own.load_state_dict(state, strict=True)
    trained = {key for key, param in upstream.named_parameters() if param.requires_grad}
    assert {key for key, param in own.named_parameters() if param.requires_grad} == (
        trained & set(state)
    )
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for training in (False,) if 'norm' in name else (False, True):
        outs = []
        for network in (own, upstream):
            network.double().train(training)
            torch.manual_seed(1)
            outs.append(network(images))
        for got, want in zip(*outs, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize('name', ['resnet-outputs', 'convnext-outputs'])
def test_own_networks__take_patches_of_their_last_output(name):
    cfg, _ = OWN[name]
    own = MODELS.build(dict(type='Sparsified', backbone=copy.deepcopy(cfg))).eval()
    images, mask = torch.randn(2, 3, 32, 32), random_mask(2, (2, 2), 2)
    outs = own(images, mask)  # patches of 16 pixels
    with masked_dense(own, mask):
        wanted = own(images)
    for got, want in zip(outs, wanted):
        torch.testing.assert_close(got, want)
    assert len(pickle.dumps(own)) and type(copy.deepcopy(own)) is type(own)


@pytest.mark.parametrize('name', ['resnet18', 'convnext', 'convnext-v2'])
def test_instances__compute_what_own_networks_do(name):
    cfg, _ = OWN[name]
    cfg = dict(copy.deepcopy(cfg), out_indices=(0, 3))
    own = MODELS.build(dict(type='Sparsified', backbone=cfg)).double().eval()
    instance = MODELS.build(dict(type='Sparsified', backbone=MODELS.build(cfg))).double().eval()
    assert isinstance(instance, MaskAware)
    instance.load_state_dict(own.state_dict())
    images, mask = torch.randn(2, 3, 64, 64, dtype=torch.float64), random_mask(2, (2, 2), 2)
    for got, want in zip(instance(images, mask), own(images, mask), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    'change',
    [
        dict(deep_stem=True),
        dict(avg_down=True),
        dict(conv_cfg=dict(type='Conv2d')),
        dict(norm_cfg=dict(type='GN', num_groups=2)),
        dict(type='mmpretrain.ResNetV1d'),
    ],
    ids=str,
)
def test_options_that_own_networks_lack__go_the_general_way(change):
    backbone = MODELS.build(dict(type='Sparsified', backbone=dict(RESNET, **change)))
    assert isinstance(backbone, MaskAware) and not isinstance(backbone, SparseResNet)


TIMM = [
    *('convnext_atto', 'convnextv2_atto', 'mobilenetv3_small_050', 'regnety_002', 'resnet18d'),
    *('efficientnet_lite0', 'tf_mobilenetv3_small_minimal_100', 'test_efficientnet_gn'),
    *('test_byobnet', 'test_nfnet', 'ghostnet_050', 'repghostnet_050', 'cspnext_tiny'),
]


@pytest.mark.parametrize('name', TIMM)
def test_convnets_of_timm__equal_masked_dense(name):
    pytest.importorskip('timm', reason='timm is an extra')
    cfg = dict(type='mmpretrain.TIMMBackbone', model_name=name, features_only=True)
    backbone = MODELS.build(dict(type='videomac_mm.Sparsified', backbone=cfg)).double().eval()
    with torch.no_grad():
        for param in backbone.parameters():  # zeros would hide what a layer does
            param += torch.randn_like(param) * (0.1 if param.ndim < 2 else 0.01)
    images, mask = torch.randn(2, 3, 96, 64, dtype=torch.float64), random_mask(2, (3, 2), 2)
    outs = backbone(images, mask)
    with masked_dense(backbone, mask):
        wanted = backbone(images)
    for got, want in zip(outs, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8 * want.abs().max().item())
    outs[-1].square().sum().backward()
    assert all(param.grad is not None for param in backbone.parameters() if param.requires_grad)


def test_convnet_of_timm__takes_a_step_of_training_and_drops_images():
    timm = pytest.importorskip('timm', reason='timm is an extra')
    net = timm.create_model('test_convnext2', features_only=True, drop_path_rate=0.5)
    backbone = MODELS.build(dict(type='videomac_mm.Sparsified', backbone=net)).train()
    drops = [layer for layer in backbone.modules() if type(layer).__name__ == 'DropPath']
    seen = []
    drops[-1].register_forward_hook(lambda layer, args, out: seen.append(out))
    images, mask = torch.randn(32, 3, 64, 64), random_mask(32, (2, 2), 2)
    backbone(images, mask)[-1].square().sum().backward()
    dropped = seen[0].flatten(1).eq(0).all(1).view(32, 2)
    assert torch.equal(dropped[:, 0], dropped[:, 1]) and 0 < dropped.sum() < 64


@pytest.mark.parametrize(
    'name, message',
    [
        ('resnetblur18', r'maxpool\.1 \(BlurPool2d\): padding by reflection'),
        ('edgenext_xx_small', r'pos_embd \(PositionalEncodingFourier\): its own code'),
        ('inception_v3', r'Conv2d_1a_3x3\.conv \(Conv2d\): .*kernel 3, stride 2, padding 0'),
    ],
)
def test_convnets_of_timm_that_cannot_be_carried__name_the_layer(name, message):
    timm = pytest.importorskip('timm', reason='timm is an extra')
    with pytest.raises(ValueError, match='cannot carry ' + '.*' + message):
        sparsify(timm.create_model(name, features_only=True))


def test_weights__load_into_a_classifier_of_mmpretrain():
    backbone = MODELS.build(dict(type='videomac_mm.Sparsified', backbone=REGNET))
    head = dict(type='LinearClsHead', num_classes=2, in_channels=64)
    classifier = MMPRETRAIN.build(
        dict(type='ImageClassifier', backbone=dict(REGNET, type='RegNet'), head=head)
    )
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    missing, unexpected = classifier.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith('head.') for key in missing)


def test_initialisation__is_the_network_s_own():
    states = []
    for cfg in (REGNET, dict(type='videomac_mm.Sparsified', backbone=REGNET)):
        torch.manual_seed(0)
        backbone = MODELS.build(cfg)
        backbone.init_weights()
        states.append(backbone.state_dict())
    for first, second in zip(*(state.values() for state in states)):
        assert torch.equal(first, second)
    assert (backbone.layer1[0].bn3.weight == 0).all()  # zero_init_residual


@pytest.mark.parametrize('name', ['regnet', 'mobilenet-v2', 'mobilenet-v3-se'])
def test_checkpointing__gives_the_same_gradients(name):
    plain, cheap = build(name), build(name, with_cp=True)
    cheap.load_state_dict(plain.state_dict())
    mask = random_mask(2, (2, 2), 1)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    grads = []
    for network in (plain, cheap):
        out = network(images, mask)[-1]
        network(images, random_mask(2, (2, 2), 1, seed=5))  # another mask before backward
        out.square().sum().backward()
        grads.append([param.grad for param in network.parameters()])
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('name', ['regnet', 'mobilenet-v3-se'])
def test_autocast__stays_close_to_float32(name):
    backbone = build(name).float()
    mask = random_mask(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64)
    wanted = backbone(images, mask)[-1]
    with torch.autocast('cpu', torch.bfloat16):
        out = backbone(images, mask)[-1]
    out.float().sum().backward()
    assert (out.float() - wanted).norm() / wanted.norm() < 0.1
    assert all(param.grad.isfinite().all() for param in backbone.parameters())


def test_target_network__is_a_copy_with_a_mask_of_its_own():
    backbone = build('regnet').eval()
    target = TargetNetwork(backbone=backbone)
    mask, other = random_mask(2, (2, 2), 1), random_mask(2, (2, 2), 3, seed=1)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    wanted = [backbone(images, which)[-1] for which in (mask, other)]
    assert not list(target.parameters())
    for param in backbone.parameters():
        param.data += 1.0
    moved = backbone(images, mask)[-1]
    for which, want in zip((mask, other), wanted):
        torch.testing.assert_close(target.backbone(images, which)[-1], want)
        assert torch.equal(backbone(images, mask)[-1], moved)


@pytest.mark.parametrize('with_cp', [False, True])
def test_videomac__takes_a_step(with_cp):
    backbone = dict(
        type='videomac_mm.Sparsified', backbone=dict(REGNET, with_cp=with_cp, out_indices=(2,))
    )
    model = VideoMAC(
        dict(backbone, patch_size=16),
        dict(type='videomac_mm.MaskTokenDecoder', in_channels=32, embed_dims=8, patch_size=16),
        dict(type='videomac_mm.PixelHead', patch_size=16),
        mask_generator=dict(type='videomac_mm.RandomPatchMask', patch_size=16),
        data_preprocessor=dict(type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'),
    )
    model.init_weights()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    clips = [torch.randint(256, (1, 3, 2, 64, 64), dtype=torch.uint8) for _ in range(2)]
    before = {key: param.clone() for key, param in model.named_parameters()}
    losses = model.train_step(dict(inputs=clips, data_samples=None), optimizer)
    assert losses['loss'].isfinite()
    still = {key for key, param in model.named_parameters() if torch.equal(param, before[key])}
    assert not {key for key in still if not key.startswith('backbone.layer')}
    # Branches that start at zero give no gradient to what is inside of them.
    assert all('conv' in key or '.bn1' in key or '.bn2' in key for key in still), still
    assert (model.backbone.layer3[0].bn3.weight != 0).all()


@pytest.mark.parametrize(
    'name, index, idle',
    [
        ('regnet', 1, {'layer3', 'layer4'}),
        ('mobilenet-v2', 4, {'layer6', 'layer7', 'conv2'}),
        ('vgg', 2, {f'features.{number}' for number in (7, 8, 10, 11)}),
    ],
)
def test_layers_after_the_last_output__are_left_out(name, index, idle):
    upstream = dense(name, out_indices=(index,))
    backbone = MODELS.build(dict(type='Sparsified', backbone=copy.deepcopy(upstream))).double()
    kept = [key for key in upstream.state_dict() if not key.startswith(tuple(idle))]
    assert list(backbone.state_dict()) == kept
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(backbone(images)[0], upstream.double()(images)[0])
    backbone(images, random_mask(2, (4, 4), 2))[0].sum().backward()
    assert all(param.grad is not None for param in backbone.parameters())


def test_frozen_stages__stay_frozen():
    backbone = build('mobilenet-v2', frozen_stages=2).train()
    assert not backbone.layer2.training and backbone.layer3.training
    assert not any(param.requires_grad for param in backbone.layer2.parameters())
    assert all(param.requires_grad for param in backbone.layer3.parameters())
    assert all(param.requires_grad for param in build('mobilenet-v2').parameters())


@pytest.mark.parametrize(
    'cfg, message',
    [
        (
            dict(type='ResNeSt', depth=50),
            r'layer1\.0\.conv2 \(SplitAttentionConv2d\): its own code',
        ),
        (dict(type='HorNet', arch='tiny'), r'the network itself \(HorNet\): its own code'),
        (dict(type='AlexNet'), r'features\.0 \(Conv2d\): .*kernel 11, stride 4, padding 4'),
    ],
)
def test_networks_that_cannot_be_carried__name_the_layer(cfg, message):
    backbone = dict(cfg, type='mmpretrain.' + cfg['type'])
    with pytest.raises(ValueError, match='cannot carry ' + message):
        MODELS.build(dict(type='videomac_mm.Sparsified', backbone=backbone))
