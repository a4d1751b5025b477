"""The simulated platform of a rehearsal: its random phase, its users of the day, and the truth about them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bentos.schemas import MAX_USERS
from campaign import Campaign
from rehearsal.script import END, FIRST_DAY, WARM_UP_DAYS, Script
from simulator import OUTCOMES, Drift, Due, World
from simulator.random_phase import random_arms, random_day, write_truth

SLOT_SECONDS = 900


def open_world(script: Script, campaign: Campaign, root: Path) -> World:
    """The world on its first day; blocks begin on Mondays, so a week's decisions fall on its Monday."""
    drifts = [Drift(script.drift, FIRST_DAY + 7 * (script.drift_week - 1))] if script.drift else []
    messages = campaign.arm_names[1:]
    return World(root, script.users, script.days, script.seed, end=END, messages=messages, phase_step=7, drifts=drifts)


def live_random_phase(world: World, campaign: Campaign) -> None:
    """Warm-up, whose random arms nobody logs, and random phase, as `tactful simulate` writes it."""
    while world.day < WARM_UP_DAYS:
        world.decide(random_arms(world, world.due(), holdout_share=0.0)[0])
        world.advance()
    while world.day < FIRST_DAY:
        random_day(world, 0, campaign.assignment.holdout_share)


def live_week(world: World, arms: np.ndarray) -> None:
    """Monday's users get their arms, and the week passes; the truth about them is written beside the logs."""
    write_truth(world, 0, world.due())
    world.decide(arms)
    for _ in range(7):
        world.advance()


def true_values(due: Due, campaign: Campaign) -> np.ndarray:
    """True expected value of every user under every arm, costs taken off; shape (n, n_arms), money."""
    columns = [OUTCOMES.index(outcome.measure) for outcome in campaign.outcome]
    return np.asarray(due.truth[:, :, columns] @ np.asarray(campaign.weights) - np.asarray(campaign.costs))


def requests_of(due: Due) -> Iterable[tuple[np.datetime64, int, str, np.ndarray]]:
    """Who asks together: users of one quarter of an hour and surface, in order of time: instant, hour, surface, rows.

    All are decided at their first user's instant: outcome windows begin at most a quarter of an hour before the block.
    """
    slot = due.decided_at.astype("datetime64[s]").astype(np.int64) // SLOT_SECONDS
    surfaces, surface = np.unique(due.surface.astype(str), return_inverse=True)
    order = np.lexsort((due.decided_at.astype(np.int64), surface, slot))
    starts = np.flatnonzero(np.r_[True, (np.diff(slot[order]) != 0) | (np.diff(surface[order]) != 0)])
    for rows in np.split(order, starts[1:]):
        for part in np.split(rows, range(MAX_USERS, len(rows), MAX_USERS)):
            yield due.decided_at[part[0]], int(due.hour[part[0]]), str(surfaces[surface[part[0]]]), part
