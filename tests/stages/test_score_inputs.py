"""What scoring refuses before it reads an image."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.run.settings import Config
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.score import check_inputs, refuse_shared_place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "images"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("source", "cwd", "elsewhere"),
    [(".", ".", "../photos-run"), ("**/*.parquet", ".", "../photos-run"), ("..", "cat", "../../photos-run")],
)
def test_results_are_not_put_among_the_images(
    photos: Path, monkeypatch: pytest.MonkeyPatch, source: str, cwd: str, elsewhere: str
) -> None:
    """The second scoring would take `figures` for a class, and no class could be called `images`."""
    monkeypatch.chdir(photos / cwd)
    with pytest.raises(UsageError, match="holds the images themselves") as caught:
        refuse_shared_place(RunFolder(Path()), source)
    assert caught.value.hint.endswith(f"--run {elsewhere}")
    refuse_shared_place(RunFolder(Path(elsewhere)), source)
    (photos / cwd / ".lock.json").write_text("{}")  # as earlier versions left it
    if cwd == ".":
        with pytest.raises(UsageError) as caught:
            refuse_shared_place(RunFolder(Path()), source)
        assert "move the images" in caught.value.hint


def test_a_run_folder_may_lie_among_the_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    run = RunFolder(Path("dcdm-run"))
    refuse_shared_place(run, ".")
    run.create()
    with run.lock("dcdm score"):
        run.checkpoints.mkdir()
    (run.path / "figure.png").write_bytes((photos / "cat" / "1.png").read_bytes())
    refuse_shared_place(run, ".")
    for source in ("cat", "hf:owner/name", "-", "digits", "nowhere", "list.csv"):
        refuse_shared_place(RunFolder(Path()), source)


@pytest.mark.parametrize(("section", "name"), [("score", "classifier"), ("data", "drop"), ("data", "relabel")])
def test_files_that_settings_name_are_missed(tmp_path: Path, section: str, name: str) -> None:
    config = Config.model_validate({section: {name: tmp_path / "gone.safetensors"}})
    with pytest.raises(NotFoundError, match=r"gone\.safetensors"):
        check_inputs(config)
    (tmp_path / "gone.safetensors").write_text("sample_id,drop,new_label\n")
    check_inputs(config)
