"""Which files are read, and what reading leaves behind."""

import argparse
import os
import sys

import pytest
import torch

from videomac_mm.weights import read_checkpoint


def test_safetensors__absent_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match=r"pip install 'videomac_mm\[weights\]'"):
        read_checkpoint(tmp_path / 'backbone.safetensors')


class Intruder:
    def __reduce__(self):
        return os.mkdir, ('intruder-was-here',)


@pytest.mark.parametrize('allowed_before', [False, True])
@pytest.mark.parametrize('content', ['good', 'code', 'no dict'])
def test_read_checkpoint__leaves_what_torch_may_read_as_it_was(content, allowed_before, tmp_path):
    extra = Intruder() if content == 'code' else argparse.Namespace(model='tiny')
    checkpoint = [1] if content == 'no dict' else dict(weight=torch.ones(2), args=extra)
    torch.save(checkpoint, tmp_path / 'file.pth')
    start = set(torch.serialization.get_safe_globals())
    try:
        torch.serialization.clear_safe_globals()
        others = start - {argparse.Namespace}
        before = others | ({argparse.Namespace} if allowed_before else set())
        torch.serialization.add_safe_globals(list(before))
        if content == 'good':
            read = read_checkpoint(tmp_path / 'file.pth')
            assert read['args'].model == 'tiny' and torch.equal(read['weight'], torch.ones(2))
        else:
            with pytest.raises(ValueError, match='file.pth'):
                read_checkpoint(tmp_path / 'file.pth')
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(start))
