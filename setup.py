"""Packaging. `mim` wants configs, tools and the model index inside the installed package."""

import shutil
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PACKAGE = 'videomac_mm'
MIM_FILES = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Fills ``videomac_mm/.mim``: copies in a build, links in an editable clone."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            self._link(ROOT / PACKAGE / '.mim')
        else:
            # setuptools keeps what an earlier build left here, deleted files too.
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
            super().run()
            self._copy(Path(self.build_lib) / PACKAGE / '.mim')

    def _link(self, mim: Path) -> None:
        mim.mkdir(exist_ok=True)
        for name in MIM_FILES:
            link = mim / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path('..', '..', name))

    def _copy(self, mim: Path) -> None:
        mim.mkdir(parents=True)
        for name in MIM_FILES:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns('__pycache__', '*.pyc')
                shutil.copytree(source, mim / name, ignore=ignored)
            else:
                shutil.copy(source, mim / name)


def version() -> str:
    scope: dict = {}
    exec((ROOT / PACKAGE / 'version.py').read_text(), scope)
    return scope['__version__']


# decord has wheels for x86 alone, and mmaction2 asks for it, without ever importing it by itself.
# Elsewhere: pip install --no-deps mmaction2.
has_decord = "platform_machine in 'x86_64 AMD64'"
# The compiled mmcv and mmcv-lite are two distributions of one package and overwrite each
# other, so neither is forced on anybody: this extra is for those who have none.
lite = ['mmcv-lite>=2.0.1,<2.2']
weights = ['safetensors']  # what tools/convert_weights.py can read and write besides
segmentation = ['mmsegmentation>=1.2,<2', 'ftfy', 'regex']  # it imports both, but asks for neither
# Its faults are known of this version (sparse/ops/spconv.py). Wheels exist for this platform alone;
# on GPUs spconv-cu126 takes the place of spconv: they are two distributions of one package.
spconv = ["spconv==2.3.8; sys_platform == 'linux' and platform_machine == 'x86_64'"]
optional = [*weights, *segmentation, *spconv, *lite]
tests = ['pytest>=7', 'pytest-xdist', 'ruff', 'timm>=1', *optional]

setup(
    name=PACKAGE,
    version=version(),
    description='VideoMAC, VideoMAE, MotionMAE and CMAE-V pre-training as an OpenMMLab plugin',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='VideoMAC-MM authors',
    license='Apache-2.0',
    classifiers=[
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_namespace_packages(include=[PACKAGE, f'{PACKAGE}.*'], exclude=['*.__pycache__']),
    package_data={'': ['*.cpp', '*.h', '*.md']},
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.10',  # before, weights_only=True can be made to run code (CVE-2026-24747)
        'torchvision',
        'numpy>=1.23',
        'opencv-python',
        'pillow',
        'scipy',
        'av>=17',  # reads and writes videos; 16 takes all colours for BT.601
        f'decord; {has_decord}',
        'mmengine>=0.10.4,<1',
        'mmpretrain>=1.2,<2',
        f'mmaction2>=1.2,<2; {has_decord}',
        'einops',  # what mmaction2 wants beside decord
        'matplotlib',
        'openmim>=0.3.9',
        # mim imports pkg_resources, gone in 81; openmim's own dependencies would drag
        # setuptools down to 60, on which mim crashes under Python 3.12.
        'setuptools>=70,<81',
    ],
    extras_require={
        'lite': lite,
        'weights': weights,
        'segmentation': segmentation,
        'spconv': spconv,
        'tests': tests,
        'all': [*tests, 'tensorboard'],
    },
    zip_safe=False,
)
