"""The checkpoint from which a run goes on."""

import logging
import os
import re
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from videomac_mm.weights.files import load_weights_only
from videomac_mm.weights.seal import check_whole, read_seal

# The names that checkpoints of a run have by default, and `videomac_mm.CheckpointHook` gives.
_STEMS = ('epoch_#', 'iter_#', 'interim_#')
_PARTS = ('meta', 'state_dict', 'message_hub')


def newest_checkpoint(work_dir: str) -> str | None:
    """Find the newest whole checkpoint of a run.

    That is the one which ``last_checkpoint`` names, unless a neighbour with the same form of name
    was saved after that was written: then the run ended between the two. What is passed over is
    named in the log, with the reason. The main process decides for all.

    Args:
        work_dir: of the run.

    Returns:
        Path of the checkpoint. None if the run has not written any yet.

    Raises:
        RuntimeError: if there are checkpoints, but none is whole.
    """
    found: list = [None, None]
    if is_main_process():
        try:
            found[0] = _search(Path(work_dir))
        except RuntimeError as err:
            found[1] = str(err)
    broadcast_object_list(found)
    if found[1]:
        raise RuntimeError(found[1])
    return found[0]


def _search(work_dir: Path) -> str | None:
    pointed = _pointed(work_dir)
    if pointed is not None and '://' in pointed:
        return pointed  # of a remote backend, which is asked for this one file
    forms = {*_STEMS, *([_form(pointed)] if pointed else [])}
    folders = {work_dir, *([Path(pointed).parent] if pointed else [])}
    paths = [
        path
        for folder in folders
        for path in folder.glob('*.pth')
        if path.is_file() and _form(path) in forms
    ]
    passed = []
    times = {path: _saved_at(path) for path in paths}
    if pointed is not None and (path := Path(pointed)) in times:
        times[path] = max(times[path], (work_dir / 'last_checkpoint').stat().st_mtime_ns)
    for path in sorted(paths, key=times.get, reverse=True):
        problem = _problem(path)
        if problem is None:
            return str(path)
        passed.append(problem)
        print_log(f'Checkpoint passed over: {problem}', logger='current', level=logging.WARNING)
    if passed:
        raise RuntimeError(
            f'none of the {len(passed)} checkpoints in {work_dir} is whole: {"; ".join(passed)}. '
            'Remove them to train from the start'
        )
    if pointed is not None:
        print_log(
            f'{work_dir / "last_checkpoint"} names {pointed}, which does not exist, and there is '
            'no other checkpoint. The run starts from the beginning.',
            logger='current',
            level=logging.WARNING,
        )
    return None


def _pointed(work_dir: Path) -> str | None:
    try:
        return (work_dir / 'last_checkpoint').read_text(encoding='utf-8').strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _form(path: str | os.PathLike) -> str:
    """The name without its suffix, with ``#`` for each number."""
    return re.sub(r'\d+', '#', Path(path).stem)


def _saved_at(path: Path) -> int:
    """When a checkpoint was saved, in ns: as it says itself, or else when the file was changed."""
    try:
        seal = read_seal(path)
    except OSError:
        seal = None
    return seal.saved_at if seal else path.stat().st_mtime_ns


def _problem(path: Path) -> str | None:
    """Why a run cannot go on from a file; None if it can."""
    try:
        if read_seal(path) is None:  # else reading it compares the seal
            check_whole(path)
        checkpoint = load_weights_only(path, mmap=True)
    except Exception as err:  # damage and foreign content show in many ways
        reason = ' '.join(str(err).split())
        return reason if str(path) in reason else f'{path}: {type(err).__name__}: {reason}'
    held = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [part for part in _PARTS if part not in held]
    return f'{path} is not the checkpoint of a run: it lacks {missing}' if missing else None
