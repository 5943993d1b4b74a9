"""`vm explain --hosts` and `--dry-run`, `host rebalance`: where machines would go, and which moves would make hosts even.

Reads the whole cloud once and writes nothing. How it is worked out is the controllers' code (`kumulus.api.preview`).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml

from kumulus.api.base import Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.preview import GROUP, Desk, Goal, HostVerdict, MakeDesk, Metric, Move, Plan, Preview, Unclear
from kumulus.api.quantity import rounded
from kumulus.cli import rebalancing
from kumulus.cli.amounts import count
from kumulus.cli.output import Column, Format
from kumulus.cli.problem import Problem, Usage, as_sentence
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.kube import errors

Raw = dict[str, Any]

NOWHERE = 3
"""Exit code, beside 1 and 2 of every command: some machine would go nowhere."""

SHOWN = 20
"""So many hosts are shown; programs get all."""

_NEEDED = (Host, VirtualMachine, WorkOrder)
"""Kinds without which nothing can be said."""


def desk(session: Session) -> Desk:
    """The cloud as it is now, to try things on. Raises `Problem` for who may not see hosts and all machines."""
    for entry in importlib.metadata.entry_points(group=GROUP, name="placement"):
        made = cast(MakeDesk, entry.load())()
        break
    else:
        raise Problem(
            "This kumulusctl was installed without the controllers' code, which works it out: install all of kumulus."
        )
    unseen = []
    for model in made.kinds:
        try:
            raws = session.cluster.objects(model.KIND)
        except errors.Refused as error:
            if model in _NEEDED:
                raise Problem(
                    f"Where machines can go is worked out from all hosts and machines, and you may not see"
                    f" {model.KIND.plural} of all namespaces ({as_sentence(error.message).rstrip('.')}). Ask the operator; or make"
                    " the machine: its condition Scheduled says why it is nowhere."
                ) from error
            unseen.append(model.KIND.plural)
            continue
        for raw in raws:
            made.take(model, raw)
    if unseen:
        session.printer.note(f"Without {', '.join(unseen)}, which you may not see.")
    return made


def documents(file: Path) -> list[Raw]:
    """The objects of a file of manifests; `-` is what comes in. Raises `Problem`."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        found = [item for item in yaml.safe_load_all(text) if item is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Problem(f"{one_line(str(file))} cannot be read ({' '.join(str(error).split())}).") from error
    listed = [part for item in found for part in (item.get("items", [item]) if isinstance(item, dict) else [item])]
    for item in listed:
        meta = item.get("metadata") if isinstance(item, dict) else None
        if not isinstance(meta, dict) or not isinstance(meta.get("name"), str) or not isinstance(item.get("kind"), str):
            raise Problem(
                f"In {one_line(str(file))} there is something that is no manifest: it has no kind or no name."
            )
    return cast(list[Raw], listed)


def admitted(session: Session, model: type[Resource], raw: Raw) -> Raw:
    """The object as the API server would take it, if it would; one that is there already, or that the user may not make, as
    it is written. Raises `errors.Refused` with the field that is wrong."""
    kind = model.KIND
    namespace = (raw["metadata"].get("namespace") or session.namespace) if kind.namespaced else None
    body = {**raw, "metadata": {**raw["metadata"], **({"namespace": namespace} if namespace else {})}}
    try:
        return session.cluster.rehearse(kind, body, namespace)
    except errors.AlreadyExists:
        return body
    except errors.Refused as error:
        if error.status != 403:
            raise
        session.printer.note(f"{kind.kind} {raw['metadata']['name']} is not checked: {as_sentence(error.message)}")
        return body


def rehearse(session: Session, file: Path) -> None:
    """Say where the machines of a file would go, one after the other, with whatever else is in it as if it were there."""
    cloud = desk(session)
    models = {(model.KIND.api_version, model.KIND.kind): model for model in cloud.kinds}
    machines = []
    for raw in documents(file):
        model = models.get((str(raw.get("apiVersion")), str(raw.get("kind"))))
        if model is None:
            session.printer.note(
                f"{one_line(raw['kind'])} {one_line(raw['metadata']['name'])} is nothing to placement."
            )
        elif model is VirtualMachine:
            machines.append(admitted(session, model, raw))
        else:
            cloud.take(model, admitted(session, model, raw))
    if not machines:
        raise Problem(f"There is no VirtualMachine in {one_line(str(file))}.")
    _tell(session, [_preview(cloud, raw) for raw in machines], many=True)


def judge(session: Session, raw: Raw) -> None:
    """Say where a machine would go if it were placed now, and what is thought of each host."""
    _tell(session, [_preview(desk(session), raw)], many=False)


def _preview(cloud: Desk, raw: Raw) -> Preview:
    try:
        return cloud.preview(raw)
    except Unclear as unclear:
        name = one_line(raw["metadata"]["name"])
        raise Problem(f"Where {name} would go cannot be said yet: {unclear}") from unclear


def _tell(session: Session, previews: list[Preview], *, many: bool) -> None:
    bodies = [preview.to_json() for preview in previews]
    if not _for_programs(session, bodies if many else bodies[0]):
        _for_people(session, previews)
    if any(preview.host is None for preview in previews):
        raise typer.Exit(NOWHERE)


def _for_programs(session: Session, body: object) -> bool:
    match session.printer.format:
        case Format.JSON:
            session.printer.text(json.dumps(body, indent=2))
        case Format.YAML:
            session.printer.text(yaml.safe_dump(body, sort_keys=False), end="")
        case _:
            return False
    return True


def _for_people(session: Session, previews: Iterable[Preview]) -> None:
    printer = session.printer
    for number, preview in enumerate(previews):
        if number:
            printer.line()
        if preview.host is not None:
            printer.line(one_line(f"{preview.name} would go to host {preview.host}."))
        else:
            printer.line(one_line(f"{preview.name} would go nowhere: {preview.refusal}"))
        printer.line()
        columns: list[Column[HostVerdict]] = [
            Column("Host", lambda v: v.host),
            Column("Fits", lambda v: "no" if v.whys else "yes"),
            Column("CPUs left", lambda v: str(v.cpus_left), right=True),
            Column("Memory left", lambda v: rounded(v.memory_left), right=True),
            Column("Scores", lambda v: ", ".join(f"{name} {score:.2f}" for name, score in v.scores.items())),
            Column("Why not", lambda v: "; ".join(v.whys)),
        ]
        if preview.most > 0:
            columns.insert(2, _preferred(preview.most))
        printer.table(columns, preview.verdicts[:SHOWN], empty="There are no hosts.")
        if len(preview.verdicts) > SHOWN:
            printer.note(f"And {len(preview.verdicts) - SHOWN} more hosts: -o json shows all.")
        for fault in preview.faults:
            printer.note(f"A filter or scorer fails: {one_line(fault)}.")


def _preferred(most: float) -> Column[HostVerdict]:
    return Column("Preferred", lambda verdict: f"{verdict.liking:.0f}/{most:.0f}", right=True)


def _rebalance(
    session: Session,
    by: Annotated[Metric, typer.Option("--by", help="What hosts are to be even in.")] = Metric.MEMORY,
    tolerance: Annotated[
        int, typer.Option(min=0, max=100, help="Percent that the fullest and the emptiest host may stay apart.")
    ] = 10,
    most: Annotated[int, typer.Option("--max-moves", min=1, max=1000, help="So many moves at most.")] = 20,
    zone: Annotated[str | None, typer.Option(metavar="NAME", help="Only this zone.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Make the moves that are shown.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all have moved.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 1800,
) -> None:
    """Show which moves would make hosts even, and make them with --apply.

    Machines that break a rule where they are go first. Machines stay in their zone, and nowhere break a rule. What cannot be
    moved while it runs, and what is off, is left where it is.
    """
    plan = desk(session).rebalance(Goal(by, tolerance / 100, most, zone))
    if _for_programs(session, plan.to_json()):
        if apply and plan.moves:
            rebalancing.carry_out(session, plan, wait=wait, timeout=timeout)
        return
    printer = session.printer
    columns: list[Column[tuple[int, Move]]] = [
        Column("", lambda row: str(row[0]), right=True),
        Column("Namespace", lambda row: row[1].namespace),
        Column("Name", lambda row: row[1].name),
        Column("From", lambda row: row[1].source),
        Column("To", lambda row: row[1].target),
        Column("CPUs", lambda row: str(row[1].cpus), right=True),
        Column("Memory", lambda row: rounded(row[1].memory), right=True),
        Column("Why", lambda row: row[1].why),
    ]
    printer.table(columns, enumerate(plan.moves, 1), empty="There is nothing to move.")
    _shares(session, by, plan)
    for name, why in sorted(plan.stuck.items()):
        printer.note(one_line(f"{name} breaks a rule and cannot be moved: {why}."))
    moved = sum(move.memory for move in plan.moves)
    if plan.moves:
        printer.line()
        what = f"{count(len(plan.moves), 'move')} of {rounded(moved)} of memory."
        printer.line(what if apply else f"{what} This is a plan: nothing was moved; --apply makes these moves.")
        if apply:
            rebalancing.carry_out(session, plan, wait=wait, timeout=timeout)


def _shares(session: Session, by: Metric, plan: Plan) -> None:
    """The hosts that the plan changes, or the fullest and the emptiest when it changes none."""
    changed = [name for name in plan.before if plan.before[name] != plan.after.get(name)]
    ordered = sorted(changed or plan.before, key=lambda name: (-plan.before[name], name))
    shown = ordered if len(ordered) <= SHOWN else [*ordered[: SHOWN // 2], *ordered[-SHOWN // 2 :]]
    columns: list[Column[str]] = [
        Column("Host", lambda name: name),
        Column(f"{by} promised", lambda name: f"{plan.before[name]:.0%}", right=True),
        Column("after", lambda name: f"{plan.after[name]:.0%}", right=True),
    ]
    session.printer.line()
    session.printer.table(columns, shown, empty="There are no hosts that take machines.")


def register(hosts: typer.Typer) -> None:
    """Add the commands."""
    command(hosts, "rebalance")(_rebalance)


def checked(name: str | None, file: Path | None, *, dry_run: bool, hosts: bool) -> None:
    """Whether the options of `vm explain` go together. Raises `Usage`."""
    if dry_run is not (file is not None):
        raise Usage("--dry-run goes with -f FILE, and -f with --dry-run.")
    if (name is None) is not dry_run:
        raise Usage("Name a machine, or a file with --dry-run -f FILE.")
    if hosts and dry_run:
        raise Usage("--dry-run shows the hosts by itself.")
