"""No checkpoint that anything here reads can run code, wherever it comes from."""

import functools
import json
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mmengine.runner.checkpoint as checkpoints
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import videomac_mm  # noqa: F401  its repairs are part of what is tested
from videomac_mm.apis import LabelPropagationInferencer, get_model
from videomac_mm.registry import MODELS
from videomac_mm.weights import UnsafeCheckpointError

pytestmark = pytest.mark.reliability

TOY = Path(__file__).parents[1] / 'toy'


class Intruder:
    """Creates a file as it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.fixture(params=[False, True], ids=['', 'told to unpickle freely'])
def _variable(request, monkeypatch) -> None:
    """As a user may have it: torch's variable that lets ``torch.load`` run code is set or not."""
    monkeypatch.delenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', raising=False)
    if request.param:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')


@pytest.fixture
def folder(tmp_path, monkeypatch, _variable) -> Path:
    """Where checkpoints lie; what is downloaded goes elsewhere."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.syspath_prepend(TOY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'home').mkdir()
    (tmp_path / 'files').mkdir()
    return tmp_path / 'files'


@pytest.fixture
def trap(tmp_path, folder) -> Path:
    """The file that must not appear. ``epoch_1.pth``, a checkpoint of a run, would create it."""
    checkpoint = dict(state_dict={}, meta=dict(epoch=1, iter=2), message_hub={}, optimizer={})
    checkpoint['meta']['intruder'] = Intruder(tmp_path / 'trap')
    torch.save(checkpoint, folder / 'epoch_1.pth')
    torch.load(folder / 'epoch_1.pth', weights_only=False)  # the trap works
    (tmp_path / 'trap').unlink()
    return tmp_path / 'trap'


@pytest.fixture
def url(folder) -> Iterator[str]:
    """Of a server of the folder."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def runner(checkpoint: str | None, **changes) -> Runner:
    cfg = Config.fromfile(TOY / 'toy_config.py')
    cfg.update(dict(work_dir='work', load_from=checkpoint, log_level='ERROR') | changes)
    return Runner.from_cfg(cfg)


def tool(name: str, *arguments: str) -> None:
    """Run a tool in this process, which spares the imports."""
    path = Path(__file__).parents[2] / 'tools' / name
    before = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name='__main__')
    finally:
        sys.argv = before


def pretrained(checkpoint: str, **init_cfg) -> None:
    init_cfg.update(type='Pretrained', checkpoint=checkpoint)
    network = dict(type='videomac_mm.SparseConvNeXt', arch='atto', init_cfg=init_cfg)
    MODELS.build(network).init_weights()


ENTRIES: dict[str, Callable] = {
    'resume a run': lambda file: runner(file, resume=True).train(),
    'load_from, to train': lambda file: runner(file).train(),
    'load_from, to test': lambda file: runner(file).test(),
    'tools/test.py': lambda file: tool(
        'test.py', str(TOY / 'toy_config.py'), file, '--work-dir', 'work'
    ),
    'tools/train.py': lambda file: tool(
        'train.py', str(TOY / 'toy_config.py'), '--cfg-options', f'load_from={file}'
    ),
    'inferencer': lambda file: LabelPropagationInferencer(TOY / 'propagation_config.py', file),
    'get_model': lambda file: get_model('videomac_convnextv2-atto_demo', pretrained=file),
    'get_model of mmpretrain': lambda file: get_model(
        'finetune_convnextv2-atto_synthetic-112', pretrained=file
    ),
    'init_cfg': pretrained,
    'init_cfg with a prefix': functools.partial(pretrained, prefix='backbone.'),
}


@pytest.mark.parametrize('entry', ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize('place', ['file', 'url'])
def test_code__is_refused_at_every_entry(entry, place, folder, trap, request):
    at = str(folder) if place == 'file' else request.getfixturevalue('url')
    with pytest.raises(UnsafeCheckpointError) as error:
        entry(f'{at}/epoch_1.pth')
    assert f'{at}/epoch_1.pth is refused' in str(error.value)
    assert 'asks for io.open' in str(error.value) and 'weights_only' not in str(error.value)
    assert not trap.exists()


def test_code__is_refused_by_the_converter(folder, trap):
    with pytest.raises(UnsafeCheckpointError, match='epoch_1.pth is refused.*asks for io.open'):
        tool('convert_weights.py', str(folder / 'epoch_1.pth'), 'ours.pth')
    assert not trap.exists() and not Path('ours.pth').exists()


def test_code__is_passed_over_by_a_run_that_looks_for_its_newest_checkpoint(folder, trap):
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    with pytest.raises(RuntimeError, match='epoch_1.pth is refused.*asks for io.open'):
        runner(None, resume=True, work_dir=str(folder)).train()
    assert not trap.exists()


@pytest.mark.parametrize(
    'source', ['torchvision://x', 'modelzoo://x', 'mmcls://x', 'openmmlab://x', 'open-mmlab://x']
)
def test_code__is_refused_from_named_models(source, folder, trap, url, monkeypatch):
    for list_models in ('get_torchvision_models', 'get_mmcls_models', 'get_external_models'):
        monkeypatch.setattr(checkpoints, list_models, lambda: dict(x=f'{url}/epoch_1.pth'))
    with pytest.raises(UnsafeCheckpointError, match='asks for io.open'):
        checkpoints._load_checkpoint(source, map_location='cpu')
    assert not trap.exists()


def test_code__is_refused_from_files_of_named_models(folder, trap, tmp_path):
    names = dict(x=str(folder / 'epoch_1.pth'))
    (tmp_path / 'home/open_mmlab.json').write_text(json.dumps(names))
    with pytest.raises(UnsafeCheckpointError, match='epoch_1.pth is refused'):
        checkpoints._load_checkpoint('openmmlab://x', map_location='cpu')
    assert not trap.exists()


@pytest.mark.parametrize('scheme', ['s3', 'petrel', 'cluster:s3'])
def test_code__is_refused_from_object_stores(scheme, folder, trap, monkeypatch):
    class Store:
        def get(self, path: str) -> bytes:
            return (folder / path.rpartition('/')[2]).read_bytes()

    monkeypatch.setattr(checkpoints, 'get_file_backend', lambda *args, **kwargs: Store())
    torch.save(dict(weight=torch.ones(2)), folder / 'good.pth')
    loaded = checkpoints._load_checkpoint(f'{scheme}://bucket/good.pth', map_location='cpu')
    assert torch.equal(loaded['weight'], torch.ones(2))
    with pytest.raises(UnsafeCheckpointError, match='asks for io.open'):
        checkpoints._load_checkpoint(f'{scheme}://bucket/epoch_1.pth', map_location='cpu')
    assert not trap.exists()


def test_code__of_torchscript_is_refused(folder):
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / 'script.pth')
    with pytest.raises(UnsafeCheckpointError, match='script.pth is refused.*TorchScript'):
        checkpoints._load_checkpoint(str(folder / 'script.pth'))


def test_weights__load_from_a_url(folder, url):
    model = get_model('videomac_convnextv2-atto_demo')
    torch.save(dict(state_dict=model.state_dict()), folder / 'weights.pth')
    again = get_model('videomac_convnextv2-atto_demo', pretrained=f'{url}/weights.pth')
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
