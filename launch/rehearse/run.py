"""A rehearsal of a config on a cluster: some ranks, each beside its plan, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from launch.plan.report import cluster_for, overrides_of
from launch.rehearse.rank import Part, RankReport
from launch.rehearse.ranks import choose_ranks, rehearse
from models.ops.cards import CARDS
from parallel.engine import build
from parallel.mesh import Mesh, mesh_of
from parallel.planner.plan import Plan, layer_kinds, plan
from parallel.planner.recommend import Cluster, recommend
from parallel.planner.units import size_text
from parallel.rehearsal.collectives import Disagreement, first_disagreement, traffic_of
from parallel.rehearsal.compare import NAMED, Figure, figures
from trainer.config.run import RunConfig
from trainer.config.study import run_members


@dataclass(frozen=True)
class Rehearsed:
    """Ranks of a run on a cluster; `plans` are of the same ranks."""

    config: RunConfig
    cluster: Cluster
    mesh: Mesh
    ranks: list[RankReport]
    plans: list[Plan]

    @property
    def fullest(self) -> RankReport:
        """Of those rehearsed."""
        return max(self.ranks, key=lambda rank: rank.peak.bytes)

    @property
    def fits(self) -> bool:
        return self.fullest.peak.bytes <= self.cluster.memory

    def figures(self) -> list[list[Figure]]:
        """Of each rank."""
        return [
            figures(
                rank.held,
                rank.peak.bytes,
                rank.work.flops,
                rank.work.kernels,
                traffic_of(rank.collectives),
                planned,
            )
            for rank, planned in zip(self.ranks, self.plans, strict=True)
        ]

    def named_differences(self) -> list[str]:
        """A line for each figure that is far from the plan's."""
        lines = []
        for rank, found in zip(self.ranks, self.figures(), strict=True):
            for figure in found:
                difference = figure.difference
                if difference is not None and abs(difference) > NAMED:
                    lines.append(
                        f"rank {rank.rank}: {figure.name} {figure.rehearsed:,.0f} rehearsed, "
                        f"{figure.planned:,.0f} planned ({difference:+.1%})"
                    )
        return lines

    def disagreement(self) -> Disagreement | None:
        """The first collective on which two ranks do not agree; those of evaluation, save and load too."""
        logs = {rank.rank: rank.collectives + rank.rare for rank in self.ranks}
        return first_disagreement(logs, self.mesh.model)

    def problem(self) -> str | None:
        """The line that a person needs before the job waits in a queue; None if there is nothing wrong."""
        for rank in self.ranks:
            if rank.wrong:
                more = f" (and {len(rank.wrong) - 1} more)" if len(rank.wrong) > 1 else ""
                return f"rank {rank.rank}: {rank.wrong[0]}{more}"
        if found := self.disagreement():
            return "; ".join(line.strip() for line in found.lines())
        if not self.fits:
            return self._misfit()
        return None

    def _misfit(self) -> str:
        peak = self.fullest.peak
        kinds = ", ".join(f"{size_text(size)} {kind}" for kind, size in list(peak.by_kind.items())[:3])
        line = (
            f"rank {self.fullest.rank} needs {size_text(peak.bytes)} ({peak.moment}: {kinds}), a device has "
            f"{size_text(self.cluster.memory)}"
        )
        train = self.config.train
        best = recommend(
            self.plans[0].net, train.batch, train.accumulate, self.config.precision, self.cluster
        )
        return f"{line}; {' '.join(overrides_of(best))} fits" if best else f"{line}; use more devices"

    def summary(self) -> str:
        """One line for `submit`."""
        peak = self.fullest.peak
        others = self.named_differences()
        beside = f"; {len(others)} figures differ from the plan by more than {NAMED:.0%}" if others else ""
        return (
            f"rehearsal: rank {self.fullest.rank} of {self.mesh} peaks at {size_text(peak.bytes)} "
            f"({peak.moment}), {len(self.fullest.collectives)} collectives a step{beside}"
        )


def rehearse_config(
    config: RunConfig, cluster: Cluster, nodes_given: bool, ranks: str, seconds: float
) -> Rehearsed:
    """Rehearses some ranks of the config's net, or of the largest of its study.

    Raises UserError for what cannot be, before any long work.
    """
    members = [member.config for member in run_members(config)]
    found = [_planned(member, cluster, nodes_given) for member in members]
    config, cluster, largest = max(found, key=lambda each: each[2].memory.peak)
    mesh = Mesh(largest.mesh.data, largest.mesh.offset, largest.mesh.tensor)
    card = None if config.device == "cpu" else _card_key(cluster)
    chosen = choose_ranks(ranks, largest.net, mesh, config.parallel)
    train = config.train
    plans = [
        plan(
            largest.net,
            config.parallel,
            dataclasses.replace(mesh, rank=rank),
            train.batch,
            train.accumulate,
            config.precision,
            card is None,
            own_rank=True,
        )
        for rank in chosen
    ]
    reports = rehearse([Part(config, mesh.world, rank, card) for rank in chosen], seconds)
    return Rehearsed(config, cluster, mesh, reports, plans)


def _planned(config: RunConfig, cluster: Cluster, nodes_given: bool) -> tuple[RunConfig, Cluster, Plan]:
    if not nodes_given:
        cluster = cluster_for(config, cluster)
    net, train = layer_kinds(config.model), config.train
    mesh = mesh_of(config.parallel, cluster.world)
    build.check_trainable(
        config.model,
        config.parallel,
        mesh,
        precision=config.precision,
        batch=train.batch,
        accumulate=train.accumulate,
    )
    cpu = config.device == "cpu"
    planned = plan(net, config.parallel, mesh, train.batch, train.accumulate, config.precision, cpu)
    return config, cluster, planned


def _card_key(cluster: Cluster) -> str:
    return next(key for key, card in CARDS.items() if card is cluster.card)
