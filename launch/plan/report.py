"""Prints the plan of a config (`translution plan CONFIG`)."""

import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parallel.engine.deepspeed_settings import check_deepspeed_keys
from parallel.mesh import Mesh, mesh_of
from parallel.planner.plan import Plan, layer_kinds, plan
from parallel.planner.recommend import Cluster, recommend
from parallel.planner.units import size_text
from trainer.config.run import RunConfig, load_config

_WIDTH = 100  # of lines in files and pipes


def show(path: Path, overrides: list[str], cluster: Cluster, nodes_given: bool, as_json: bool) -> None:
    """Plans the config on its own mesh, and recommends one; raises UserError for what cannot be."""
    config = load_config(path, overrides)
    if not nodes_given:
        cluster = cluster_for(config, cluster)
    check_deepspeed_keys(config.parallel)
    net, train = layer_kinds(config.model), config.train
    net.pieces(Mesh(1, config.parallel.offset, config.parallel.tensor))  # refuses what does not divide
    mesh = mesh_of(config.parallel, cluster.world)
    cpu = config.device == "cpu"
    if cpu:
        cluster = dataclasses.replace(cluster, card=None)
    own = plan(net, config.parallel, mesh, train.batch, train.accumulate, config.precision, cpu)
    best = recommend(net, train.batch, train.accumulate, config.precision, cluster)
    if as_json:
        print(json.dumps(_values(own, best, cluster), indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for line in _heading(config, own, cluster):
        console.print(line, markup=False)
    for part in (_parameters(own), *_banks(own), _memory(own, cluster), _sent(own, cluster)):
        console.print(part)
    for line in (*own.remarks, *_work(own, cluster), *_advice(own, best, cluster)):
        console.print(line, markup=False, soft_wrap=True)


def cluster_for(config: RunConfig, cluster: Cluster) -> Cluster:
    """The cluster with as many nodes as the config's mesh needs."""
    ranks = config.parallel.offset * config.parallel.tensor
    if config.parallel.data == "auto":
        return dataclasses.replace(cluster, nodes=-(-ranks // cluster.devices))
    ranks *= config.parallel.data
    if ranks <= cluster.devices:
        return dataclasses.replace(cluster, devices=ranks)
    return dataclasses.replace(cluster, nodes=-(-ranks // cluster.devices))


def _heading(config: RunConfig, own: Plan, cluster: Cluster) -> list[str]:
    return [
        f"{config.name}: {own.total:,} parameters, {size_text(16 * own.total)} of weights, gradients and "
        "Adam states",
        f"{cluster.nodes} × {cluster.devices} devices of {size_text(cluster.memory)}: {_setting(own)}",
        f"batch {own.batch} = {own.mesh.data} data ranks × {own.accumulate} micro-batches × "
        f"{own.micro_batch} samples",
    ]


def _setting(run: Plan) -> str:
    engine = "torch" if run.parallel.engine == "torch" else f"DeepSpeed ZeRO-{run.parallel.zero}"
    return f"{run.mesh}, {engine}, {run.precision}, activations {run.parallel.activations}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    return table


def _parameters(own: Plan) -> Table:
    table = _table("Parameters", "part", "whole net", "one rank", "share of the net")
    for part, count in own.parameters.items():
        if count:
            table.add_row(part, f"{count:,}", f"{own.held[part]:,}", f"{count / own.total:.1%}")
    table.add_section()
    table.add_row("all", f"{own.total:,}", f"{sum(own.held.values()):,}", "")
    return table


def _banks(own: Plan) -> list[Table]:
    """How the banks of each kind of layer share entries; nothing for a net without banks."""
    table = _table("Bank entries", "share", "layers", "offsets", "entries")
    for bank in own.banks:
        table.add_row(bank.share, str(bank.layers), f"{bank.offsets:,}", f"{bank.entries:,}")
    return [table] if own.banks else []


def _memory(own: Plan, cluster: Cluster) -> Table:
    memory = own.memory
    table = _table("Memory of the fullest rank", "what", "bytes", "")
    rows = [
        ("weights", memory.weights, ""),
        ("gradients", memory.gradients, ""),
        ("optimizer states", memory.optimizer, ""),
        ("gathered for one module (ZeRO-3)", memory.gathered, ""),
        ("saved activations", memory.saved, f"of {own.micro_batch} samples"),
        ("temporaries and buffers of collectives", memory.transient, ""),
        ("inputs", memory.inputs, ""),
        ("CUDA's context and NCCL's buffers", memory.runtime, "modelled, beside the peak"),
        ("in host memory", memory.host, ""),
    ]
    for what, count, remark in rows:
        if count:
            table.add_row(what, size_text(count), remark)
    table.add_section()
    fits = own.fits(cluster.memory)
    verdict, style = (
        f"{'fits' if fits else 'does not fit'} {size_text(cluster.memory)}",
        "green" if fits else "red",
    )
    if fits and not own.complete:
        verdict, style = "a lower bound: see below", ""
    table.add_row(f"peak ({memory.moment})", size_text(memory.peak), verdict, style=style)
    return table


def _sent(own: Plan, cluster: Cluster) -> Table:
    table = _table("Sent by a rank in one step", "axis", "ranks", "bytes", "at", "takes")
    for axis, sent in own.sent.items():
        ranks = getattr(own.mesh, axis)
        if ranks > 1:
            speed = cluster.axis_bandwidth(axis, own.mesh)
            row = (axis, str(ranks), size_text(sent), size_text(speed, "B/s"), f"{1e3 * sent / speed:.3g} ms")
            table.add_row(*row)
    if not table.rows:
        table.add_row("none", "1", "0 B", "", "")
    return table


def _work(own: Plan, cluster: Cluster) -> list[str]:
    forward, _, training = (size_text(count, "FLOP") for count in own.sample)
    share = size_text(own.share.training, "FLOP")
    lines = [
        f"Work per sample: {forward} forward; {training} in training with recomputation, {share} of it on a "
        f"rank. A step takes about {cluster.step_seconds(own):.3g} s ({cluster.basis(own)}) if communication "
        "overlaps with nothing."
    ]
    if own.breakeven_batch is not None:
        lines.append(
            f"Offset × tensor sends less than ZeRO-3 alone on {own.mesh.model} ranks for micro-batches of up "
            f"to {own.breakeven_batch:,} samples; here they have {own.micro_batch:,}."
        )
    return lines


def _advice(own: Plan, best: Plan | None, cluster: Cluster) -> list[str]:
    if not own.complete:
        return ["Recommended: nothing, since part of the net is not planned."]
    if best is None:
        return ["Recommended: nothing; no mesh of this cluster fits the net with this batch."]
    lines = [
        f"Recommended: {_setting(best)}, accumulate {best.accumulate}: peak {size_text(best.memory.peak)}, "
        f"about {cluster.step_seconds(best):.3g} s a step."
    ]
    if best.mesh == own.mesh and best.parallel == own.parallel:
        return lines
    return [*lines, f"    {' '.join(overrides_of(best))}"]


def overrides_of(best: Plan) -> list[str]:
    """The recommendation as overrides."""
    parallel = best.parallel
    words = [f"parallel.offset={parallel.offset}", f"parallel.tensor={parallel.tensor}"]
    words += [f"parallel.engine={parallel.engine}", f"parallel.zero={parallel.zero}"]
    return [*words, f"parallel.activations={parallel.activations}", f"train.accumulate={best.accumulate}"]


def _values(own: Plan, best: Plan | None, cluster: Cluster) -> dict[str, object]:
    return {
        "cluster": dataclasses.asdict(cluster),
        "plan": own.as_dict()
        | {
            "fits": own.fits(cluster.memory),
            "step_seconds": cluster.step_seconds(own),
            "step_seconds_basis": cluster.basis(own),
        },
        "recommended": best and best.as_dict() | {"step_seconds": cluster.step_seconds(best)},
        "recommended_overrides": best and overrides_of(best),
    }
