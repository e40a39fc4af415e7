"""Captions that came with the images: kept, gaps filled, and enough for fine-tuning where all images have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.captioning.own import read_own_captions, write_own_captions
from dcdm_cli.console import Console
from dcdm_cli.data.manifest import Manifest, read_manifest, write_manifest
from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.model.tokens import load_tokenizer
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.caption import caption_input, run_caption
from dcdm_cli.stages.reading import cut_texts

from .conftest import Open

BASE = {"finetune__base": "tiny"}


@pytest.fixture
def with_own(run: RunFolder) -> RunFolder:
    """The run as `score` leaves it: every other image has a caption of its own, one of them too long."""
    manifest = read_manifest(run.samples)
    own = [f"手写 {row}" if row % 2 else None for row in range(len(manifest))]
    own[1] = "word " * 40
    manifest = manifest.with_columns({"caption": own})
    write_manifest(manifest, run.samples)
    write_own_captions(run.own_captions, manifest)
    run.run(Stage("score", {}, {}), lambda: Outcome([run.samples], "x"))
    return run


def captions(run: RunFolder) -> list[str | None]:
    return read_manifest(run.samples).table["caption"].to_pylist()


def test_own_captions_are_kept_and_gaps_filled(
    session: Open, with_own: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for template in ("a photo of a {class}", "one {class}"):  # the second time, nothing of ours is theirs
        record = run_caption(session(caption__template=template, **BASE))
        found = captions(with_own)
        assert found[3::2] == [f"手写 {row}" for row in range(3, 40, 2)]
        assert set(found[::2]) == {template.replace("{class}", name) for name in ("zero", "test tube", "two")}
        assert record.results["origins"] == {"own": 20, "template": 20}
        assert record.results["cut"] == 1 and (found[1] or "").startswith("word word") and len(found[1] or "") < 200
    said = capsys.readouterr().err
    assert "captions: 20 own, 20 by template, such as: " in said and "one now ends: 'word" in said


def test_own_captions_are_replaced_only_when_told(session: Open, with_own: RunFolder) -> None:
    run_caption(session(caption__own="replace", **BASE))
    assert not any("手写" in (caption or "") for caption in captions(with_own))
    run_caption(session(**BASE))
    assert sum("手写" in (caption or "") for caption in captions(with_own)) == 19


def test_images_that_all_have_captions_need_no_caption_stage(with_own: RunFolder) -> None:
    with pytest.raises(NotFoundError, match="no finished caption stage"):
        caption_input(with_own)
    manifest = read_manifest(with_own.samples)
    write_manifest(manifest.with_columns({"caption": ["mine"] * len(manifest)}), with_own.samples)
    assert caption_input(with_own) == {}


def test_cut_captions_are_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer("tiny")
    assert tokenizer is not None
    whole, cut = cut_texts(["short", "very long " * 50], tokenizer, "captions", Console())
    assert (whole[0], cut) == ("short", 1) and "captions: 1 of 2 were cut" in capsys.readouterr().err


def test_captions_that_are_certainly_too_long_are_counted_without_a_tokenizer(
    session: Open, with_own: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dcdm_cli.model.tokens.load_tokenizer", lambda base, revision: None)
    manifest = read_manifest(with_own.samples)
    own = ["a " * 76 + "b", *(["word " * 75] * 39)]
    write_own_captions(with_own.own_captions, manifest.with_columns({"caption": own}))
    run_caption(session(finetune__base="no/where"))
    said = capsys.readouterr().err
    assert "captions: 1 of 40 have more than 75 words, and so are certainly too long" in said
    assert captions(with_own)[0] == own[0].strip() or captions(with_own)[0] == own[0], "nothing is cut by a guess"
    [line] = [line for line in said.splitlines() if "such as: " in line]
    assert line.endswith("...") and len(line.partition("such as: ")[2]) <= 60


def test_a_damaged_file_of_own_captions_is_named(run: RunFolder) -> None:
    manifest = read_manifest(run.samples)
    write_own_captions(run.own_captions, manifest)
    run.own_captions.write_bytes(b"PAR1")
    with pytest.raises(MismatchError, match=r"own_captions\.parquet"):
        read_own_captions(run.own_captions, manifest)
    write_own_captions(run.own_captions, Manifest.from_rows([{"sample_id": "a"}], ("x",)))
    assert not run.own_captions.exists()


def test_a_tokenizer_without_words_is_none(tmp_path: Path) -> None:
    """transformers makes one of a folder that has none."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    assert load_tokenizer(str(tmp_path)) is None
