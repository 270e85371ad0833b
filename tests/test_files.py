"""File locks."""

import subprocess
import sys

import pytest

from ml.files import LockedError, locked

HOLD = """
import subprocess, sys, time
from pathlib import Path
from ml.files import LockedError, locked
try:
    with locked(Path(sys.argv[1]), kept_by_children=sys.argv[2] == "True"):
        print("held", flush=True)
        sys.stdin.read()
except LockedError:
    print("refused", flush=True)
"""


@pytest.mark.parametrize("kept_by_children", [True, False])
def test_a_lock_has_one_owner_until_it_is_released(tmp_path, kept_by_children):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock"), str(kept_by_children)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "refused\n"
    with pytest.raises(LockedError), locked(tmp_path / "lock", kept_by_children=kept_by_children):
        pass
    first.kill()
    first.communicate()
    with locked(tmp_path / "lock", kept_by_children=kept_by_children):
        pass


def test_a_folder_is_locked_without_a_file_in_it(tmp_path):
    with locked(tmp_path, kept_by_children=True):
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(LockedError), locked(tmp_path, kept_by_children=True):
            pass


def test_errors_of_the_block_are_not_changed(tmp_path):
    with pytest.raises(PermissionError, match="mine"), locked(tmp_path, kept_by_children=True):
        raise PermissionError("mine")
