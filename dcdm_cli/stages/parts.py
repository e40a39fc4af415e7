"""Plans made in parts that know nothing of each other: one job of an array each, and one that joins what they made."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.files import write_json
from dcdm_cli.gate import Amount, Count, Word, read_document
from dcdm_cli.run.session import Session
from dcdm_cli.stages.devices import settle_generation
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.label_check import generator_files
from dcdm_cli.stages.plan import check_plan, plan_layout, refuse_planning_flags, with_precision_of
from dcdm_cli.stages.probe import make_measure, open_run_engine

if TYPE_CHECKING:
    from dcdm_cli.generation.plan_file import AnyPlan
    from dcdm_cli.generation.run import Generated


@dataclass(frozen=True)
class Part:
    """number: 1 to `of`. Shard i belongs to part i modulo `of`, so that parts are as long as each other."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """`3/16`. Raises UsageError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        number, of = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= of:
            raise UsageError(f"--part {text!r} is no part", "write --part 3/16, the third of sixteen, or --part join")
        return cls(number, of)

    def shards(self, count: int) -> range:
        return range(self.number - 1, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class _Note:
    """What a job that made a part says of itself."""

    part: Word
    shards: Count
    images: Count
    failed: Count
    made_now: Count
    backend: Word
    device: Word
    seconds: Amount


def run_part(session: Session, plan_file: Path, part: Part) -> dict[str, Any]:
    """Makes one part of a plan, without the run's lock. Returns what it did, which is also kept for the join."""
    from dcdm_cli.generation.plan_file import PlanFile
    from dcdm_cli.generation.render import EngineMaker
    from dcdm_cli.generation.run import run_part as make_part

    if session.force or session.config.scale.devices:
        raise UsageError(
            "a part is made by one process, beside others whose images it must not replace",
            "leave out --force and --devices; one part per device, CUDA_VISIBLE_DEVICES says which",
        )
    refuse_planning_flags(session)
    session.run.refuse_links()  # elsewhere the lock does
    session.run.require("finetune")
    session.run.sealed(generator_files(session))
    # not verified as a whole: each shard is held against its own digest when its rows are read
    plan, clock = PlanFile(plan_file), time.monotonic()
    session = settle_generation(with_precision_of(session, plan), "generate")
    check_plan(session, plan)
    shards, job = part.shards(plan.shards), open_job(session)
    measure = make_measure(session, job, score=session.config.generate.score)
    maker = EngineMaker(open_run_engine(session, session.run.adapter, job), measure)
    made = make_part(plan, maker, plan_layout(session, plan), job, shards)
    done = {"part": str(part), "shards": len(shards), "images": made.images, "failed": made.failed}
    done |= {"made_now": made.made, "backend": maker.facts.backend, "device": job.device}
    done["seconds"] = round(time.monotonic() - clock, 2)
    # a job that found its shards made adds nothing to what the parts took
    if made.made:
        # with the time: a part that was lost is made by another job, whose note must not replace the first one's
        name = f"{plan.hash[:12]}-{part.number}-of-{part.of}-{time.time_ns()}.json"
        write_json(session.run.generated / "parts" / name, done)
    return done


def join_parts(session: Session, plan: AnyPlan, verify: bool) -> tuple[Generated, str, dict[str, Any]]:
    """What the parts made as one data set: the images, the backends, and what the parts took together. Loads no model.

    Raises NotFoundError while shards are missing.
    """
    from dcdm_cli.generation.ledger import Ledger
    from dcdm_cli.generation.run import Generated
    from dcdm_cli.model.adapter import read_adapter

    layout = plan_layout(session, plan)
    # else opening the ledger would put the plan there, and a join makes nothing
    begun = (layout.folder / "plan.parquet").is_file()
    # named one by one, though these are all: parts may be at work, whose unfinished files are then left alone
    every = range(plan.shards)
    ledger = (
        Ledger.open(plan, layout, session.config.generate.batch_size, verify=verify, shards=every) if begun else None
    )
    missing = ledger.unfinished() if ledger else list(every)
    if ledger is None or missing:
        raise NotFoundError(
            f"{len(missing)} of {plan.shards} shards are not made: {', '.join(map(str, missing[:8]))}"
            + (", ..." if len(missing) > 8 else ""),
            "wait for their parts or start them again: dcdm generate PLAN --part K/N; or make here what is missing: "
            "dcdm generate PLAN",
            file=layout.folder,
        )
    files = sorted((layout.folder / "parts").glob(f"{plan.hash[:12]}-*"))
    notes = [read_document(file, _Note, "remove it: it only says what a part took") for file in files]
    backend = ", ".join(sorted({note.backend for note in notes})) or "unknown"
    ledger.conclude(read_adapter(session.run.adapter).base, backend)
    took = {"jobs": len(notes), "seconds": round(sum(note.seconds for note in notes), 2)}
    return Generated(layout.folder, ledger.images, ledger.failed, 0), backend, took
