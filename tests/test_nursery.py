"""Programs in forks of pytest's own process end as others do, and know nothing of what tests have done."""

import sys
from pathlib import Path

import pytest
from forks import run_script

import posttrain

PROGRAM = """
import os, signal, sys
import posttrain
print(os.environ["WORD"], hasattr(posttrain, "changed"), __name__, os.getcwd())
if sys.argv[1] == "is killed":
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "fails":
    raise ValueError("no luck")
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(("ends", "code"), [("0", 0), ("3", 3), ("fails", 1), ("is killed", -9)])
def test_a_program_in_a_fork(ends: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(posttrain, "changed", True, raising=False)
    monkeypatch.chdir(tmp_path)
    done, said = run_script(str(script), ends, WORD="here")
    assert done == code
    assert said.startswith(f"here False __main__ {tmp_path}\n")
    assert ("ValueError: no luck" in said) == (ends == "fails")


@pytest.mark.skipif(sys.platform != "linux", reason="forks elsewhere are programs of their own")
def test_what_is_loaded_is_there_at_once(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("import sys\nprint('pytest' in sys.modules)\n", encoding="utf-8")
    assert run_script(str(script)) == (0, "True\n")
