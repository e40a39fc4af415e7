"""Children of a command, and of a program that uses `Run`, run no code of the folder one stands in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcdm_cli.workers.environment import variables

ROOT = Path(__file__).parents[2]
COMMAND = """
    from dcdm_cli.cli import main
    sys.argv = ["dcdm", "--version"]
    try:
        main()
    except SystemExit:
        pass
    start()
"""
PROGRAM = """
    from dcdm_cli import Run
    with Run(sys.argv[1] + "/run", quiet=True)._opened("generate", False, {}):
        start()
    assert "PYTHONSAFEPATH" not in os.environ
"""
STARTS = {
    "workers": """
    from dcdm_cli.workers.local import LocalTransport
    from tests.workers.toys import open_toy
    transport = LocalTransport(open_toy, ["a"])
    transport.start(0)
    assert transport.hear(60)[0].kind == "open"
    transport.close()
""",
    "pool": """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    with ProcessPoolExecutor(1, spawn) as pool:
        assert pool.submit(abs, -1).result() == 1
""",
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("begin", [COMMAND, PROGRAM], ids=["command", "program"])
def test_children_run_no_module_of_the_folder_one_stands_in(tmp_path: Path, begin: str, start: str) -> None:
    """As the installed program stands elsewhere: its own folder is in the path, the one it is called from is not."""
    here, script = tmp_path / "here", tmp_path / "bin" / "dcdm.py"
    here.mkdir()
    script.parent.mkdir()
    hit = tmp_path / "hit"
    (here / "pickle.py").write_text(f"open({str(hit)!r}, 'w').close()\nraise SystemExit('code of somebody else')\n")
    script.write_text(f"import os, sys\ndef start():{STARTS[start]}\nif __name__ == '__main__':{begin}")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'export'}"}
    words = [sys.executable, str(script), str(tmp_path)]
    said = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr, hit.exists()) == (0, "", False)


def test_variables_are_afterwards_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCDM_TEST_A", "1")
    monkeypatch.delenv("DCDM_TEST_B", raising=False)
    with pytest.raises(KeyError), variables({"DCDM_TEST_A": "2", "DCDM_TEST_B": "3"}):
        assert (os.environ["DCDM_TEST_A"], os.environ["DCDM_TEST_B"]) == ("2", "3")
        raise KeyError
    assert os.environ["DCDM_TEST_A"] == "1" and "DCDM_TEST_B" not in os.environ
