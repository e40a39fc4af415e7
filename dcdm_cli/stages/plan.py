"""Plans of a run: drawn from its settings, priced on its backend, compared with the model that is to execute them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dcdm_cli.errors import CapabilityError, MismatchError, UsageError
from dcdm_cli.run.origins import as_typed
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import BUDGET, PLAN, fingerprint
from dcdm_cli.run.session import by_calls
from dcdm_cli.run.settings import GenerateConfig
from dcdm_cli.run.standing import run_words
from dcdm_cli.safe_text import show
from dcdm_cli.signals import asked_to_stop
from dcdm_cli.stages.devices import Placement, settle_generation, settle_placement
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.label_check import check_input, generator_files
from dcdm_cli.stages.probe import make_measure, open_run_engine, plan_inputs

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.generation.layout import Layout
    from dcdm_cli.generation.plan import Plan
    from dcdm_cli.generation.plan_file import AnyPlan
    from dcdm_cli.generation.pricing import Price, Rate, Repayment
    from dcdm_cli.generation.render import EngineMaker
    from dcdm_cli.reports.table import ResultTable
    from dcdm_cli.run.session import Session


@dataclass(frozen=True)
class Wishes:
    """What only `dcdm generate --plan` is told. hours: device-hours to spend; hour_price: money for one of them."""

    hours: float | None = None
    hour_price: float | None = None


class HasGenerator(Protocol):
    @property
    def generator(self) -> str: ...


def images_per_label(config: GenerateConfig, real: Manifest) -> np.ndarray:
    """How many images the settings ask for beside these real ones, int64 [classes]."""
    from dcdm_cli.generation.budget import Budget, read_counts

    counts = read_counts(config.counts, real.class_names) if config.counts else None
    budget = Budget(config.per_class, config.count, config.ratio, counts, config.balance)
    return budget.per_label(real.class_counts())


def draw_plan(
    session: Session, config: GenerateConfig, engine: HasGenerator, made_for: Mapping[str, Any] | None = None
) -> Plan:
    """The plan for a generation config: budget, target distribution, captions, seeds.

    made_for: what `describe_model` says of the engine's model, so that the plan can name a difference later.
    """
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.evaluation.data import check_classes
    from dcdm_cli.generation.plan import make_plan
    from dcdm_cli.model.adapter import read_adapter

    train, info = read_manifest(session.run.samples).split("train"), read_adapter(session.run.adapter)
    # a label is a row of the adapter's encoder: in another order classes would be exchanged unseen
    check_classes(session.run.adapter, info.class_names, train.class_names)
    return make_plan(
        plan_inputs(session),
        images_per_label(config, train),
        _targets(config, train.class_names),
        config.seed + session.config.seed,
        engine.generator,
        shard_size=config.shard_size,
        made_for=made_for,
    )


def describe_model(session: Session) -> dict[str, Any]:
    """What decides the generator, in words. Loads no weights."""
    from dcdm_cli.files import hash_json
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.model.adapter import adapter_hash, read_adapter

    config, info = session.config.generate, read_adapter(session.run.adapter)
    return {
        "adapter": hash_json(adapter_hash(session.run.adapter))[:16],
        "base": info.base_fingerprint[:16],
        "resolution": info.resolution,
        "precision": config.precision,
        "draws": [config.attempts, config.tolerance] if config.attempts > 1 else [1],
        **check_input(session),
        **sampler_settings(config),
    }


def check_plan(session: Session, plan: AnyPlan) -> None:
    """Raises MismatchError that names what differs between the plan's model or classes and the run's."""
    from dcdm_cli.model.adapter import read_adapter

    theirs, ours = plan.class_names, read_adapter(session.run.adapter).class_names
    if theirs != ours:
        raise MismatchError(
            f"the plan is for other classes: {_first_differences(theirs, ours)}",
            "make a new plan: dcdm generate --plan, or name the run it was made for with --run",
        )
    unsaid = {
        "strength": 1.0,
        "check": None,
        "guidance": "calls",
    }  # is not written down: plans from before there was another are the same
    here, there = unsaid | describe_model(session), unsaid | dict(plan.made_for) if plan.made_for else {}
    changed = [key for key in here if key in there and there[key] != here[key]]
    if changed:
        said = "; ".join(f"{key} {there[key]!r}, here {here[key]!r}" for key in changed)
        raise MismatchError(
            f"the plan was made for another model or other sampler settings: {said}",
            "make a new plan: dcdm generate --plan, or restore the adapter and the settings",
        )


def write_priced_plan(session: Session, wishes: Wishes) -> tuple[Plan, Price, Path]:
    """Probes the backend, sizes the plan if it is to fit a number of hours, and writes it with its price."""
    from dcdm_cli.files import write_json
    from dcdm_cli.generation.plan_file import write_plan
    from dcdm_cli.generation.pricing import affordable, price

    session = settle_generation(session, "generate")
    config, run = session.config.generate, session.run
    # no stage is recorded here, whose `RunFolder.run` would look at the seals
    run.sealed(generator_files(session))
    rivals = [f"--{n.replace('_', '-')}" for n in ("count", "per_class", "counts") if f"generate.{n}" in session.given]
    if wishes.hours is not None and rivals:
        raise UsageError(
            f"--budget-hours and {rivals[0]} both say how many images there will be",
            "leave out one of them; --balance may stay",
        )
    placement = settle_placement(session)
    # a plan to measure with: how many images the hours pay for is known only then
    first = config if wishes.hours is None else _of_size(config, 64 * config.batch_size)
    plan, rate, layout, device = _probe(session, first, placement)
    workers = max(1, len(placement.devices))
    if wishes.hours is not None:
        images = affordable(rate, wishes.hours, workers)
        # the probed plan names the generator: no engine is opened again
        plan = draw_plan(session, _of_size(config, images), plan, describe_model(session))
    cost = price(plan, rate, layout, device, workers, wishes.hour_price)
    if config.guidance == "distilled":
        cost = replace(cost, repayment=_repayment(session, first, placement, rate))
    file = run.plans / f"{plan.hash[:12]}.parquet"
    write_plan(plan, file)
    write_json(price_file(file), cost.document())
    return plan, cost, file


def price_file(plan: Path) -> Path:
    return plan.with_suffix(".json")


def price_table(cost: Price) -> ResultTable:
    from dcdm_cli.reports.formatting import duration
    from dcdm_cli.reports.table import ResultTable

    kind, distilled = "CPU" if cost.device == "cpu" else "GPU", cost.repayment
    rows = [
        ("images", f"{cost.images:,} in {cost.shards:,} shard{'s' if cost.shards > 1 else ''}"),
        ("time", f"{duration(cost.seconds)} on {cost.devices} x {cost.device}, {cost.images_per_second:g} images/s"),
        (f"{kind}-hours", f"{cost.device_hours:g}"),
        *([("money", f"{cost.money:,.2f}")] if cost.money is not None else []),
        ("disk", f"{_size(cost.disk_bytes)}, {_size(cost.disk_free_bytes)} are free"),
        ("measured on", f"{cost.probe.images} images, {cost.probe.per_image_s:.3g} s each"),
        *([("distilling", _repaid(distilled))] if distilled else []),
    ]
    money = "" if cost.money is None else f", and cost {cost.money:,.2f}"
    said = (
        f"{cost.images:,} images take about {duration(cost.seconds)} and {_size(cost.disk_bytes)} of disk{money}; this "
        "command makes them:"
    )
    return ResultTable("Price of the plan", ("", "value"), tuple(rows), said)


def price_lines(session: Session, cost: Price, file: Path) -> list[RenderableType]:
    """For the screen, the command on a line of its own, which is not broken up; the table as a CSV file too."""
    from rich.text import Text

    from dcdm_cli.reports.table import shown
    from dcdm_cli.reports.tables import saved_tables

    tables = saved_tables([price_table(cost)], session.run.tables)
    return [*shown(tables), Text(f"  {show(plan_command(session, file))}")]


def plan_command(session: Session, file: Path) -> str:
    """What executes the plan in `file`, from where this session's command was typed: for the same set of images, with
    the settings that a finished plan leaves open."""
    used_up = {f"generate.{name}" for name in _used_up(session.config.generate)}
    left = [f"--set={key}={as_typed(value)}" for key, value in session.given.items() if key not in used_up]
    name = ["--name", session.run.images_name] if session.run.images_name else []
    settings = ["--config", str(session.config_file)] if session.config_file else []
    return shlex.join(["dcdm", "generate", str(file), *name, *settings, *left]) + run_words(session.run)


def _repaid(distilled: Repayment) -> str:
    from dcdm_cli.reports.formatting import duration

    paid = "not repaid here: one call is no faster"
    if distilled.images is not None:
        paid = f"repaid after {distilled.images:,} images ({distilled.by_calls_s:.3g} s each by the guided calls)"
    return f"took {duration(distilled.seconds)}, {paid}"


def _repayment(session: Session, config: GenerateConfig, placement: Placement, rate: Rate) -> Repayment:
    """The guided calls are measured too: on this backend, with this scorer and these draws."""
    from dcdm_cli.generation.pricing import repayment

    session.console.note("probing the guided calls, for comparison")
    other = by_calls(session)
    _, guided, _, _ = _probe(other, config.model_copy(update={"guidance": "calls"}), placement)
    records = map(session.run.record, ("distill", "calibrate"))
    return repayment(round(sum(record.seconds for record in records if record), 2), guided, rate)


def refuse_planning_flags(session: Session) -> None:
    given = [_flag(name, session) for name in _used_up(session.config.generate) if f"generate.{name}" in session.given]
    if given:
        raise UsageError(
            f"{', '.join(given)} cannot change a finished plan",
            "leave it out, or make a new plan: dcdm generate --plan",
        )


def _used_up(config: GenerateConfig) -> Iterable[str]:
    """The settings that a finished plan holds; the rest says how it is executed."""
    return fingerprint(config, PLAN, BUDGET)


def _flag(name: str, session: Session) -> str:
    """As it was typed: a switch that was turned off is --no-NAME."""
    no = "no-" if session.given[f"generate.{name}"] is False else ""
    return f"--{no}{name.replace('_', '-')}"


def _of_size(config: GenerateConfig, images: int) -> GenerateConfig:
    return config.model_copy(update={"count": images, "per_class": None, "counts": None})


def _probe(session: Session, config: GenerateConfig, placement: Placement) -> tuple[Plan, Rate, Layout, str]:
    from dcdm_cli.generation.pricing import probe_rate

    clock = time.monotonic()
    maker, device = _open_maker(session, placement)
    opening_s = time.monotonic() - clock  # in the price: hours that are bought pay for opening the model too
    plan = draw_plan(session, config, maker.engine, describe_model(session))
    session.console.note(f"probing {device} with images from all over the plan")
    layout = plan_layout(session, plan)
    return plan, probe_rate(plan, maker, layout, opening_s, Job(stop_signal=asked_to_stop)), layout, device


def _open_maker(session: Session, placement: Placement) -> tuple[EngineMaker, str]:
    """The run's engine on the first device, with the threads that a worker would have."""
    import torch

    from dcdm_cli.generation.render import EngineMaker

    job = open_job(session, placement.devices[0] if placement and placement.engine == "local" else None)
    wanted = placement.devices[0] if placement else job.device
    if job.device.split(":")[0] != wanted.split(":")[0]:
        raise CapabilityError(
            f"--plan measures on this machine, which has {job.device}; the cluster's workers use {wanted}",
            "run it on a machine like the workers'",
        )
    if placement.threads:
        torch.set_num_threads(placement.threads)
    measure = make_measure(session, job, score=session.config.generate.score)
    return EngineMaker(open_run_engine(session, session.run.adapter, job), measure), job.device


def plan_layout(session: Session, plan: AnyPlan) -> Layout:
    from dcdm_cli.generation.layout import Layout

    config = session.config.generate
    return Layout(session.run.generated, config.format, config.image_format, plan.class_names, plan.shards)


def _targets(config: GenerateConfig, class_names: tuple[str, ...]) -> Any:
    from dcdm_cli.generation.budget import read_class_table
    from dcdm_cli.generation.targets import Targets, parse_target

    single = read_class_table(config.difficulty_file, "difficulty", class_names) if config.difficulty_file else {}
    return Targets(parse_target(config.difficulty), {label: parse_target(str(text)) for label, text in single.items()})


def _first_differences(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"it has {len(theirs)}, the adapter {len(ours)}"
    label = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"label {label} is {theirs[label]!r} there and {ours[label]!r} here"


def _size(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < 4:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


def with_precision_of(session: Session, plan: AnyPlan) -> Session:
    """A plan was made for a precision, which decides where the settings leave it open."""
    made_for = plan.made_for.get("precision")
    is_open = session.config.generate.precision == "auto" and made_for
    return session.with_settings(generate={"precision": made_for}) if is_open else session
