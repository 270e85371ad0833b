"""Programs in forked processes end, write and read as in a new interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
from warm_python import run_python

ROOT = Path(__file__).parents[1]
SHOWN = "import os, sys; print(__name__, sys.argv[1:], os.getcwd(), os.environ.get('SHOWN'), input())"
PROGRAMS = {
    "program": ["-c", SHOWN, "one", "two"],
    "file": ["shown.py", "one"],
    "module": ["-m", "shown", "one"],
    "exit code": ["-c", "import sys; print('out'); sys.exit(3)"],
    "message": ["-c", "import sys; sys.exit('wrong')"],
    "absent file": [str(ROOT / "train.py"), "--gin_file=absent.gin"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_forked_program_does_what_a_new_one_does(name, tmp_path):
    (tmp_path / "shown.py").write_text(SHOWN)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SHOWN": "yes"}
    forked = run_python(*PROGRAMS[name], cwd=tmp_path, env=environment, stdin="line\n")
    command = [sys.executable, *PROGRAMS[name]]
    new = subprocess.run(
        command, cwd=tmp_path, env=environment, input="line\n", capture_output=True, text=True, check=False
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)


def test_an_error_of_a_forked_program_is_shown(tmp_path):
    done = run_python("-c", "raise ValueError('seen')", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ValueError: seen\n")


def test_a_forked_program_that_does_not_end_is_killed(tmp_path):
    assert run_python("-c", "while True: pass", cwd=tmp_path, timeout=1).returncode < 0


def test_forked_programs_do_not_see_each_other(tmp_path):
    run_python("-c", "import os, ml; ml.seen = 1; os.environ['SEEN'] = '1'", cwd=tmp_path)
    done = run_python("-c", "import os, ml; print(hasattr(ml, 'seen'), os.environ.get('SEEN'))", cwd=tmp_path)
    assert done.stdout == "False None\n"
