"""From which checkpoint a run goes on."""

import time

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import runner as mmengine_runner

import videomac_mm  # noqa: F401  repairs mmengine
from videomac_mm.weights.newest import newest_checkpoint
from videomac_mm.weights.seal import save_sealed, write_text

pytestmark = pytest.mark.reliability


@pytest.fixture
def log(caplog):
    """What mmengine logs: its loggers do not hand on what they get."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def save(path, iteration: int = 1) -> str:
    save_sealed(dict(meta=dict(iter=iteration), state_dict={}, message_hub={}), path)
    return str(path)


def damage(path: str) -> None:
    with open(path, 'r+b') as file:
        file.seek(100)
        file.write(b'damaged')


def test_newest__is_the_one_that_was_saved_last(tmp_path):
    names = [save(tmp_path / f'iter_{i}.pth') for i in (9, 3)]
    assert newest_checkpoint(str(tmp_path)) == names[1]
    save(tmp_path / 'interim_5.pth')
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / 'interim_5.pth')


def test_newest__does_not_trust_the_pointer(tmp_path):
    """A run was killed between the checkpoint and the pointer."""
    write_text(save(tmp_path / 'iter_1.pth'), tmp_path / 'last_checkpoint')
    time.sleep(0.02)  # the clock of files may be coarse
    second = save(tmp_path / 'iter_2.pth')
    assert newest_checkpoint(str(tmp_path)) == second
    write_text(str(tmp_path / 'iter_7.pth'), tmp_path / 'last_checkpoint')
    assert newest_checkpoint(str(tmp_path)) == second


def test_newest__is_an_older_one_that_the_user_points_at(tmp_path):
    first, _ = (save(tmp_path / f'iter_{i}.pth') for i in (1, 2))
    time.sleep(0.02)
    write_text(first, tmp_path / 'last_checkpoint')
    assert newest_checkpoint(str(tmp_path)) == first


def test_newest__passes_over_what_is_damaged_and_says_why(tmp_path, log):
    first, second, third = (save(tmp_path / f'iter_{i}.pth') for i in (1, 2, 3))
    damage(third)
    (tmp_path / 'iter_2.pth').write_bytes(b'')
    assert newest_checkpoint(str(tmp_path)) == first
    assert third in log.text and 'digest' in log.text
    assert second in log.text and 'is empty' in log.text


def test_newest__passes_over_code_and_foreign_files(tmp_path, log):
    good = save(tmp_path / 'iter_1.pth')

    class Code:
        def __reduce__(self):
            return open, (str(tmp_path / 'touched'), 'w')

    torch.save(dict(meta={}, state_dict=Code(), message_hub={}), tmp_path / 'iter_2.pth')
    save_sealed(dict(meta={}, state_dict=Code(), message_hub={}), tmp_path / 'iter_3.pth')
    torch.save(dict(weights=torch.ones(1)), tmp_path / 'iter_4.pth')
    torch.save([1], tmp_path / 'iter_5.pth')
    assert newest_checkpoint(str(tmp_path)) == good
    assert log.text.count('passed over') == 4
    assert "lacks ['meta', 'state_dict', 'message_hub']" in log.text
    assert not (tmp_path / 'touched').exists()


def test_newest__leaves_other_files_out(tmp_path):
    good = save(tmp_path / 'iter_1.pth')
    save(tmp_path / 'best_acc_iter_2.pth')  # has no optimiser
    save(tmp_path / '.iter_3.pth.part')
    assert newest_checkpoint(str(tmp_path)) == good


def test_newest__knows_names_of_the_users_own(tmp_path):
    write_text(save(tmp_path / 'elsewhere' / 'run_1.pth'), tmp_path / 'last_checkpoint')
    time.sleep(0.02)
    save(tmp_path / 'elsewhere' / 'run_2.pth')
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / 'elsewhere' / 'run_2.pth')


def test_newest__is_none_before_the_first_one(tmp_path):
    assert newest_checkpoint(str(tmp_path)) is None
    write_text(str(tmp_path / 'iter_1.pth'), tmp_path / 'last_checkpoint')
    assert newest_checkpoint(str(tmp_path)) is None


def test_newest__stops_where_none_is_whole(tmp_path):
    """A run of many days must not begin anew without a word."""
    damage(save(tmp_path / 'iter_1.pth'))
    with pytest.raises(RuntimeError, match=r'none of the 1 checkpoints .* is whole: .*iter_1'):
        newest_checkpoint(str(tmp_path))


def test_newest__takes_stock_files_by_their_time(tmp_path):
    torch.save(dict(meta={}, state_dict={}, message_hub={}), tmp_path / 'epoch_1.pth')
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')


def test_newest__is_what_every_runner_resumes_from(tmp_path):
    first, second = (save(tmp_path / f'iter_{i}.pth') for i in (1, 2))
    damage(second)
    assert mmengine_runner.find_latest_checkpoint(str(tmp_path)) == first
