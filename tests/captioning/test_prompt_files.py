"""Prompts of classes in files: three shapes that say the same, and what each fault is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcdm_cli.captioning.prompt_files import ClassPrompt, prompts_key, read_prompts, write_prompts
from dcdm_cli.errors import NotFoundError, UsageError

NAMES = ("cat", "test tube", "{dog}")
CSV = "class,prompt\ncat,a cat in snow\ntest tube,one {class} on a table\n{dog},the {dog}  at night\n"


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def texts(path: Path) -> list[list[str]]:
    return [[prompt.prompt for prompt in prompts] for prompts in read_prompts(path, NAMES)]


def test_three_shapes_say_the_same(tmp_path: Path) -> None:
    rows = [("cat", "a cat in snow"), ("test tube", "one {class} on a table"), ("{dog}", "the {dog}  at night")]
    listed = put(tmp_path / "p.csv", CSV)
    lines = put(tmp_path / "p.jsonl", "".join(json.dumps({"class_name": c, "text": t}) + "\n" for c, t in rows))
    for name, text in rows:
        put(tmp_path / "texts" / f"{name}.txt", f"{text}\n\n{text}\n")  # blank lines and copies are nothing
    assert texts(listed) == [["a cat in snow"], ["one test tube on a table"], ["the {dog} at night"]]
    assert texts(lines) == texts(tmp_path / "texts") == texts(listed)
    keys = {prompts_key(path, NAMES) for path in (listed, lines, tmp_path / "texts")}
    assert len(keys) == 1 and prompts_key(put(tmp_path / "q.csv", CSV + "cat,more\n"), NAMES) not in keys


def test_every_class_at_once_and_who_wrote_it(tmp_path: Path) -> None:
    file = put(tmp_path / "p.csv", "class,prompt,source\n*,a {class} in fog,me\ncat,a cat\n")
    found = read_prompts(file, NAMES)
    assert [p.prompt for p in found[1]] == ["a test tube in fog"]
    assert [(p.prompt, p.source) for p in found[0]] == [("a cat in fog", "me"), ("a cat", "own prompts")]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    prompts = [ClassPrompt("{dog}", "a photo of a {dog}, 雪", "llm"), ClassPrompt("cat", "a cat")]
    write_prompts(tmp_path / "p.jsonl", prompts)
    assert [p for found in read_prompts(tmp_path / "p.jsonl", NAMES) for p in found] == prompts[::-1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class,prompt\ncart,x\n", r"row 1: unknown class 'cart'"),
        ("class,prompt\ncat,a cat\ncat, \n", "row 2: the prompt is empty"),
        ("class,prompt\ncat,a {clas}\n", r"row 1: unknown token \{clas\}"),
        ("class,words\ncat,a cat\n", "row 1: no column 'prompt', it has class, words"),
        ("class,prompt\n", "holds no prompt"),
        ("class,prompt\ncat," + "x" * 70000 + "\n", "row 1: a prompt of 70000 characters"),
        ("class,prompt,source\n" + "".join(f"cat,{i},{i}\n" for i in range(40)), "names 40 sources"),
    ],
)
def test_a_fault_names_file_row_and_rule(tmp_path: Path, text: str, said: str) -> None:
    file = put(tmp_path / "p.csv", text)
    with pytest.raises(UsageError, match=said) as caught:
        read_prompts(file, NAMES)
    assert str(file) in caught.value.message and caught.value.hint


def test_a_file_that_is_missing_or_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no prompts at"):
        read_prompts(tmp_path / "none.csv", NAMES)
    (tmp_path / "cat.txt").write_bytes(b"a caf\xe9")
    with pytest.raises(UsageError, match=r"cat\.txt is not UTF-8"):
        read_prompts(tmp_path, NAMES)
