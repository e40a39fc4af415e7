"""How the program takes what goes wrong: kills, failing disks, signals, bad images, hostile files, tampering, size.

Writes benchmarks/results/reliability.json. Every part can be run alone, gives the same counts again and replaces its
own entry:

    python benchmarks/reliability.py [PART ...]

At its full size it takes about an hour of one free core; `--small` is for a look whether it works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trials
from common import RESULTS, hardware, save, write_result
from experimented import experiments  # noqa: F401 - a part, found by its name
from given import given  # noqa: F401 - a part, found by its name
from harm import CHANGES, EXPECTED, VERIFY, bad_images, cut_in_half, forgeries, last_bit, tampered, unseal
from PIL import Image
from place import CLASSES, OPTIONAL, STAGES, Place
from resumed import resumed  # noqa: F401 - a part, found by its name
from small_disk import small_disk  # noqa: F401 - a part, found by its name

PARTS = (
    "kills", "kills_optional", "faults", "small_disk", "signals", "starts", "images", "hostile", "outside", "tampering",
    "inputs", "given", "resumed", "experiments", "stale", "soak",
)  # fmt: skip
# What stops must cost at most, at the sizes that `dcdm demo` works with.
DEMO_SIZES = {
    "score": ["--set", "score.steps=400"],
    "caption": ["--force"],
    "finetune": ["--steps", "200", "--set", "finetune.batch_size=64", "--force"],
    "generate": ["--count", "400", "--set", "generate.batch_size=64", "--set", "generate.steps=30", "--force"],
    "export": ["--force"],
    "distill": ["--set", "distill.steps=200", "--force"],
    "calibrate": ["--set", "calibrate.images=200", "--set", "generate.steps=30"],
    "strength": ["--set", "strength.probe_budget=1000", "--set", "generate.steps=30"],
    "evaluate": ["--seeds", "6", "--set", "downstream.steps=300", "--set", "judge.steps=300", "--force"],
}
DONE_S = 0.1  # of a command that ends so soon after a signal all work was done
QUICK = tuple(stage for stage in STAGES if stage not in ("export", "evaluate"))
TURNS = QUICK * 4 + STAGES  # the slow ones in every fifth round


def kills(place: Place, count: int) -> dict[str, Any]:
    """kill -9 at a random moment, then the same command again: the same files with the same content, none left over,
    and nothing that cannot be read under its own name in between."""
    return _killed(place, count, TURNS)


def kills_optional(place: Place, count: int) -> dict[str, Any]:
    """The same of calibrating, distilling, and choosing the strength."""
    place.prepare_optional()
    return _killed(place, count, tuple(OPTIONAL))


def _killed(place: Place, count: int, turns: tuple[str, ...]) -> dict[str, Any]:
    draw, by_stage, bad = random.Random(1), dict.fromkeys(turns, 0), []
    tries = 0
    while sum(by_stage.values()) < count and tries < 4 * count:
        stage = turns[tries % len(turns)]
        tries += 1
        place.reset(f"before-{stage}")
        ended = place.go(stage, kill_after=draw.uniform(0, place.seconds[stage]))
        if ended.code != -signal.SIGKILL:
            continue  # it was faster
        by_stage[stage] += 1
        broken = trials.unreadable(place.run)
        again = place.go(stage)
        if broken or again.code or place.wrong(stage):
            bad.append([stage, broken, again.code, place.wrong(stage)])
    return {"count": sum(by_stage.values()), "by_stage": by_stage, "bad": len(bad), "first_bad": bad[:3]}


def faults(place: Place, every: int) -> dict[str, Any]:
    """Every n-th open for writing, rename, fsync, mkdir and unlink in the run folder fails, with each of four errors:
    one that is meant is said, files are whole, and the same command then ends as if nothing had been. Calls of Python
    are made to fail, not those of native libraries."""
    bad: list[Any] = []
    by_stage, codes, left = dict.fromkeys(STAGES, 0), {}, 0
    calls = place.said.with_name("calls")
    for stage in STAGES:
        place.reset(f"before-{stage}")
        total = place.go(stage, before=trials.failing(place.run, -1, 0, calls)).calls
        places = range(1, total + 1, every if stage in QUICK else 6 * every)
        for at, number in itertools.product(places, trials.ERRORS):
            place.reset(f"before-{stage}")
            ended = place.go(stage, before=trials.failing(place.run, at, number, calls))
            by_stage[stage] += 1
            codes[str(ended.code)] = codes.get(str(ended.code), 0) + 1
            left += bool(place.left())
            broken, again = trials.unreadable(place.run), place.go(stage)
            if not ended.is_clean or broken or again.code or place.wrong(stage):
                bad.append([stage, at, os.strerror(number), ended.code, ended.said[-200:], broken, place.wrong(stage)])
    count = sum(by_stage.values())
    found = {"count": count, "by_stage": by_stage, "codes": codes, "left_over_until_the_next_run": left}
    return {**found, "bad": len(bad), "first_bad": bad[:3]}


def signals(place: Place, count: int) -> dict[str, Any]:
    """A signal at a random moment of a stage at the demo's sizes: 130 or 143, within 5 seconds, nothing unreadable."""
    wanted = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}
    draw, bad, slowest, sent = random.Random(2), [], dict.fromkeys(DEMO_SIZES, 0.0), dict.fromkeys(DEMO_SIZES, 0)
    place.prepare_optional()
    for turn in range(count):
        stage, number = [*DEMO_SIZES][turn % len(DEMO_SIZES)], [*wanted][turn // len(DEMO_SIZES) % len(wanted)]
        place.reset(f"before-{stage}" if stage in ("score", "calibrate", "strength") else "finished")
        # captions from templates are done before the moment that meets the others in their work
        moment = draw.uniform(0.05, place.seconds[stage]) if stage == "caption" else draw.uniform(0.3, 8)
        ended = place.go(stage, *DEMO_SIZES[stage], signalled=(number, moment))
        if not ended.stopped_s or (ended.code == 0 and ended.stopped_s < DONE_S):
            continue  # it was faster
        sent[stage] += 1
        slowest[stage] = max(slowest[stage], round(ended.stopped_s, 2))
        broken = trials.unreadable(place.run)
        if ended.code != wanted[number] or ended.stopped_s > 5 or broken:
            bad.append([stage, number.name, ended.code, round(ended.stopped_s, 2), broken, ended.said[-200:]])
    found = {"count": sum(sent.values()), "by_stage": sent, "slowest_s": slowest, "most_s": max(slowest.values())}
    return {**found, "bad": len(bad), "first_bad": bad[:3]}


def starts(place: Place, count: int) -> dict[str, Any]:
    """A signal while the program starts and imports: 130 or 143 within 5 seconds, without a traceback."""
    draw, bad, slowest, sent = random.Random(4), [], 0.0, 0
    place.reset("finished")
    for turn in range(count):
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        with place.said.open("wb") as said:
            command = [sys.executable, "-m", "dcdm_cli", *map(str, place.words("generate", "--force"))]
            begun = subprocess.Popen(command, stdout=said, stderr=said)
        ended = trials.watch(begun.pid, place.said, signalled=(number, draw.uniform(0.02, 4)))
        begun.returncode = ended.code  # waited for already
        sent += bool(ended.stopped_s)
        slowest = max(slowest, round(ended.stopped_s, 2))
        wanted = {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        if ended.stopped_s and (ended.code not in (wanted, -number) or ended.stopped_s > 5 or not ended.is_quiet):
            bad.append([number.name, ended.code, round(ended.stopped_s, 2), ended.said[-300:]])
    return {"count": sent, "most_s": slowest, "bad": len(bad), "first_bad": bad[:3]}


def images(place: Place, _: int) -> dict[str, Any]:
    """One bad image of each kind among good ones: scoring goes on, and lists it with its kind, passes it over or takes
    it as it is, as is expected of the kind."""
    folder = place.root / "zoo"
    kinds = [*bad_images()]
    outcome = {}
    for name, make in kinds:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place.source, folder)
        make(folder / "one" / f"bad-{name}")
        place.reset("before-score")
        ended = trials.run(["score", folder, "--run", place.run, "--set", "data.max_bad=0.5"], place.said)
        rejected = place.run / "rejected.jsonl"
        rows = [json.loads(line) for line in rejected.read_text("utf-8").splitlines()] if rejected.exists() else []
        names = trials.names_in(place.run / "samples.parquet") if not rows and not ended.code else set()
        reason = rows[0].get("reason") if rows else "taken" if any("bad-" in name for name in names) else "passed over"
        outcome[name] = f"{reason}, exit {ended.code}" if ended.is_clean else "CRASH"
    wrong = {name: said for name, said in outcome.items() if said != EXPECTED[name]}
    return {"count": len(kinds), "outcome": outcome, "bad": len(wrong), "first_bad": [*wrong.items()][:3]}


def hostile(place: Place, count: int) -> dict[str, Any]:
    """Files of a finished run changed into others, with records that no longer name them: a meant error or a result,
    never a crash."""
    draw, bad, codes = random.Random(3), [], {}
    place.reset("finished")
    kinds = (".json", ".jsonl", ".parquet", ".safetensors", ".toml")
    names = [file.relative_to(place.run) for file in sorted(place.run.rglob("*")) if file.suffix in kinds]
    for turn in range(count):
        place.reset("finished")
        file = place.run / names[turn % len(names)]
        change = draw.choice([*CHANGES])
        CHANGES[change](file, draw)
        for record in (place.run / "records").glob("*.json"):
            unseal(record)
        stage = draw.choice(["generate", "check", "status", "caption"])
        more = ["--force"] if stage in ("generate", "caption") else []
        ended = trials.run([stage, "--run", place.run, *more], place.said)
        codes[str(ended.code)] = codes.get(str(ended.code), 0) + 1
        if not ended.is_clean:
            bad.append([str(file.relative_to(place.run)), change, stage, ended.code, ended.said[-300:]])
    return {"count": count, "codes": codes, "bad": len(bad), "first_bad": bad[:3]}


def outside(place: Place, _: int) -> dict[str, Any]:
    """A run folder that says where to write: whatever it says, nothing outside it is made or changed."""
    secret, bad, outcome = place.root / "outside", [], {}
    for name, (forge, words) in forgeries(place.source, secret).items():
        place.reset("finished")
        shutil.rmtree(secret, ignore_errors=True)
        secret.mkdir()
        (secret / "kept.txt").write_text("kept")
        forge(place.run)
        before = trials.picture(secret), trials.picture(place.source)
        ended = trials.run([*words, "--run", place.run], place.said)
        untouched = (trials.picture(secret), trials.picture(place.source)) == before
        outcome[name] = f"exit {ended.code}"
        if not untouched or not ended.is_clean:
            bad.append([name, ended.code, sorted(map(str, secret.rglob("*"))), ended.said[-200:]])
    return {"count": len(outcome), "outcome": outcome, "bad": len(bad), "first_bad": bad[:3]}


def tampering(place: Place, _: int) -> dict[str, Any]:
    """Damage after the fact: `dcdm check` names it with exit 12, and no stage works with it: it stops, or puts it
    right, and then `dcdm check` finds nothing any more."""
    outcome, bad = {}, 0
    for name, (damage, user, remedy) in tampered().items():
        place.reset("finished")
        damage(place.run)
        checked, used = (trials.run([*words, "--run", place.run], place.said).code for words in (VERIFY, user))
        said, well = f"check {checked}, {user[0]} {used}", checked == 12 and (used == 12 or remedy is not None)
        if remedy is not None:
            remedy = remedy(place.run) if callable(remedy) else remedy
            mended, after = (trials.run([*words, "--run", place.run], place.said).code for words in (remedy, VERIFY))
            said, well = f"{said}, {' '.join(remedy)} {mended}, check {after}", well and after == 0
        outcome[name], bad = said, bad + (not well)
    return {"count": len(outcome), "outcome": outcome, "bad": bad}


def inputs(place: Place, _: int) -> dict[str, Any]:
    """Every file that a stage's record says it read, changed by a bit, cut in half, or gone: the stage stops with an
    error that is meant, or puts the file right; it never says that nothing changed, and never works with it."""
    bad: list[Any] = []
    by_stage = {}
    place.prepare_optional()
    readers = {
        **{stage: (stage, "finished") for stage in STAGES},
        **{name: (of, "extended") for name, of in MORE.items()},
    }
    for record, (stage, state) in readers.items():
        place.reset(state)
        for name in sorted(json.loads((place.run / "records" / f"{record}.json").read_text("utf-8"))["read"]):
            for change in (last_bit, cut_in_half, Path.unlink):
                place.reset(state)
                right = trials.digest_or_none(place.run / name)
                change(place.run / name)
                ended = place.go(stage)
                by_stage[record] = by_stage.get(record, 0) + 1
                if not ended.is_clean or (ended.code == 0 and trials.digest_or_none(place.run / name) != right):
                    bad.append([record, name, ended.code, ended.said[-200:]])
    return {"count": sum(by_stage.values()), "by_stage": by_stage, "bad": len(bad), "first_bad": bad[:3]}


def stale(place: Place, _: int) -> dict[str, Any]:
    """Every stage made again with other settings, or its source changed, and then every later stage: it works again, or
    stops and says why; never exit 0 with "nothing changed". `dcdm check` says 3 in between."""
    bad: list[Any] = []
    count = 0
    for stage, more in REMADE.items():
        for later in STAGES[STAGES.index(stage) + 1 :]:
            place.reset("finished")
            before = _begun(place.run, later)
            again = place.go(stage, *more)
            checked = trials.run(["check", "--run", place.run], place.said).code
            ended = place.go(later)
            count += 1
            told = "is stale" in ended.said  # an export is of the adapter as it is, and says that one is stale
            silent = ended.code == 0 and _begun(place.run, later) == before and not told and (stage, later) != SAME
            if again.code or checked != 3 or not ended.is_clean or silent:
                bad.append([stage, later, again.code, checked, ended.code, ended.said[-200:]])
    return {"count": count, "bad": len(bad), "first_bad": bad[:3]}


def _begun(run: Path, stage: str) -> str:
    return str(json.loads((run / "records" / f"{stage}.json").read_text("utf-8"))["started"])


def soak(place: Place, scale: int) -> dict[str, Any]:
    """Growth of memory and of open files at size: 10,000 images, 20,000 classes, a manifest of 200,000 rows."""
    from dcdm_cli.data.manifest import Manifest, read_manifest, write_manifest

    found: dict[str, Any] = {}
    rows = [
        {"sample_id": f"{i:032x}", "path": f"{i}.png", "label": i % 20_000, "class_name": f"class {i % 20_000}",
         "split": "train", "synthetic": False, "difficulty": 0.5, "caption": "a photo"}
        for i in range(scale)
    ]  # fmt: skip
    names = tuple(f"class {i}" for i in range(min(scale, 20_000)))
    rows = [row for row in rows if row["label"] < len(names)]
    manifest = Manifest.from_rows(rows, names)
    del rows
    for _ in range(2):  # what libraries keep is there afterwards
        write_manifest(manifest, place.root / "large.parquet")
        read_manifest(place.root / "large.parquet").class_counts()
    with trials.watched() as found["manifest_written_and_read_20_times"]:
        for _ in range(20):
            write_manifest(manifest, place.root / "large.parquet")
            read_manifest(place.root / "large.parquet").class_counts()
    found["manifest_rows"], found["classes"] = len(manifest), len(names)
    found["scan"] = _scanned(place, scale // 20)
    grown = [one["mib_after"] - one["mib_before"] for one in found.values() if isinstance(one, dict)]
    files = [one["files_after"] - one["files_before"] for one in found.values() if isinstance(one, dict)]
    peaks, codes = _commands_at_size(place, scale)
    found |= {"grown_mib": round(max(grown), 1), "grown_files": int(max(files)), "peaks_mib": peaks}
    found["peak_slope"] = round(max(large / small for small, large in peaks.values()), 2)
    bad = sum((max(grown) > MOST_GROWN_MIB, max(files) > 0, found["peak_slope"] > MOST_SLOPE, any(codes)))
    return {**found, "count": len(grown) + len(peaks), "bad": bad, "codes": codes}


def _commands_at_size(place: Place, scale: int) -> tuple[dict[str, list[float]], list[int]]:
    """Peak memory of commands with a quarter of the images and classes, and with all of them; their exit codes."""
    peaks: dict[str, list[float]] = {"score": [], "caption": [], "check": []}
    codes = []
    for images in (scale // 80, scale // 20):
        folder, run = place.root / "listed", place.root / "sized"
        listing = _listed(folder, images, classes=2 * images)
        commands = {
            "score": ["score", listing, "--column", "difficulty", "--set", "score.at_chance=warn"],
            "caption": ["caption"],
            "check": ["check"],
        }  # fmt: skip
        for name, words in commands.items():
            ended = trials.run([*words, "--run", run], place.said)
            peaks[name].append(ended.peak_mib)
            codes.append(ended.code)
        shutil.rmtree(folder)
        shutil.rmtree(run)
    return peaks, codes


def _listed(folder: Path, images: int, classes: int) -> Path:
    """A CSV of tiny pictures, two rows and two classes for each."""
    folder.mkdir()
    rows = ["path,label,difficulty"]
    for i in range(images):
        Image.new("RGB", (8, 8), (i % 256, i // 256 % 256, 7)).save(folder / f"{i}.png")
        rows += [f"{i}.png,class {i % classes},{i % 100 / 100}"]
    listing = folder / "list.csv"
    listing.write_text("\n".join(rows))
    return listing


def _scanned(place: Place, count: int) -> dict[str, float]:
    """Memory after the first and after the last of four scans of `count` images of 8 x 8 pixels."""
    from dcdm_cli.data.candidates import ScanOptions
    from dcdm_cli.data.sources import scan_on_disk
    from dcdm_cli.run.progress import Job

    folder = place.root / "many"
    for i in range(count):
        file = folder / CLASSES[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i % 256).save(file)
    for turn in range(4):
        if turn == 1:
            context = trials.watched()
            found = context.__enter__()
        spool = place.root / f"spool-{turn}"
        scan_on_disk(str(folder), ScanOptions(), place.root / "images", spool, str(turn), Job())
        shutil.rmtree(spool, ignore_errors=True)
    context.__exit__(None, None, None)
    shutil.rmtree(folder)
    return {**found, "images": float(count)}


# Of stages that are made again with something else.
REMADE: dict[str, list[str]] = {
    "score": ["--set", "score.seed=5", "--force"],
    "caption": ["--set", "caption.template=a picture of {class}", "--force"],
    "finetune": ["--set", "finetune.lr=0.0001", "--force"],
    "export": ["--set", "export.opset=20", "--force"],
    "generate": ["--set", "generate.seed=9", "--force"],
}
# Records of what is not everybody's -> the command that reads what they name.
MORE = {"calibrate": "calibrate", "distill": "distill", "judge": "evaluate", "adherence": "evaluate"}
MORE |= {"evaluate-artefacts": "check", "filter": "filter", "atlas": "atlas", "next-plan": "plan"}
SAME = ("export", "generate")  # the same network in another form, compared before it counts: its images stay
MOST_GROWN_MIB, MOST_SLOPE = 32.0, 1.5  # of memory: in repeated work; with four times the images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-optional", type=int, default=36)
    parser.add_argument("--every", type=int, default=24, help="the n in every n-th call that fails")
    parser.add_argument("--signals", type=int, default=72)
    parser.add_argument("--starts", type=int, default=30)
    parser.add_argument("--hostile", type=int, default=60)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--small-disk", type=int, default=36)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    if asked.small:
        asked.kills, asked.every, asked.signals, asked.hostile, asked.rows = 4, 160, 3, 4, 2000
        asked.starts, asked.kills_optional, asked.small_disk = 4, 3, 9
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    trials.warm_up()
    sizes = {**vars(asked), "faults": asked.every, "soak": asked.rows}
    done: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.prepare()
        for part in asked.parts or PARTS:
            clock = time.monotonic()
            done[part] = globals()[part](place, sizes.get(part, 0))
            done[part]["seconds"] = round(time.monotonic() - clock, 1)
            print(part, json.dumps(done[part]), flush=True)
    bad = {part: found["bad"] for part, found in done.items()}
    if asked.small:
        save(done, "reliability-small", Path(tempfile.gettempdir()))
    else:
        write_result("reliability", {"tables": [], **_joined(done)}, {"bad": bad})  # documents quote its values
    raise SystemExit(1 if any(bad.values()) else 0)


def _joined(done: dict[str, Any]) -> dict[str, Any]:
    """These parts, each with the day and the machine it was done on, beside those that the result has already."""
    file = RESULTS / "reliability.json"
    there = json.loads(file.read_text("utf-8")) if file.exists() else {}
    today = datetime.now(UTC).date().isoformat()
    dated = {part: {"date": today, "hardware": hardware(), **found} for part, found in done.items()}
    known = there | dated
    return {part: known[part] for part in PARTS if part in known}


if __name__ == "__main__":
    main()
