"""tools/convert_weights.py, run in this process."""

import argparse
import os
import re
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmpretrain.models.backbones.convnext import ConvNeXt

from tests.test_models import test_videomae
from tests.test_weights.examples import (
    ARCH,
    CONVNEXTS,
    assert_same,
    build,
    dense,
    of_backbone,
    timm_model,
    to_official,
    to_official_videomae,
)
from videomac_mm.weights import to_mmaction, to_timm


def test_tool__converts_both_networks_of_an_official_checkpoint(tmp_path, run_tool):
    model = build('convnext-v2')  # its target has other weights than its online network
    weights = model.state_dict()
    target = {k.removeprefix('target.'): v for k, v in weights.items() if k.startswith('target.')}
    checkpoint = dict(
        model_online={f'module.{key}': value for key, value in to_official(weights).items()},
        model_target=to_official(target),
        epoch=99,
        args=argparse.Namespace(model='mac_convnextv2_tiny'),
    )
    torch.save(checkpoint, tmp_path / 'official.pth')
    printed = run_tool(tmp_path / 'official.pth', tmp_path / 'new' / 'ours.pth')
    assert re.search(rf'backbone\s+{len(model.backbone.state_dict())} tensors', printed)

    other = build('convnext-v2')
    loaded = load_checkpoint(other, str(tmp_path / 'new' / 'ours.pth'), strict=True)
    assert loaded['meta']['epoch'] == 100
    for key, value in weights.items():
        assert torch.equal(other.state_dict()[key], value), key


def test_tool__one_network_becomes_online_and_target(tmp_path, run_tool):
    model = build('bottleneck')
    torch.save(dict(model=to_official(model.state_dict())), tmp_path / 'official.pth')
    printed = run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth')
    assert 'the target becomes its copy' in printed
    state_dict = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert set(state_dict) == set(model.state_dict())
    for key, value in state_dict.items():
        assert torch.equal(value, model.state_dict()[key.removeprefix('target.')]), key


class Intruder:
    def __reduce__(self):
        return os.mkdir, ('intruder-was-here',)


def test_tool__refuses_files_that_hold_code(tmp_path, run_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(model={}, extra=Intruder()), 'bad.pth')
    with pytest.raises(ValueError, match='(?s)bad.pth is refused: .*tensors and plain.*mkdir'):
        run_tool(Path('bad.pth'), Path('ours.pth'))
    assert [path.name for path in tmp_path.iterdir()] == ['bad.pth']


def test_tool__names_what_it_found_instead_of_weights(tmp_path, run_tool):
    torch.save(dict(epoch=3, scaler={}), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=r"got the keys \['epoch', 'scaler'\]"):
        run_tool(tmp_path / 'bad.pth', tmp_path / 'ours.pth')


def test_tool__lists_keys_of_other_code(tmp_path, run_tool):
    torch.save({'features.0.weight': torch.ones(1)}, tmp_path / 'bad.pth')
    with pytest.raises(KeyError, match='features.0.weight'):
        run_tool(tmp_path / 'bad.pth', tmp_path / 'ours.pth')


def test_tool__converts_a_checkpoint_of_videomae(tmp_path, run_tool):
    model = test_videomae.build()
    weights = model.state_dict()
    checkpoint = dict(
        model={f'module.{key}': value for key, value in to_official_videomae(weights).items()},
        epoch=799,
        args=argparse.Namespace(model='pretrain_videomae_base_patch16_224'),
    )
    torch.save(checkpoint, tmp_path / 'official.pth')
    printed = run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--source', 'videomae')
    assert re.search(rf'backbone\s+{len(model.backbone.state_dict()) - 1} tensors', printed)
    assert re.search(rf'neck\s+{len(model.neck.state_dict())} tensors', printed)
    assert 'target' not in printed

    loaded = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert loaded['meta']['epoch'] == 800 and loaded['meta']['source'] == 'videomae'
    other = test_videomae.build()
    missing, unexpected = other.load_state_dict(loaded['state_dict'], strict=False)
    assert (missing, unexpected) == (['backbone.pos_embed'], [])
    for key, value in weights.items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize('source', ['videomac', 'videomae'])
def test_tool__refuses_weights_of_the_other_code(source, tmp_path, run_tool):
    if source == 'videomac':
        weights = to_official_videomae(test_videomae.build().state_dict())
    else:
        weights = to_official(build('convnext-v2').state_dict())
    torch.save(dict(model=weights), tmp_path / 'official.pth')
    with pytest.raises(KeyError, match=rf'(?i)not weights of the official {source} code'):
        run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--source', source)
    assert not (tmp_path / 'ours.pth').exists()


@pytest.mark.parametrize('target', ['mmpretrain', 'mmaction', 'timm'])
@pytest.mark.parametrize('name', ['convnext-v2', 'resnet-18'])
def test_tool__exports_and_takes_back(tmp_path, run_tool, name, target):
    weights = dense(name)
    extra = {'neck.mask_token': torch.ones(1), 'target.neck.mask_token': torch.ones(1)}
    torch.save(dict(state_dict=weights | extra, meta=dict(epoch=3)), tmp_path / 'ours.pth')
    path = tmp_path / 'new' / 'theirs.pth'
    printed = run_tool(tmp_path / 'ours.pth', path, '--source', 'ours', '--target', target)
    assert 'left out: neck.mask_token, target.neck.mask_token' in printed
    source = 'ours' if target == 'mmpretrain' else target
    run_tool(path, tmp_path / 'back.pth', '--source', source)
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    assert_same(back, weights)


@pytest.mark.parametrize('name', [*CONVNEXTS, 'resnet-18'])
def test_tool__writes_and_reads_a_backbone_as_safetensors(tmp_path, run_tool, name):
    safetensors = pytest.importorskip('safetensors.torch')
    weights = dense(name)
    torch.save(dict(state_dict=weights), tmp_path / 'ours.pth')
    ours, timms = tmp_path / 'backbone.safetensors', tmp_path / 'timm.safetensors'
    run_tool(tmp_path / 'ours.pth', ours, '--source', 'ours')
    assert_same(safetensors.load_file(ours), of_backbone(weights))
    run_tool(ours, timms, '--source', 'ours', '--target', 'timm')
    if name in CONVNEXTS:  # the small ResNets of this file have other widths
        model = timm_model(name, num_classes=0)
        model.load_state_dict(safetensors.load_file(timms), strict=True)
    back = tmp_path / 'back.safetensors'
    run_tool(timms, back, '--source', 'timm')
    assert_same(safetensors.load_file(back), of_backbone(weights))


def test_tool__drops_only_what_is_named(tmp_path, run_tool):
    model = build('convnext-v2')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'ours.pth')
    options = ('--source', 'ours', '--target', 'mmpretrain')
    with pytest.raises(KeyError, match=r"mmpretrain for: \['backbone.norm0.weight'.*norm2.bias'\]"):
        run_tool(tmp_path / 'ours.pth', tmp_path / 'theirs.pth', *options)
    assert not (tmp_path / 'theirs.pth').exists()
    drop = ('--drop', r'backbone\.norm[0-2]\..*')
    printed = run_tool(tmp_path / 'ours.pth', tmp_path / 'theirs.pth', *options, *drop)
    assert 'backbone.norm0.weight' in printed
    state_dict = torch.load(tmp_path / 'theirs.pth', weights_only=True)['state_dict']
    theirs = ConvNeXt(ARCH, use_grn=True, layer_scale_init_value=0.0)
    theirs.load_state_dict(of_backbone(state_dict), strict=True)


@pytest.mark.parametrize('source', ['timm', 'fcmae', 'mmaction'])
def test_tool__lists_missing_keys_and_writes_nothing(tmp_path, run_tool, source):
    weights = dense('convnext-v2')
    official = {
        'timm': to_timm,
        'mmaction': to_mmaction,
        'fcmae': lambda weights: to_official(
            {k: v for k, v in weights.items() if not re.match(r'head|backbone\.norm', k)}
        ),
    }[source](weights)
    missing = next(k for k in official if re.search(r'stages\.2\.(blocks\.)?0\.', k))
    torch.save({k: v for k, v in official.items() if k != missing}, tmp_path / 'official.pth')
    with pytest.raises(KeyError, match=r"missing \['backbone.stages.2.0.[\w.]+'\], unknown \[\]"):
        run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--source', source)
    assert not (tmp_path / 'ours.pth').exists()
