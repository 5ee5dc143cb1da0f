"""Holds the rows that a memory has against what the writers have logged.

It is given all rows, in their order, part by part: whatever came before each death of the server. Every
writer's incarnation must be there from its first request on, each request once, whole and in order, and
byte for byte what its script says; with at least what had been answered before the server died, and no
more than what was about to be sent.
"""

import bisect
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from durability.audit import Rows
from durability.contents import (
    LANES,
    Script,
    action_of,
    frame_of,
    last_of,
    reward_of,
    who_of,
)
from durability.shared import ANSWERED, ENTRY_DTYPE, keys_check
from fornix.common.messages import LAST
from fornix.replay.durable.records import LEFT


class Part(NamedTuple):
    """What was found after one death of the server."""

    rows: Rows
    logs: dict
    """How long each log was then, in bytes, by writer and incarnation."""
    started_ns: int
    """When that server was started."""


class Life:
    """One incarnation of a writer, as it is found in the memory."""

    def __init__(self, writer, incarnation):
        self.writer = writer
        self.incarnation = incarnation
        self.script = Script(writer, incarnation)
        self.sequence = 0
        self.answers = {}
        """Of the last requests: first key, number of keys, checksum."""
        self.newest = [0] * LANES
        self.first = [0] * LANES
        self.is_open = [None] * LANES
        """Episode and step of each lane's newest row, while the episode is open."""
        self.wrong = False


class Acknowledged:
    """How far a writer's log has been read."""

    def __init__(self):
        self.offset = 0
        self.intended = 0
        self.answered = 0


class Checker:
    """Takes part after part; `faults` says what is wrong.

    Args:
        place: of the run.
    """

    def __init__(self, place):
        self._place = place
        self._lives = {}  # by opening
        self._by_name = {}  # by writer and incarnation
        self._current = {}  # by writer
        self._logs = {}
        self.faults = []
        self.counts = Counter()
        self.first_answers_ns = []
        self._firsts = []  # the first key of each part
        self._whos = []  # the rows of each part: int32 [K, 5]
        self._cut = {}  # by writer, incarnation, lane and episode: its last step

    def take(self, part):
        """Check what was found after a death of the server."""
        for fault in part.rows.faults:
            self._fault("torn", fault)
        if len(part.rows.records):
            self._firsts.append(part.rows.first + part.rows.base)
            self._whos.append(part.rows.who.astype(np.int32))
            self._check_rows(part.rows)
        self._check_logs(part)

    def finish(self, started):
        """Check what only the end tells.

        Args:
            started: the last incarnation that was started of each writer.
        """
        for life in self._by_name.values():
            if life.incarnation < started[life.writer]:
                self._cut_open(life)
        for key, *who in self._seen("drawn"):
            self._require_key(key, who)
        for key, *who in self._seen("cut"):
            self._require_key(key, who)
            known = self._cut.get(tuple(who[:4]))
            life = self._by_name.get(tuple(who[:2]))
            if known != who[4] and not (life is not None and life.wrong):
                self._fault(
                    "wrong",
                    f"{who} was drawn as the last of an episode that was cut off, and that was "
                    f"{'never' if known is None else f'at step {known}'}",
                )

    def _seen(self, kind):
        """Return what learners were given, each once: int [N, 6], key and who."""
        rows = []
        for path in sorted((self._place.folder / kind).iterdir()):
            data = path.read_bytes()
            rows.append(np.frombuffer(data[: len(data) // 48 * 48], "<i8").reshape(-1, 6))
        unique = np.unique(np.concatenate(rows), axis=0) if rows else np.empty((0, 6), np.int64)
        self.counts[f"{kind} rows looked up"] += len(unique)
        return unique.tolist()

    def _require_key(self, key, who):
        """The row with a key that a learner was given is what it was given."""
        part = bisect.bisect_right(self._firsts, key) - 1
        at = key - self._firsts[part] if part >= 0 else 0
        found = self._whos[part][at].tolist() if part >= 0 and at < len(self._whos[part]) else None
        if found != who:
            self._fault("wrong", f"the step with key {key} was drawn as {who}, and is {found}")

    def summary(self) -> dict[str, Any]:
        """Return what was counted."""
        kinds = Counter(fault["kind"] for fault in self.faults)
        return {
            **self.counts,
            **{kind: kinds[kind] for kind in ("lost", "doubled", "reordered", "torn", "wrong")},
        }

    def _fault(self, kind, what):
        self.faults.append({"kind": kind, "source": "checker", "what": what})

    # rows

    def _check_rows(self, rows):
        records = rows.records
        self.counts["rows checked"] += len(records)
        begins = np.flatnonzero(records["index"] == 0)
        ends = np.append(begins[1:], len(records))
        due = []
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if not np.array_equal(records["index"][begin:end], np.arange(end - begin)) or (
                records["count"][end - 1] != end - begin
            ):
                self._fault("torn", f"the request at row {rows.first + begin} is not whole")
                continue
            made = self._check_request(rows, begin, end)
            if made is not None:
                due.append(made)
        if due:
            at, who, kind, sequence, back, first = (
                np.concatenate(parts) for parts in zip(*due, strict=True)
            )
            if len(at):  # not only requests that let lanes leave
                self._check_contents(rows, at, who, kind, sequence, back, first)

    def _check_request(self, rows, begin, end):
        """Check that a request is the next of its writer; return what each of its rows must be."""
        records = rows.records
        opening, sequence = int(records["opening"][begin]), int(records["sequence"][begin])
        left = int(np.count_nonzero(records["step_type"][begin:end] == LEFT))
        life = self._lives.get(opening) or self._begun(rows, begin, end, opening)
        if life is None or life.wrong:
            return None
        if self._current[life.writer] is not life:
            return self._wrong(life, "reordered", f"request {sequence} comes after its successor's")
        if sequence != life.sequence + 1:
            kind = "lost" if sequence > life.sequence else "doubled"
            return self._wrong(
                life, kind, f"request {sequence} is at row {rows.first + begin}, after {life.sequence}"
            )
        request = life.script.next()
        life.sequence = sequence
        self.counts["requests checked"] += 1
        if (left, end - begin - left) != (len(request.leave), len(request.who)) or not np.array_equal(
            records["lane"][begin : begin + left], request.leave
        ):
            return self._wrong(life, "wrong", f"request {sequence} has other rows than were written")
        for lane in request.leave.tolist():
            episode, step = life.is_open[lane]
            self._cut[life.writer, life.incarnation, lane, episode] = step
            life.is_open[lane] = None
        number = rows.first + begin + left
        back, first = self._go_on(life, request, number)
        keys = rows.base + number + request.newest()
        life.answers[sequence] = (int(keys[0]) if len(keys) else 0, len(keys), keys_check(keys))
        count = len(request.who)
        at = np.arange(begin + left, end)
        return at, request.who, request.kind, np.full(count, sequence), back, first

    def _go_on(self, life, request, number):
        """Return how far before each row its predecessor and its episode's first row are."""
        back, firsts = [], []
        whos, kinds = request.who.tolist(), request.kind.tolist()
        for row, (who, kind) in enumerate(zip(whos, kinds, strict=True), number):
            _, _, lane, episode, step = who
            if step == 0:
                life.newest[lane] = life.first[lane] = row
            back.append(row - life.newest[lane])
            firsts.append(row - life.first[lane])
            life.newest[lane] = row
            life.is_open[lane] = None if kind == LAST else (episode, step)
        return np.array(back, np.int64), np.array(firsts, np.int64)

    def _begun(self, rows, begin, end, opening):
        """Return the life that begins with a request, if it may."""
        places = np.arange(begin, end)[rows.records["step_type"][begin:end] != LEFT]
        if not len(places):
            self._fault("lost", f"row {rows.first + begin} is of a writer whose beginning is not there")
            return None
        writer, incarnation = (int(v) for v in who_of(rows.frame[places[0]])[:2])
        before = self._current.get(writer)
        life = Life(writer, incarnation)
        if (writer, incarnation) in self._by_name:
            self._fault("doubled", f"writer {writer}.{incarnation} is there under two openings")
            return None
        if before is not None and before.incarnation > incarnation:
            self._fault("reordered", f"writer {writer}.{incarnation} comes after {before.incarnation}")
            return None
        if before is not None:
            self._cut_open(before)
        self._lives[opening] = self._by_name[writer, incarnation] = self._current[writer] = life
        self.counts["incarnations"] += 1
        return life

    def _cut_open(self, life):
        """The episodes that are open end, truncated."""
        for lane, is_open in enumerate(life.is_open):
            if is_open is not None:
                self._cut[life.writer, life.incarnation, lane, is_open[0]] = is_open[1]

    def _wrong(self, life, kind, what):
        life.wrong = True
        self._fault(kind, f"writer {life.writer}.{life.incarnation}: {what}")

    def _check_contents(self, rows, at, who, kind, sequence, back, first):
        """Check every byte of rows that are where they must be."""
        records = rows.records[at]
        terminated = (kind == LAST) & last_of(who)[1]
        frames = (rows.frame[at] == frame_of(who)).all(axis=1)
        for name, found, due in (
            ("extra", rows.who[at], who),
            ("action", rows.action[at], action_of(who)),
            ("reward", rows.reward[at], reward_of(who)),
            ("lane", records["lane"], who[:, 2]),
            ("step type", records["step_type"], kind),
            ("terminated", records["terminated"], terminated),
            ("position", records["position"], who[:, 4]),
            ("policy version", records["policy_version"], sequence),
            ("sequence", records["sequence"], sequence),
            ("predecessor", records["back"], back),
            ("first row", records["first"], first),
        ):
            same = (found == due).reshape(len(at), -1).all(axis=1)
            if not same.all():
                wrong = int(np.argmin(same))
                self._fault(
                    "wrong",
                    f"row {rows.first + at[wrong]}, {who[wrong].tolist()}: its {name} is "
                    f"{found[wrong]}, and {due[wrong]} was written",
                )
        if not frames.all():
            wrong = int(np.argmin(frames))
            found = rows.frame[at[wrong]]
            torn = not np.array_equal(found, frame_of(who_of(found)))
            self._fault(
                "torn" if torn else "wrong",
                f"row {rows.first + at[wrong]} has the frame of {who_of(found).tolist()}, and "
                f"{who[wrong].tolist()} was written",
            )

    # logs

    def _check_logs(self, part):
        answered_at = []
        for (writer, incarnation), nbytes in part.logs.items():
            log = self._logs.setdefault((writer, incarnation), Acknowledged())
            if nbytes > log.offset:
                with self._place.log(writer, incarnation).open("rb") as file:
                    file.seek(log.offset)
                    entries = np.frombuffer(file.read(nbytes - log.offset), ENTRY_DTYPE)
                log.offset = nbytes
                life = self._by_name.get((writer, incarnation))
                answered = entries[entries["kind"] == ANSWERED]
                intended = entries[entries["kind"] != ANSWERED]
                answered_at += answered["at"].tolist()
                log.intended = max([log.intended, *intended["sequence"].tolist()])
                log.answered = max([log.answered, *answered["sequence"].tolist()])
                self.counts["answers checked"] += len(answered)
                self._check_answers(writer, incarnation, life, answered)
            self._check_reach(writer, incarnation, log)
        later = [at for at in answered_at if at > part.started_ns]
        if later:
            self.first_answers_ns.append(min(later) - part.started_ns)

    def _check_answers(self, writer, incarnation, life, answered):
        for entry in answered:
            sequence = int(entry["sequence"])
            if life is None or (sequence > life.sequence and not life.wrong):
                self._fault(
                    "lost",
                    f"writer {writer}.{incarnation} was answered request {sequence}, and the memory has "
                    f"{life.sequence if life else 'none'}",
                )
                return
            found = life.answers.get(sequence)
            told = int(entry["key"]), int(entry["keys"]), int(entry["check"])
            if found is not None and found != told:
                self._fault("wrong", f"writer {writer}.{incarnation}: request {sequence} has other keys")
            life.answers.pop(sequence, None)

    def _check_reach(self, writer, incarnation, log):
        life = self._by_name.get((writer, incarnation))
        if life is not None and not life.wrong and life.sequence > log.intended:
            self._fault(
                "wrong", f"writer {writer}.{incarnation}: request {life.sequence} was never written"
            )


def check(place, inbox):
    """Take parts out of a pipe, until None; then the last incarnations; answer with what was found."""
    checker = Checker(place)
    while (part := inbox.recv()) is not None:
        checker.take(part)
        if len(checker.faults) and not checker.counts["told"]:
            checker.counts["told"] = 1
            place.fault("checker", checker.faults[0]["what"])  # which ends the run
    checker.finish(inbox.recv())
    del checker.counts["told"]
    inbox.send((checker.summary(), checker.faults[:20], checker.first_answers_ns))
