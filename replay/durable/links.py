"""Whether rows follow each other as a server lets them: in their lanes, episodes and requests."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import FIRST, LAST, MID
from fornix.replay.durable.findings import Findings
from fornix.replay.durable.records import LEFT, NO_LANE
from fornix.replay.ring import ENDS
from fornix.replay.stacking import Numbers

Records = NDArray[Any]
_NAMES = {FIRST: "FIRST", MID: "MID", LAST: "LAST", LEFT: "the mark that its lane left"}


class _Report:
    """Findings of rows, which are numbered from base."""

    def __init__(self, base: int, where: str, findings: Findings) -> None:
        self._base = base
        self._where = where
        self._findings = findings

    def __call__(self, numbers: NDArray[Any], what: str) -> None:
        self._findings.rows(self._where, numbers.astype(np.int64) + self._base, what)


def check_links(records: Records, tail: int, base: int, where: str, findings: Findings) -> None:
    """Check how rows go on with their episodes.

    Args:
        records: RECORD [K] of whole rows, in order.
        tail: rows below it are not there.
        base: what is added to the rows' numbers.
        where: the rows are.
        findings: to take down what is wrong.
    """
    report = _Report(base, where, findings)
    _check_each(records, report)
    real = records[records["lane"] != NO_LANE]
    real = real[np.lexsort((real["number"], real["lane"], real["opening"], real["writer"]))]
    holes = _holes(records)
    begins = np.ones(len(real), np.bool_)
    for name in ("writer", "opening", "lane"):
        begins[1:] &= real[name][1:] == real[name][:-1]
    follows = begins
    follows[:1] = False
    _check_beginnings(real[~follows], tail, holes, report)
    at = np.flatnonzero(follows)
    _check_pairs(real[at - 1], real[at], holes, report)


def check_requests(records: Records, head: int, base: int, where: str, findings: Findings) -> None:
    """Check that requests are whole and in order; see `check_links`."""
    report = _Report(base, where, findings)
    if not len(records):
        return
    before, after = records[:-1], records[1:]
    neighbours = before["number"] + 1 == after["number"]
    ends = before["index"] + 1 == before["count"]
    goes_on = after["index"] == before["index"] + 1
    for name in ("writer", "opening", "sequence", "count"):
        goes_on &= after[name] == before[name]
    wrong = neighbours & np.where(ends, after["index"] != 0, ~goes_on)
    report(before["number"][wrong], "its request is not complete, or the next does not begin after it")
    last = records[-1]
    if int(last["number"]) == head - 1 and last["index"] + 1 != last["count"]:
        report(records["number"][-1:], "its request is not complete: it is the last row")
    begun = records[records["index"] == 0]
    begun = begun[np.lexsort((begun["number"], begun["opening"], begun["writer"]))]
    same = (begun["writer"][1:] == begun["writer"][:-1]) & (begun["opening"][1:] == begun["opening"][:-1])
    late = same & (begun["sequence"][1:] <= begun["sequence"][:-1])
    report(begun["number"][1:][late], "the number of its request is not above that of the one before")


def _check_each(records: Records, report: _Report) -> None:
    number, kind = records["number"], records["step_type"]
    report(number[kind > LEFT], "is neither FIRST, MID, LAST nor the mark that a lane left")
    alone = (kind == FIRST) | (kind == LEFT)
    linked = (records["back"] > 0) | (records["first"] > 0) | (records["position"] > 0)
    report(number[alone & linked], "begins no episode, and its step type says that it does")
    within = (kind == MID) | (kind == LAST)
    loose = (records["back"] == 0) | (records["first"] < records["back"]) | (records["position"] == 0)
    report(number[within & loose], "goes on with no episode, and its step type says that it does")
    report(number[(kind != LAST) & (records["terminated"] != 0)], "is terminated, and not LAST")


def _holes(records: Records) -> Numbers:
    """Return the rows, int64 [H], before which some are missing."""
    numbers = records["number"].astype(np.int64)
    return numbers[1:][np.diff(numbers) > 1]


def _hole_between(holes: Numbers, low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.bool_]:
    low, high = low.astype(np.int64), high.astype(np.int64)
    found: NDArray[np.bool_] = np.searchsorted(holes, high, "right") > np.searchsorted(holes, low, "right")
    return found


def _check_beginnings(rows: Records, tail: int, holes: Numbers, report: _Report) -> None:
    """Check the oldest row that there is of each lane: what it follows must be gone."""
    number = rows["number"].astype(np.int64)
    back = rows["back"].astype(np.int64)
    within = (rows["step_type"] == MID) | (rows["step_type"] == LAST)
    target = number - back
    wrong = within & (target >= tail) & ~_hole_between(holes, np.full(len(rows), tail), number)
    report(number[wrong], "leads back to a row of another writer or lane")


def _check_pairs(before: Records, after: Records, holes: Numbers, report: _Report) -> None:
    """Check rows that follow each other in a lane, but for those between which some are missing."""
    whole = ~_hole_between(holes, before["number"], after["number"])
    before, after = before[whole], after[whole]
    number, kind = after["number"].astype(np.int64), after["step_type"]
    going = (before["step_type"] == FIRST) | (before["step_type"] == MID)
    for one, name in _NAMES.items():
        wrong = (kind == one) & (going == (one == FIRST))
        what = "is still open" if one == FIRST else "has ended"
        report(number[wrong], f"is {name}, and the episode before in its lane {what}")
    linked = going & ((kind == MID) | (kind == LAST))
    number, before, after = number[linked], before[linked], after[linked]
    expected = before["number"].astype(np.int64)
    elsewhere = (number - after["back"] != expected) & (after["back"] != ENDS)
    report(number[elsewhere], "leads back to another row than the one before in its lane")
    far = (after["first"] == ENDS) | (before["first"] == ENDS)
    first = number - after["first"] != expected - before["first"]
    report(number[first & ~far], "has another FIRST row than the row before in its lane")
    position = after["position"] != before["position"] + np.uint32(1)
    report(number[position], "is not one step after the row before in its lane")
