"""Weights that are not those of one whole network."""

import re

import pytest
import torch
from torch import Tensor, nn

from tests.test_models import test_videomae
from tests.test_weights.examples import CONVNEXTS, RESNETS, build, dense
from videomac_mm.weights import check_complete

NAMES = [*CONVNEXTS, *RESNETS, 'videomac-v1', 'videomac-resnet', 'videomae']


def whole(name: str) -> tuple[dict[str, Tensor], bool]:
    """The weights of a network, and whether its norms are inline."""
    inline = name.startswith('videomac-v')
    if name == 'videomae':
        weights = test_videomae.build().state_dict()
    elif name.startswith('videomac'):
        model = build('convnext-v1' if inline else 'basic-block')
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith('target.')}
    else:
        weights = dense(name)
    return weights, inline


@pytest.mark.parametrize('name', NAMES)
def test_check_complete__lists_whatever_is_missing(name):
    weights, inline = whole(name)
    check_complete(weights, inline_norms=inline)
    needed = [key for key in weights if not key.endswith(('num_batches_tracked', 'pos_embed'))]
    # The last block's keys, of those that all blocks have, are the hardest to miss.
    for key in needed[:: max(1, len(needed) // 40)] + needed[-4:]:
        with pytest.raises(KeyError, match=re.escape(repr(key))):
            check_complete({k: v for k, v in weights.items() if k != key}, inline_norms=inline)
    with pytest.raises(KeyError, match=r"unknown \['backbone.spare.weight'\]"):
        check_complete(weights | {'backbone.spare.weight': torch.ones(1)}, inline_norms=inline)


@pytest.mark.parametrize('name', NAMES)
def test_check_complete__lists_every_tensor_of_another_shape(name):
    weights, inline = whole(name)
    checked = 0
    for key, value in weights.items():
        block = re.match(r'backbone\.(stages|layer\d|blocks)\.\d', key)
        if value.ndim == 0 or not block:
            continue  # the stem's sizes, for instance, are free
        checked += 1
        for axis in range(value.ndim):
            shape = list(value.shape)
            shape[axis] += 1
            found = f'{key}: {tuple(shape)} instead of {tuple(value.shape)}'
            with pytest.raises(KeyError, match=re.escape(found)) as raised:
                check_complete(weights | {key: torch.empty(shape)}, inline_norms=inline)
            assert raised.value.args[0].count('instead of') == 1
    assert checked > 10


@pytest.mark.parametrize(
    'name, key, wrong',
    [
        ('convnext-v2', 'backbone.downsample_layers.0.0.weight', (5, 3, 4, 4)),
        ('convnext-v2', 'backbone.norm3.bias', (9,)),
        ('convnext-v2', 'head.fc.weight', (5, 9)),
        ('resnet-50', 'backbone.conv1.weight', (5, 3, 7, 7)),
        ('resnet-50', 'head.fc.weight', (5, 64)),
        ('videomac-v1', 'neck.proj.weight', (8, 12, 1, 1)),
        ('videomac-v1', 'neck.pred.weight', (3072, 9, 1, 1)),
        ('videomae', 'backbone.patch_embed.projection.weight', (13, 3, 2, 8, 8)),
        ('videomae', 'backbone.pos_embed', (1, 18, 13)),
        ('videomae', 'neck.decoders.0.proj.weight', (8, 13)),
        ('videomae', 'neck.decoders.0.mask_token', (1, 1, 9)),
    ],
)
def test_check_complete__parts_must_fit_each_other(name, key, wrong):
    weights, inline = whole(name)
    assert len(wrong) == weights[key].ndim and wrong != tuple(weights[key].shape)
    with pytest.raises(KeyError, match=re.escape(f'{key}: {wrong} instead of ')):
        check_complete(weights | {key: torch.empty(wrong)}, inline_norms=inline)


def test_check_complete__initialises_nothing(monkeypatch):
    """Large networks take no time and no memory: parameters of the comparison have no values."""
    weights = dense('convnext-v2')
    touched = []

    def on_meta(tensor, *args, **kwargs):
        touched.append(tensor.is_meta)
        return tensor

    monkeypatch.setattr(torch.nn.init, 'kaiming_uniform_', on_meta)
    check_complete(weights)
    assert touched and all(touched)
    assert not nn.Linear(2, 2).weight.is_meta  # outside all is as it was


def test_check_complete__counters_and_fixed_positions_may_be_missing():
    weights = dense('resnet-18')
    check_complete({k: v for k, v in weights.items() if not k.endswith('num_batches_tracked')})
    weights = test_videomae.build().state_dict()
    assert weights.pop('backbone.pos_embed') is not None
    check_complete(weights)


def test_check_complete__names_what_is_no_backbone():
    with pytest.raises(KeyError, match=r"no backbone.*\['features.0.weight'\]"):
        check_complete({'backbone.features.0.weight': torch.ones(1)})
