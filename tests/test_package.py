"""What an installation holds, and that every codebase of OpenMMLab finds our types in it."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mmengine
import mmengine.registry
import pytest
from mmengine.registry import Registry
from packaging.requirements import Requirement

from videomac_mm import __version__, registry


def run(command: list, folder: Path, **environ: str) -> str:
    environ = dict(os.environ, **environ)
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


# ---------------------------------------------------------------------- registries


def test_types__resolve_from_other_codebases():
    """By their scope alone: nobody imported videomac_mm."""
    code = (
        'import importlib\n'
        "for scope in ('mmengine', 'mmpretrain', 'mmaction'):\n"
        "    registry = importlib.import_module(f'{scope}.registry')\n"
        "    assert registry.HOOKS.get('videomac_mm.TargetEMAHook')\n"
        "    assert registry.MODELS.get('videomac_mm.VideoMAC')\n"
    )
    run([sys.executable, '-c', code], Path.cwd())


def test_registries__none_missing():
    """mmengine warns at every build in a default scope without a registry of the kind."""
    roots = [x for x in vars(mmengine.registry.root).values() if isinstance(x, Registry)]
    assert len(roots) > 20
    assert [x.name for x in roots if 'videomac_mm' not in x.children] == []


@pytest.mark.parametrize(
    'name', ['MODELS', 'TASK_UTILS', 'DATASETS', 'DATA_SAMPLERS', 'TRANSFORMS', 'HOOKS', 'METRICS']
)
def test_registries__locations_import(name):
    getattr(registry, name).import_from_location()
    assert getattr(registry, name)._imported


# -------------------------------------------------------------------- distributions


@pytest.fixture(scope='module')
def tree(root, tmp_path_factory) -> Path:
    """A copy of the sources, for builds leave their traces beside them."""
    copy = tmp_path_factory.mktemp('tree') / 'videomac_mm'
    ignored = ('.git', '.venv', 'build', 'dist', '*.egg-info', '.mim', '__pycache__', 'work_dirs')
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*ignored))
    # Names no build of this version may carry: what a build of an older one left.
    stale = copy / 'build' / 'lib' / 'videomac_mm' / '.mim' / 'configs'
    stale.mkdir(parents=True)
    (stale / 'stale.py').touch()
    (stale.parent.parent / 'stale.py').touch()
    return copy


def build(tree: Path, kind: str, out: Path) -> Path:
    run([sys.executable, 'setup.py', '-q', kind, '-d', out], tree)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope='module')
def wheel(tree, tmp_path_factory) -> Path:
    return build(tree, 'bdist_wheel', tmp_path_factory.mktemp('wheel'))


def test_wheel__holds_what_mim_wants(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    mim = {name.split('/.mim/')[1] for name in names if '/.mim/' in name}
    expected = {f'{d}/{name}' for d in ('configs', 'tools') for name in files_below(root / d)}
    assert mim == expected | {'model-index.yml'}
    own = {f'videomac_mm/{name}' for name in files_below(root / 'videomac_mm')}
    own = {name for name in own if '/.mim/' not in name}
    meta = f'videomac_mm-{__version__}.dist-info/'
    assert {n for n in names if '/.mim/' not in n and not n.startswith(meta)} == own


def test_sdist__builds_the_same_wheel(tree, wheel, tmp_path):
    sdist = build(tree, 'sdist', tmp_path / 'sdist')
    shutil.unpack_archive(sdist, tmp_path)
    unpacked = tmp_path / f'videomac_mm-{__version__}'
    rebuilt = build(unpacked, 'bdist_wheel', tmp_path / 'wheel')
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
    assert (unpacked / 'tests' / 'test_package.py').exists()


@pytest.mark.skipif(shutil.which('git') is None, reason='needs git')
def test_build__leaves_nothing_that_git_sees(tree, wheel):
    run(['git', 'init', '-q'], tree)
    seen = run(['git', 'status', '--porcelain', '--untracked-files=all'], tree)
    generated = [x for x in seen.splitlines() if 'build/' in x or 'egg-info' in x or '.mim' in x]
    assert generated == []


def test_config_names__are_unique(root):
    """mim finds a config by its file's name, anywhere in the package."""
    names = [path.name for path in (root / 'configs').rglob('*.py')]
    assert sorted(names) == sorted(set(names))


def test_configs__every_one_takes_steps_in_a_test(root):
    """Each of the parametrised tests of a family takes the configs of its folder, or some."""
    pytest.importorskip('mmseg', reason='tests of its configs need mmsegmentation')
    from tests import (
        test_configs,
        test_fine_tuning_configs,
        test_image_classification_configs,
        test_label_propagation_configs,
        test_recognition_2d_configs,
        test_segmentation_configs,
    )

    tested = [
        *test_configs.CONFIGS,
        *test_fine_tuning_configs.RECOGNITION,
        *test_fine_tuning_configs.DETECTION,
        *test_image_classification_configs.CONFIGS,
        *test_label_propagation_configs.CONFIGS,
        *test_recognition_2d_configs.CONFIGS,
        *test_segmentation_configs.CONFIGS,
    ]
    files = [path for path in (root / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert sorted(tested) == sorted(files)


def test_model_index__names_existing_configs(root):
    index = mmengine.load(root / 'model-index.yml')
    assert index['Import']
    for path in index['Import']:
        models = mmengine.load(root / path)['Models']
        for model in models:
            assert (root / model['Config']).is_file(), model['Config']
            assert Path(model['Config']).stem == model['Name']


def test_mim_search__finds_configs_by_their_metadata(wheel, tmp_path):
    site = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, '-m', 'mim', 'search', 'videomac_mm']
    conditions = ['--model', 'videomac', '--condition', 'epochs==100,batch_size==256']
    run([*command, *conditions, '--json', 'found.json'], tmp_path, PYTHONPATH=str(site))
    found = mmengine.load(tmp_path / 'found.json')['config']
    assert found == {name: f'configs/videomac/{name}.py' for name in found}
    names = {name.split('_8xb32-')[0] for name in found}
    assert names == {'videomac_convnextv1-small', 'videomac_convnextv1-tiny'}


def test_mim_train__finds_config_by_name(wheel, root, tmp_path):
    site = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(site)
    toy = site / 'videomac_mm' / '.mim' / 'configs' / 'toy' / 'deep'
    toy.parent.mkdir()
    shutil.copytree(root / 'tests' / 'toy', toy)
    # One level deeper than in tests/.
    config = toy / 'toy_config.py'
    config.write_text(config.read_text().replace('../../configs', '../..'))
    out = run(
        [sys.executable, '-m', 'mim', 'train', 'videomac_mm']
        + ['toy_config.py', '--gpus', '0', '--work-dir', 'work', '--no-validate'],
        tmp_path,
        PYTHONPATH=os.pathsep.join([str(site), str(toy)]),
    )
    assert 'Training finished successfully' in out
    assert (tmp_path / 'work' / 'epoch_1.pth').exists()


def test_constraints__pin_every_requirement(wheel, root):
    (name,) = [x for x in zipfile.ZipFile(wheel).namelist() if x.endswith('/METADATA')]
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    wanted = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    lines = (root / 'constraints.txt').read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith('#')]
    versions = {pin.name: str(pin.specifier).removeprefix('==') for pin in pins}
    for requirement in wanted:
        assert requirement.name in versions
        assert requirement.specifier.contains(versions[requirement.name])
