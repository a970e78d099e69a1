"""Optional models that the installed packages do not fit stop nothing but themselves."""

import pytest

# A `transformers` that has every name but those that releases up to 5.0 dropped.
FAKES = """
import importlib.abc, importlib.machinery, sys, types
GONE = {'apply_chunking_to_forward', 'find_pruneable_heads_and_indices', 'prune_linear_layer'}
class AutoModel:
    from_pretrained = from_config = None
class Fake(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith('__') or name in GONE:
            raise AttributeError(name)
        return AutoModel if name == '_BaseAutoModelClass' else type(name, (AutoModel,), {})
class Fakes(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        parts = name.split('.')
        if parts[0] in ('transformers', 'pycocotools') and parts[-1] not in GONE:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return Fake(spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Fakes())
"""


@pytest.fixture
def fakes(tmp_path) -> str:
    """Code that makes the fakes importable; mmaction2 and mmpretrain see their versions."""
    for name, version in (('transformers', '5.0.0'), ('pycocotools', '2.0.11')):
        folder = tmp_path / f'{name}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
    return f'{FAKES}sys.path.insert(0, {str(tmp_path)!r})\n'


def test_multimodal_models__stop_no_other_model(fakes, run_python):
    run_python(
        f'{fakes}'
        'import pytest, videomac_mm\n'
        'from mmaction.registry import MODELS as actions\n'
        'from mmpretrain.registry import MODELS as images\n'
        "assert actions.get('mmaction.TSNHead') and images.get('mmpretrain.ConvNeXt')\n"
        "assert actions.get('videomac_mm.VideoMAC')\n"
        'import mmaction.utils.dependency, mmpretrain.utils.dependency\n'
        'for toolbox in (mmaction, mmpretrain):\n'
        '    assert toolbox.utils.dependency.WITH_MULTIMODAL\n'
        "with pytest.raises(ImportError, match='VindLUVQA.*apply_chunking_to_forward'):\n"
        "    actions.build(dict(type='mmaction.VindLUVQA'))\n"
        "with pytest.raises(ImportError, match='Blip2VQA.*transformers==4.49.0'):\n"
        "    images.build(dict(type='mmpretrain.Blip2VQA'))\n"
    )


def test_multimodal_models__import_after_a_failed_first_import(fakes, run_python):
    run_python(
        f'{fakes}'
        'import pytest\n'
        'with pytest.raises(TypeError):\n'
        '    import mmpretrain.models\n'
        'import videomac_mm, mmpretrain.models\n'
        'from mmpretrain.registry import MODELS\n'
        "assert MODELS.get('mmpretrain.ConvNeXt')\n"
        "with pytest.raises(ImportError, match='BlipCaption'):\n"
        "    MODELS.build(dict(type='mmpretrain.BlipCaption'))\n"
    )


def test_multimodal_models__stay_where_they_import():
    """Without `transformers`, upstream's own placeholders stand."""
    from mmaction.registry import MODELS
    from mmaction.utils.dependency import WITH_MULTIMODAL

    if WITH_MULTIMODAL:
        pytest.skip('transformers is installed')
    assert MODELS.get('mmaction.VindLUVQA').__module__ == 'mmaction.utils.dependency'
